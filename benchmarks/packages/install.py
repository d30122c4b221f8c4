"""Installs the pinned packages into a folder of their own, which is searched after this environment.

Nothing is installed into the environment itself, and each package comes without its dependencies: one of them
is torch, and another build of torch would take the place of the one that is measured. All that the networks need
beyond foldserve's own environment is therefore listed here by name.
"""

import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

FOLDER = Path(__file__).parents[2] / "build" / "published"
PINNED = (
    "timm==1.0.31",
    "torchvision==0.28.0",
    "segmentation-models-pytorch==0.6.0",
    "transformers==5.24.0",
    "open_clip_torch==3.3.0",
    "ultralytics==8.4.190",
    "demucs==4.1.0",
    "torch-geometric==2.8.1",
    # what those import
    "einops==0.8.2",
    "ftfy==6.3.1",
    "httpcore2==2.16.2",
    "httpx2==2.16.2",
    "huggingface-hub==2.4.0",
    "opencv-python-headless==5.0.0.93",
    "polars==2.1.0",
    "psutil==7.2.2",
    "typer==0.29.2",
    "truststore==0.10.5",
    "ultralytics-thop==2.2.3",
    "julius==0.2.8",
    "matplotlib==3.11.2",
    "cycler==0.12.1",
    "contourpy==1.3.3",
    "kiwisolver==1.5.1",
    "pyparsing==3.3.3",
    "python-dateutil==4.0.0",
    "six==1.17.0",
    "fonttools==4.68.0",
    "regex==2026.11.19",
    "tokenizers==0.23.3",
    "tqdm==4.70.1",
    "wcwidth==0.9.4",
    "xxhash==4.1.0",
)


def install() -> Path:
    """The folder of the pinned packages, filled when it is not there or was filled by another list."""
    packages, stamp = FOLDER / "packages", FOLDER / "installed.txt"
    wanted = "\n".join(PINNED)
    if not stamp.exists() or stamp.read_text() != wanted:
        stamp.unlink(missing_ok=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
        subprocess.run([*pip, "--no-deps", "--upgrade", "--target", str(packages), *PINNED], check=True)
        stamp.write_text(wanted)
    return packages


def use(packages: Path) -> None:
    """Makes the packages importable in this process, and no connection possible from here on."""
    sys.path.append(str(packages))
    importlib.invalidate_caches()
    settings = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "YOLO_OFFLINE": "True",
        "YOLO_AUTOINSTALL": "False",
    }
    folders = {"YOLO_CONFIG_DIR": str(FOLDER / "settings"), "MPLCONFIGDIR": str(FOLDER / "settings")}
    os.environ.update(settings | folders)
    socket.socket.connect = _refuse_connection  # type: ignore[method-assign]


def _refuse_connection(self: socket.socket, address: Any) -> NoReturn:
    raise OSError(f"nothing is downloaded here: a network wanted to connect to {address}")
