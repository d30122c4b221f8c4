"""An ordinary wheel of this checkout, built aside, and laid out as pip would."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def install_wheel(folder: Path, site_packages: Path) -> list[str]:
    """Build in folder, which is empty, unpack into site_packages; return the names of what is in the wheel."""
    # Not by pip, which builds in the checkout itself, where another build may be under way.
    aside = ["egg_info", "--egg-base", folder, "build", "--build-base", folder / "build"]
    wheel = ["bdist_wheel", "--dist-dir", folder, "--bdist-dir", folder / "unpacked"]
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", *map(str, aside), *map(str, wheel)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("foldserve-*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(site_packages)
        return archive.namelist()
