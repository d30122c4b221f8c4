"""Whether there is an NVIDIA GPU in this machine, whether or not it can be used."""

from pathlib import Path
from typing import Final

_NVIDIA: Final = "0x10de"
_DISPLAY: Final = "0x03"
"""How the class of a display or 3D controller begins: NVIDIA makes network cards and switches too."""


def has_nvidia_gpu(root: Path = Path("/")) -> bool:
    """Whether one can be seen: by its device file, by that of WSL, or on the PCI bus, which containers show too."""
    devices = root / "dev"
    if any(devices.glob("nvidia[0-9]*")) or (devices / "dxg").exists():
        return True
    return any(
        _read(device / "vendor") == _NVIDIA and _read(device / "class").startswith(_DISPLAY)
        for device in (root / "sys/bus/pci/devices").glob("*")
    )


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
