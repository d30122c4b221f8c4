"""The folders of service/ are layers: each imports from those below it, and from nobody beside or above."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICE = ROOT / "service"
LAYERS = (
    ("cli",),
    ("server",),
    ("frontend",),
    ("protocols",),
    ("inference",),
    ("engine", "worker", "commands"),
    ("client",),
    ("metrics", "repository", "access"),
    ("ipc", "backends", "codecs"),
    ("setting_sources", "arguments"),
    ("settings", "artifact"),
    ("options",),
    ("documents", "logs"),
    ("host", "errors", "did_you_mean"),
)
"""From the top down. Those of one layer do not know each other."""
HEIGHT = {room: -height for height, rooms in enumerate(LAYERS) for room in rooms}
FILES = sorted(path for path in SERVICE.rglob("*.py") if path != SERVICE / "__init__.py")


def room_of(module: str) -> str:
    """The folder, or file, directly under service/ that a module of it belongs to."""
    return module.split(".")[2]


def imported(path: Path) -> Iterator[str]:
    """The modules of foldserve that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports hide where they go"
            names = [f"{node.module}.{name.name}" for name in node.names]
        elif isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith("foldserve."))


def test_every_file_and_folder_has_its_layer() -> None:
    assert {path.relative_to(SERVICE).parts[0].removesuffix(".py") for path in FILES} == set(HEIGHT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SERVICE)))
def test_file_imports_only_from_the_layers_below_it(path: Path) -> None:
    own = path.relative_to(SERVICE).with_suffix("").parts[0]
    for name in imported(path):
        assert name.startswith("foldserve.service."), f"{path} imports {name}; the server knows no networks"
        other = room_of(name)
        assert other == own or HEIGHT[other] < HEIGHT[own], f"{path} imports {name}, which is not below it"


@pytest.mark.parametrize(
    "line",
    [
        "from foldserve.service.server.supervisor import Role",
        "import foldserve.service.worker.main",
        "import foldserve.models",
    ],
)
def test_arrow_that_points_up_or_aside_is_found(tmp_path: Path, line: str) -> None:
    folder = tmp_path / "service" / "engine"
    folder.mkdir(parents=True)
    (folder / "some.py").write_text(f"def late():\n    {line}\n")
    (name,) = imported(folder / "some.py")
    assert not name.startswith("foldserve.service.") or HEIGHT[room_of(name)] >= HEIGHT["engine"]


def test_no_folder_has_more_than_a_dozen_files() -> None:
    folders = {path.parent for path in FILES}
    crowded = {folder: n for folder in folders if (n := len([*folder.glob("[!_]*.py")])) > 12}
    assert not crowded


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SERVICE)))
def test_logger_is_one_of_foldserves(path: Path) -> None:
    """So that a filter on `foldserve` loses nothing that the server says."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "logging.getLogger" and node.args:
            name = ast.unparse(node.args[0])
            assert name.startswith(("'foldserve", "name")), f"{path} logs as {name}"
