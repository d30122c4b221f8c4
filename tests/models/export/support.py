"""Small hand-made networks and one-line helpers for the tests of the export."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foldserve.models.export.capture.capture import CapturedGraph, capture
from foldserve.models.export.network.example.example import read_example
from foldserve.models.export.network.module_copy import eval_copy
from foldserve.models.export.writers.onnx_writer import OnnxForm, load_onnx, save_onnx


class Fn(nn.Module):
    """A network whose forward is a function of the inputs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


class First(nn.Module):
    """The first output of a recurrent layer: (rows, length, features)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class ConvNorm(nn.Module):
    """A convolution and its norm, 3 → 4 channels; (rows, 3, 8, 8) in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


def pictures(rows: int = 2) -> Tensor:
    return torch.randn(rows, 3, 8, 8)


def captured(module: nn.Module, *inputs: Any, axes: dict[str, dict[int, str]] | None = None) -> CapturedGraph:
    """Capture module as an export does."""
    return capture(eval_copy(module), read_example(module, inputs, axes, None))


def onnx_session(written: OnnxForm) -> Any:
    """Open what to_onnx gives from a file, as a server does."""
    with tempfile.TemporaryDirectory() as folder:
        save_onnx(written.model, Path(folder, "model.onnx"))
        return load_onnx(Path(folder, "model.onnx"))


def batches(tensors: tuple[Tensor, ...], rows: int) -> tuple[Tensor, ...]:
    """Fresh floats of the same shapes with other rows; integers are repeated rows of the example."""
    return tuple(
        torch.randn(rows, *t.shape[1:]) if t.is_floating_point() else t[torch.arange(rows) % t.shape[0]]
        for t in tensors
    )


def largest_difference(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> float:
    assert [g.shape for g in got] == [w.shape for w in want]
    assert [g.dtype for g in got] == [w.dtype for w in want]
    return max(float((g.double() - w.double()).abs().max()) for g, w in zip(got, want, strict=True))
