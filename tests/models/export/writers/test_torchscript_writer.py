import io
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foldserve.models.export.process.suppress_output import suppress_output
from foldserve.models.export.writers.torchscript_writer import (
    load_torchscript,
    run_torchscript,
    save_torchscript,
    to_torchscript,
)
from tests.models.export.support import ConvNorm, First, Fn, batches, captured, largest_difference, pictures

CASES = {
    "convolution and norm": ConvNorm(),
    "bool and int outputs": Fn(lambda x: (x > 0, x.argmax(1))),
    "list of tensors in and out": Fn(lambda x: torch.split(torch.cat([x, x], 1), [1, 5], 1)),
    "arithmetic on sizes": Fn(
        lambda x: x.reshape(x.shape[0] * 3, -1).reshape(x.shape[0], 3, 8, 8) * x.shape[0]
    ),
    "true division of sizes": Fn(lambda x: x * (x.shape[0] / (x.numel() + 1))),
    "minimum of sizes": Fn(lambda x: x[:, : max(1, min(x.shape[0], 2))].sum(1)),
    "index with None": Fn(lambda x: x[:, :, torch.tensor([1, 3])]),
    "infinities and nan": Fn(
        lambda x: torch.where(x > 0, x, -math.inf).masked_fill(x < -1, math.nan).isnan()
    ),
    "casts": Fn(lambda x: x.to(torch.float64).to(torch.int32)),
    "creation on a device": Fn(lambda x: torch.zeros(x.shape[0], 2, device="cpu") + torch.arange(2)),
    "in-place items": Fn(lambda x: _with_items(x)),
    "attention": Fn(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)),
    "resize": Fn(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
    "pad by reflection": Fn(lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect")),
    "pools": Fn(lambda x: F.avg_pool2d(F.max_pool2d(x, 2), 2, ceil_mode=True, count_include_pad=False)),
    "sort and top": Fn(lambda x: (*x.sort(1), *x.topk(2, 1))),
    "string argument": Fn(lambda x: F.gelu(x, approximate="tanh")),
}


def _with_items(x):
    y = torch.zeros(x.shape[0], 3)
    y[:, 0] = x[:, 0, 0, 0]
    y[:, 1] += 1
    return y


def reloaded(module: torch.jit.ScriptModule, path: Path) -> torch.jit.ScriptModule:
    save_torchscript(module, path)
    return load_torchscript(path)


@pytest.mark.parametrize("case", CASES)
def test_the_file_answers_like_the_graph_for_every_number_of_rows(case, tmp_path):
    graph = captured(CASES[case], pictures())
    scripted = reloaded(to_torchscript(graph.graph_module), tmp_path / "model.pt")
    for rows in (2, 1, 5):
        inputs = batches(graph.example_inputs, rows)
        with torch.no_grad():
            want = graph.graph_module(*inputs)
        assert largest_difference(run_torchscript(scripted, inputs), want) == 0  # the same kernels


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_keep_their_length_dynamic(layer, tmp_path):
    module = First(layer(4, 5, num_layers=2, bidirectional=True, batch_first=True))
    graph = captured(module, torch.randn(2, 7, 4), axes={"x": {1: "length"}})
    scripted = reloaded(to_torchscript(graph.graph_module), tmp_path / "model.pt")
    for shape in ((1, 1, 4), (3, 11, 4)):
        x = torch.randn(shape)
        with torch.no_grad():
            want = module(x)
        # torch may take another kernel for weights that are no parameters: a few roundings of 6e-8.
        assert largest_difference(run_torchscript(scripted, (x,)), (want,)) < 1e-6


def test_one_output_is_a_tensor_and_several_are_a_tuple():
    one = to_torchscript(captured(ConvNorm(), pictures()).graph_module)
    assert isinstance(one(pictures()), torch.Tensor)
    two = to_torchscript(captured(Fn(lambda x: (x, x + 1)), pictures()).graph_module)
    assert isinstance(two(pictures()), tuple)


def test_the_same_network_gives_the_same_bytes(tmp_path):
    module = ConvNorm()
    for name in ("a", "b"):
        save_torchscript(to_torchscript(captured(module, pictures()).graph_module), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")
def test_weights_are_buffers_and_the_file_holds_no_path_of_this_machine():
    buffer = io.BytesIO()
    torch.jit.save(to_torchscript(captured(ConvNorm(), pictures()).graph_module), buffer)
    loaded = torch.jit.load(io.BytesIO(buffer.getvalue()))
    assert not list(loaded.parameters())
    assert {"conv_weight", "norm_running_mean"} <= {name for name, _ in loaded.named_buffers()}
    assert str(Path(__file__).parent).encode() not in buffer.getvalue()


class Positions(nn.Module):
    """Makes tensors in forward in every way there is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(x.shape[1], dtype=x.dtype)
        mask = torch.ones(x.shape[1], x.shape[1]).tril()
        added = torch.zeros(x.shape[0], 1, 1) + torch.full((1,), 0.5) + torch.linspace(0, 1, 4)
        moved = x.to("cpu") + torch.tensor([1.0, 2.0, 3.0, 4.0]) + torch.scalar_tensor(2.0)
        return mask @ (moved + added + torch.zeros_like(x) + x.new_ones(1)) + steps[:, None] + torch.eye(4)[0]


@pytest.mark.parametrize(
    "module",
    [
        Positions(),
        First(nn.LSTM(4, 5, batch_first=True)),
        First(nn.GRU(4, 5, batch_first=True, bidirectional=True)),
        First(nn.RNN(4, 5, batch_first=True)),
    ],
    ids=["positions", "lstm", "gru", "rnn"],
)
def test_the_file_runs_on_another_device_than_the_one_it_was_written_on(module, tmp_path):
    """`meta` stands for a GPU: an operator on it refuses a tensor on the CPU as one on a GPU does."""
    example = torch.randn(3, 6, 4)
    save_torchscript(to_torchscript(captured(module.eval(), example).graph_module), tmp_path / "model.pt")
    with suppress_output():
        scripted = torch.jit.load(str(tmp_path / "model.pt"), map_location="meta")
    (output,) = run_torchscript(scripted, (example.to("meta"),))
    assert output.device.type == "meta"
    assert output.shape[:2] == (3, 6)


@pytest.mark.parametrize("rounded", [math.ceil, math.floor, math.trunc])
def test_sizes_rounded_with_math_are_in_the_file(rounded: Callable[[float], int]) -> None:
    def to_a_multiple_of_four(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, rounded((x.shape[1] + 2) / 4) * 4))

    graph = captured(Fn(to_a_multiple_of_four), torch.randn(2, 9), axes={"x": {1: "steps"}})
    scripted = to_torchscript(graph.graph_module)
    for steps in (5, 6, 8, 23):
        x = torch.randn(2, steps)
        assert torch.equal(run_torchscript(scripted, (x,))[0], to_a_multiple_of_four(x))
