"""In a checkout a module has one life under both of its names."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("first", ["second", "own"])
def test_module_of_a_checkout_is_the_same_under_both_names(first: str) -> None:
    own = (
        "import foldserve.models.errors, foldserve.service.artifact.names, foldserve.models.export.fold.plan"
    )
    second = "import models.errors, service.artifact.names, models.export.fold.plan"
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
{(second, own)[first == "own"]}
{(own, second)[first == "own"]}
from models.errors import ExportError
from models import export
import foldserve.models.export
assert ExportError is foldserve.models.errors.ExportError
assert models is foldserve.models and service is foldserve.service
assert export is foldserve.models.export
for name, module in list(sys.modules.items()):
    if name.partition(".")[0] in ("models", "service"):
        assert module is sys.modules["foldserve." + name], name
        assert module.__name__ == module.__spec__.name == "foldserve." + name, name
try:
    import models.no_such_module
except ModuleNotFoundError as error:
    assert error.name == "foldserve.models.no_such_module"
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd="/", timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
