"""What is installed: one package, with its types."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.wheel import ROOT, install_wheel

USE = """
from foldserve import export_model
export: int = export_model
"""
# The project's environment has foldserve alone: whose types they are is asked, not those of what it imports.
MYPY = """
[mypy]
[mypy-torch.*,numpy.*,onnx.*,onnxruntime.*,onnxscript.*,safetensors.*]
ignore_missing_imports = True
follow_imports = skip
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A fresh environment with the wheel in it, and what the wheel holds."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    return environment, install_wheel(tmp_path_factory.mktemp("wheel"), packages)


def test_installed_foldserve_puts_its_own_name_and_no_other_on_the_import_path(
    installed: tuple[Path, list[str]],
) -> None:
    _, names = installed
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"foldserve"}
    sources = {
        f"foldserve/{path.relative_to(ROOT)}"
        for part in ("service", "models")
        for path in _sources(ROOT / part)
    }
    assert sources <= set(names)
    assert {"foldserve/py.typed", "foldserve/models/digits.safetensors"} <= set(names)


def _sources(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.py") if "__pycache__" not in path.parts]


def test_mypy_knows_the_types_of_an_installed_foldserve(
    installed: tuple[Path, list[str]], tmp_path: Path
) -> None:
    environment, _ = installed
    (tmp_path / "use.py").write_text(USE)
    (tmp_path / "mypy.ini").write_text(MYPY)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-executable", str(environment / "bin" / "python"), "use.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("use.py:3: error")]
    assert "ExportResult" in line, done.stdout
