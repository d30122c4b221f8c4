"""A file that a docstring, a comment or CONTRIBUTING.md names is there: a rename takes its mentions along."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("service", "models", "tests", "benchmarks", "deploy")
FILES = [
    f"/{path.relative_to(ROOT)}"
    for path in (*ROOT.glob("*.py"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.py")))
]
PAGES = [*sorted((ROOT / "service").rglob("*.py")), ROOT / "CONTRIBUTING.md"]


def missing(text: str) -> set[str]:
    """Names of Python files in a text that no file of the repository ends with."""
    named = set(re.findall(r"(?<![\w/])[a-z][\w/]*\.py\b", text))
    return {name for name in named if not any(file.endswith(f"/{name}") for file in FILES)}


def test_every_python_file_that_is_named_exists() -> None:
    found = {str(page.relative_to(ROOT)): missing(page.read_text()) for page in PAGES}
    assert {page: names for page, names in found.items() if names} == {}


def test_a_file_that_is_gone_is_found() -> None:
    assert missing("see worker/batcher.py and worker/never_was.py") == {"worker/never_was.py"}
