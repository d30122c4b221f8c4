"""Whether a machine has an NVIDIA GPU, in made-up trees."""

from pathlib import Path

import pytest

from foldserve.service.host.gpus import has_nvidia_gpu


def pci(root: Path, vendor: str, kind: str) -> None:
    device = root / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")


@pytest.mark.parametrize(
    ("vendor", "kind", "there"),
    [
        ("0x10de", "0x030200", True),
        ("0x10de", "0x030000", True),
        ("0x10de", "0x068000", False),
        ("0x1af4", "0x030000", False),
    ],
    ids=["3D controller", "display", "switch", "another maker's"],
)
def test_card_on_the_bus_counts_without_a_driver(tmp_path: Path, vendor: str, kind: str, there: bool) -> None:
    pci(tmp_path, vendor, kind)
    assert has_nvidia_gpu(tmp_path) is there


@pytest.mark.parametrize(
    ("file", "there"), [("nvidia0", True), ("nvidia12", True), ("dxg", True), ("nvidiactl", False)]
)
def test_device_file_counts(tmp_path: Path, file: str, there: bool) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / file).touch()
    assert has_nvidia_gpu(tmp_path) is there


def test_machine_that_shows_nothing_has_none(tmp_path: Path) -> None:
    assert not has_nvidia_gpu(tmp_path)
