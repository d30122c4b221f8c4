"""What is installed, as the README says: one package, with its types and its command."""

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.wheel import ROOT

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


# What is no part of the project, or built from it.
NOT_OURS = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", ".*_cache", "__pycache__")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """An environment in which the README's line was run, without downloads, and what foldserve put there.

    What foldserve needs is found where the tests have it: pip compares that with pyproject.toml and constraints.txt.
    """
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    # pip builds in the folder itself, where another build may be under way.
    clone = shutil.copytree(
        ROOT, tmp_path_factory.mktemp("clone") / "foldserve", symlinks=True, ignore=NOT_OURS
    )
    (line,) = re.findall(r"^pip (install .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    python = environment / "bin" / "python"
    # The 0 switches isolation off: pip reads it as --no-build-isolation has it, turned round.
    done = subprocess.run(
        f"{sys.executable} -m pip --python {python} {line}",
        shell=True,
        cwd=clone,
        env={
            **os.environ,
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_NO_COMPILE": "1",
            "COMPILE_FOLDSERVE": "0",  # which takes a minute; `make compiled` has what comes of it
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (record,) = packages.glob("foldserve-*.dist-info/RECORD")
    return environment, [line.partition(",")[0] for line in record.read_text().splitlines()]


def test_installed_foldserve_puts_its_own_name_and_no_other_on_the_import_path(
    installed: tuple[Path, list[str]],
) -> None:
    _, names = installed
    assert {name.partition("/")[0].partition("-")[0] for name in names if not name.startswith("..")} == {
        "foldserve"
    }
    sources = {
        f"foldserve/{path.relative_to(ROOT)}"
        for part in ("service", "models")
        for path in _sources(ROOT / part)
    }
    assert sources <= set(names)
    assert {"foldserve/py.typed", "foldserve/models/digits.safetensors"} <= set(names)


def test_command_is_installed(installed: tuple[Path, list[str]]) -> None:
    environment, names = installed
    assert [name for name in names if name.startswith("..")] == ["../../../bin/foldserve"]
    command = [environment / "bin" / "foldserve", "export", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("usage: foldserve export")


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
