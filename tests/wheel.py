"""A wheel of this checkout, built aside, and laid out as pip would."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def build_wheel(
    folder: Path, command: str = "bdist_wheel", **environ: str
) -> subprocess.CompletedProcess[str]:
    """Build into folder, which is empty, with these in the environment, as `pip wheel .` does.

    command: "editable_wheel" is the one of `pip install --editable .`.
    """
    # Not by pip, which writes into the checkout's egg-info, where another build may do the same.
    aside = ["egg_info", "--egg-base", folder, command, "--dist-dir", folder]
    unset = {"COMPILE_FOLDSERVE", "CC"}
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *map(str, aside)],
        cwd=ROOT,
        env={**{name: value for name, value in os.environ.items() if name not in unset}, **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def wheel_in(folder: Path) -> Path:
    """The one that was built there."""
    (file,) = folder.glob("foldserve-*.whl")
    return file


def install_wheel(folder: Path, site_packages: Path) -> list[str]:
    """Build one that is not compiled, unpack it into site_packages; return the names of what is in it."""
    done = build_wheel(folder, COMPILE_FOLDSERVE="0")
    assert done.returncode == 0, done.stderr
    return unpack(wheel_in(folder), site_packages)


def unpack(wheel: Path, site_packages: Path) -> list[str]:
    """Returns the names of what is in it."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site_packages)
        return archive.namelist()
