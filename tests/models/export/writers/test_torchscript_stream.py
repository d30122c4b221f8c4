"""The TorchScript file as a stream: the bytes of torch.jit.save, errors of the disk as errors, no copy in memory."""

import errno
import io
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foldserve.models.export.process.suppress_output import suppress_output
from foldserve.models.export.writers.torchscript_stream import write_torchscript

WEIGHTS_BYTES = 64 * 2**20


class Product(torch.nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(size, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def product(size: int) -> torch.jit.ScriptModule:
    with suppress_output():
        return torch.jit.script(Product(size))


def test_the_file_has_the_bytes_that_torch_gives_a_file_object(tmp_path):
    scripted, wanted = product(700), io.BytesIO()
    with suppress_output():
        torch.jit.save(scripted, wanted)
        write_torchscript(scripted, tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_bytes() == wanted.getvalue()


def test_a_disk_that_takes_no_more_is_an_error_and_not_the_end_of_the_process(tmp_path):
    scripted = product(700)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))  # half of the weights
    try:
        with suppress_output(), pytest.raises(OSError, match=r"model\.pt") as raised:
            write_torchscript(scripted, tmp_path / "model.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.errno == errno.EFBIG


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        write_torchscript(product(3), tmp_path / "missing" / "model.pt")


def test_an_error_of_torch_comes_out_as_it_is(tmp_path):
    with suppress_output(), pytest.raises(RuntimeError, match="Could not export Python function call"):
        write_torchscript(torch.jit.script(HoldsPython()), tmp_path / "model.pt")


class HoldsPython(torch.nn.Module):
    @torch.jit.ignore
    def own(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.own(x)


def test_writing_needs_no_memory_for_the_weights(tmp_path):
    """In a process of its own: VmHWM (proc(5)) is of all that a process ever had."""
    told = subprocess.run(
        [sys.executable, __file__, str(tmp_path / "model.pt")], capture_output=True, text=True, check=True
    )
    assert (tmp_path / "model.pt").stat().st_size > WEIGHTS_BYTES
    # torch's buffers, and the pages that its code is in: far from the weights.
    assert int(told.stdout) < WEIGHTS_BYTES / 4


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    write_torchscript(product(3), Path(sys.argv[1]))  # what it imports
    large = product(round((WEIGHTS_BYTES / 4) ** 0.5))
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_bytes()
    write_torchscript(large, Path(sys.argv[1]))
    print(_peak_bytes() - before)
