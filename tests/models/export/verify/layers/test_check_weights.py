"""A weight that no input of the proof shows is compared itself, in both files."""

from pathlib import Path
from typing import Any
from unittest import mock

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from foldserve.models.errors import ParityFailed
from foldserve.models.export import export_model, steps
from foldserve.models.export.writers.torchscript_writer import load_torchscript, save_torchscript


class Dead(nn.Module):
    """Its second layer reads four values of which the first two are zero, whatever comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 1)
        self.second = nn.Conv2d(4, 3, 1)
        with torch.no_grad():
            nn.init.constant_(self.first.bias, -100.0)
            assert self.first.bias is not None
            self.first.bias[2:] = 0.5

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x)))
        return out


def made_wrong(write: Any, spoil: Any) -> Any:
    """A writer whose file is changed before it is verified."""

    def wrong(*args: Any, **kwargs: Any) -> Any:
        written = write(*args, **kwargs)
        spoil(written if isinstance(written, Path) else written.path)
        return written

    return wrong


def zero_in_torchscript(path: Path) -> None:
    scripted = load_torchscript(path)
    (weight,) = [value for name, value in scripted.named_buffers() if name.startswith("second_weight")]
    with torch.no_grad():
        weight[:, :2] = 0.0
    save_torchscript(scripted, path)


def zero_in_onnx(path: Path) -> None:
    model = onnx.load(path)
    (weight,) = [one for one in model.graph.initializer if one.name.startswith("second.weight")]
    numbers = numpy_helper.to_array(weight).copy()
    numbers[:, :2] = 0.0
    weight.CopyFrom(numpy_helper.from_array(numbers, weight.name))
    onnx.save(model, path)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("step", "spoil", "label"),
    [
        ("write_torchscript", zero_in_torchscript, "TorchScript file"),
        ("write_onnx", zero_in_onnx, "ONNX file"),
    ],
)
def test_a_wrong_weight_behind_a_dead_channel_is_found(
    step: str, spoil: Any, label: str, precision: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    example = (torch.randn(2, 1, 3, 3),)
    export_model(Dead(), example, tmp_path, name="right", precision=precision)
    with (
        mock.patch.object(steps, step, made_wrong(getattr(steps, step), spoil)),
        pytest.raises(ParityFailed, match=f"{label} holds another weight than the network: .*second"),
    ):
        export_model(Dead(), example, tmp_path, name="wrong", precision=precision)
    assert not (tmp_path / "wrong").exists()
