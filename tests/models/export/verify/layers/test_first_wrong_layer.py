"""A file is proved layer by layer: what hardly reaches an output is caught, what a runtime rounds is not."""

import functools
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from foldserve.models.errors import ParityFailed
from foldserve.models.export import export_model, steps
from foldserve.models.export.precision.convert import convert
from foldserve.models.export.precision.precision import PRECISIONS
from foldserve.models.export.verify import check_files
from foldserve.models.export.verify.layers import first_wrong_layer as under_test
from foldserve.models.export.verify.layers.exactness import first_conversion_fault
from foldserve.models.export.verify.layers.first_wrong_layer import first_wrong_layer
from foldserve.models.export.verify.layers.onnx_values import OnnxValues
from foldserve.models.export.verify.layers.torchscript_values import TorchScriptValues
from foldserve.models.export.writers.onnx_writer import save_onnx, to_onnx
from foldserve.models.export.writers.torchscript_writer import (
    load_torchscript,
    save_torchscript,
    to_torchscript,
)
from tests.models.export.support import Fn, captured, pictures


class Deep(nn.Module):
    """A branch that reaches the answer with a millionth of its size, and two convolutions that reach it whole."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))

    def forward(self, x):
        y = torch.relu(self.first(x))
        return self.last(y + 1e-6 * torch.tanh(self.branch(y)))


def spoiled_onnx(captured_graph, opset=None, right=to_onnx):
    written = right(captured_graph, opset)
    weight = next(w for w in written.model.graph.initializer if w.name.startswith("branch_2_weight"))
    value = (numpy_helper.to_array(weight) * 1.02).astype(np.float32)
    weight.CopyFrom(numpy_helper.from_array(value, weight.name))
    return written


def spoiled_torchscript(graph_module, right=to_torchscript):
    scripted = right(graph_module)
    scripted.branch_2_weight = scripted.branch_2_weight * 1.02  # another tensor: the graph keeps its own
    return scripted


SPOILED = {
    "torchscript": ("to_torchscript", spoiled_torchscript, "the TorchScript file"),
    "onnx": ("to_onnx", spoiled_onnx, "the ONNX file"),
}


@pytest.mark.parametrize("file", SPOILED)
def test_a_wrong_weight_that_no_output_shows_is_caught_at_its_layer(file, tmp_path, monkeypatch):
    function, spoiled, label = SPOILED[file]
    monkeypatch.setattr(steps, function, spoiled)
    monkeypatch.setattr(check_files, "check_weights", lambda *args: None)  # it would say so first
    with pytest.raises(
        ParityFailed, match=rf"{label} computes a layer differently .*: branch.2 \(aten.conv2d\)"
    ):
        export_model(Deep(), (pictures(),), tmp_path, name="m")
    assert list(tmp_path.iterdir()) == []


def values_of(graph, file, folder):
    if file == "torchscript":
        save_torchscript(to_torchscript(graph.graph_module), folder / "model.pt")
        return TorchScriptValues(load_torchscript(folder / "model.pt")), 1e-10
    written = to_onnx(graph)
    save_onnx(written.model, folder / "model.onnx")
    return OnnxValues(folder / "model.onnx", written.values, graph.output_names), 1e-4


@pytest.mark.parametrize("file", SPOILED)
def test_values_that_are_asked_for_in_parts_are_the_same(file, tmp_path, monkeypatch):
    """A part of its own for each value, with skip connections across parts: the file is begun again from known ones."""
    monkeypatch.setattr(under_test, "_LEAST_BYTES", 0)
    graph = captured(Deep(), pictures(8))
    values, tolerance = values_of(graph, file, tmp_path)
    parts: list[Any] = []
    monkeypatch.setattr(values, "fetch", functools.partial(noted, parts, values.fetch))
    assert (
        first_wrong_layer(graph.graph_module, (pictures(8),), values, tolerance, exact=file != "onnx") is None
    )
    assert len(parts) > 3
    assert {name for part in parts for name in part} == set(values.nodes)
    assert [path.name for path in tmp_path.iterdir()] == [{"torchscript": "model.pt"}.get(file, "model.onnx")]


def noted(parts, fetch, nodes, *args):
    parts.append(nodes)
    return fetch(nodes, *args)


def test_every_value_of_the_graph_is_found_in_both_files(tmp_path):
    graph = captured(Deep(), pictures())
    calls = {node.name for node in graph.graph_module.graph.nodes if node.op == "call_function"}
    for file in SPOILED:
        assert set(values_of(graph, file, tmp_path)[0].nodes) == calls


def lost_digits(x):
    return (x + 1e4) - 1e4


def almost_zero(x):
    return x + torch.sigmoid(x - 16)


def ties(x):
    positive = torch.relu(x).flatten(1)
    return positive.gather(1, positive.argsort(1))


@pytest.mark.parametrize("function", [lost_digits, almost_zero, ties])
def test_what_float32_itself_loses_at_a_layer_is_let_off(function, tmp_path):
    assert export_model(Fn(function), (pictures(),), tmp_path, name="m").report["parity"]["onnx"]


class Namesakes(nn.Module):
    """Inputs and outputs that are called as operators in the file."""

    def forward(self, x, mul):
        return {"add": x * mul, "mul_1": (x + 1) * mul + 2}


def test_a_value_is_not_taken_for_an_input_or_output_of_its_name(tmp_path):
    inputs = (torch.randn(2, 3), torch.randn(2, 3))
    assert export_model(Namesakes(), inputs, tmp_path, name="m").onnx_path is not None


@pytest.mark.parametrize("spoil", ["weight", "operator"])
def test_a_graph_in_16_bits_is_held_to_the_one_in_float32(spoil):
    graph = captured(Deep(), pictures())
    converted = convert(graph, PRECISIONS["fp16"], [(pictures(),)])
    lower = converted.captured.graph_module
    assert first_conversion_fault(graph.graph_module, lower, converted.rounded) is None
    if spoil == "weight":
        with torch.no_grad():
            lower.branch_2_weight_fp16[0, 0] *= 1.01
        wanted = "branch_2_weight"
    else:
        node = next(n for n in lower.graph.nodes if n.target is torch.ops.aten.relu.default)
        node.target = torch.ops.aten.neg.default
        wanted = "relu"
    fault = first_conversion_fault(graph.graph_module, lower, converted.rounded)
    assert fault is not None
    assert fault.name.endswith(wanted)


def test_the_file_that_was_written_is_not_touched(tmp_path):
    graph = captured(Deep(), pictures())
    values, tolerance = values_of(graph, "onnx", tmp_path)
    before = (tmp_path / "model.onnx").read_bytes()
    assert first_wrong_layer(graph.graph_module, (pictures(),), values, tolerance, exact=False) is None
    assert (tmp_path / "model.onnx").read_bytes() == before
    assert [value.name for value in onnx.load(tmp_path / "model.onnx").graph.output] == ["y"]
