"""The folders of models/export/ are the steps of an export: each imports from those before it alone."""

import re
from pathlib import Path

import pytest

from foldserve.models import export
from tests.service.test_layers import imported

EXPORT = Path(__file__).parents[3] / "models" / "export"
PREFIX = "foldserve.models.export."
ORDER = (
    "process",
    "network",
    "capture",
    "fold",
    "precision",
    "writers",
    "verify",
    "artifact",
    "steps",
    "pipeline",
    "cli",
    "__main__",
)
"""As the package's docstring has them, and what calls them behind."""
FILES = sorted(path for path in EXPORT.rglob("*.py") if path != EXPORT / "__init__.py")


def place(module: str) -> int:
    return ORDER.index(module.removeprefix(PREFIX).split(".")[0])


def test_every_file_and_folder_has_its_place_and_the_package_names_the_folders_in_it() -> None:
    assert {path.relative_to(EXPORT).parts[0].removesuffix(".py") for path in FILES} == set(ORDER)
    folders = [name for name in ORDER if (EXPORT / name).is_dir()]
    assert re.findall(r"^ *(?:\d\. )?(\w+)/ ", str(export.__doc__), re.MULTILINE) == folders


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(EXPORT)))
def test_file_imports_only_from_the_steps_before_its_own(path: Path) -> None:
    own = place(".".join(path.relative_to(EXPORT).with_suffix("").parts))
    for name in imported(path):
        if name.startswith(PREFIX):
            assert place(name) <= own, f"{path} imports {name}, which comes behind it"


def test_an_import_of_a_later_step_is_found(tmp_path: Path) -> None:
    (tmp_path / "some.py").write_text(
        "def late():\n    from foldserve.models.export.verify.parity import Parity\n"
    )
    (name,) = imported(tmp_path / "some.py")
    assert place(name) > place(f"{PREFIX}writers.onnx_writer")


def test_no_folder_has_more_than_a_dozen_entries() -> None:
    entries = [path for path in EXPORT.rglob("[!_]*") if path.suffix == ".py" or path.is_dir()]
    folders = [path.parent for path in entries]
    assert not {folder for folder in folders if folders.count(folder) > 12}
