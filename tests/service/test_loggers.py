"""Every logger of ours is below `foldserve`, so that one filter has them all."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path for folder in ("service", "models") for path in (ROOT / folder).rglob("*.py"))
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}


def calls_of_logging(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls of functions of the module `logging` itself."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "logging"
        ):
            yield node


def own_loggers(tree: ast.Module) -> list[ast.expr | None]:
    """What names a module's own loggers: the argument of logging.getLogger() where its result is kept in the module."""
    kept = [node.value for node in tree.body if isinstance(node, ast.Assign)]
    return [
        call.args[0] if call.args else None
        for call in calls_of_logging(tree)
        if isinstance(call.func, ast.Attribute) and call.func.attr == "getLogger" and call in kept
    ]


def faults(tree: ast.Module) -> list[str]:
    found = [
        "its logger is not below foldserve"
        for name in own_loggers(tree)
        if not (
            isinstance(name, ast.Constant)
            and isinstance(name.value, str)
            and name.value.startswith("foldserve.")
        )
    ]
    logged = [
        call.func.attr
        for call in calls_of_logging(tree)
        if isinstance(call.func, ast.Attribute) and call.func.attr in LEVELS
    ]
    return found + [f"logging.{name}() logs as nobody" for name in logged]


def test_every_module_logs_below_foldserve() -> None:
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in MODULES}
    trees = {path: ast.parse(text) for path, text in texts.items() if "logging" in text}
    assert [(path, fault) for path, tree in trees.items() for fault in faults(tree)] == []
    assert sum(len(own_loggers(tree)) for tree in trees.values()) > 20  # there are some to look at


@pytest.mark.parametrize(
    "text",
    [
        "import logging\n_log = logging.getLogger(__name__)\n",
        "import logging\n_log = logging.getLogger('service.loading')\n",
        "import logging\n_log = logging.getLogger()\n",
        "import logging\ndef load():\n    logging.warning('slow')\n",
    ],
)
def test_another_logger_is_found(text: str) -> None:
    assert faults(ast.parse(text))
