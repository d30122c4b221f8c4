"""Networks with every form of inputs and answers, exported whole: both files against the eager network."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foldserve.models.export import export_model
from foldserve.models.export.cli.command import main
from foldserve.models.export.precision.convert import convert
from foldserve.models.export.precision.precision import PRECISIONS
from foldserve.models.export.writers.onnx_writer import load_onnx, run_onnx, to_onnx
from foldserve.models.export.writers.torchscript_writer import load_torchscript, run_torchscript
from tests.models.export.support import captured, largest_difference, onnx_session
from tests.models.support import randomise_norms

# Both files compute in float32, as the eager network here: some roundings of 6e-8 in layers of ten numbers each.
TOLERANCE = 1e-5


@dataclasses.dataclass
class Answer:
    logits: Any
    loss: Any = None


class Described(nn.Module):
    """Inputs by name alone, an optional one between them, a setting; a dataclass as the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, *, x: Tensor, mask: Tensor | None = None, y: Tensor, scale: float = 1.0) -> Answer:
        z = self.norm(self.linear(x)) * scale + y
        return Answer(z if mask is None else z * mask, z.square().mean())


class Recogniser(nn.Module):
    """(rows, 1, 8, width) in, (steps, rows, classes) out, as torch.nn.CTCLoss takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, (8, 3), padding=(0, 1)), nn.BatchNorm2d(6)
        self.recurrent, self.output = nn.LSTM(6, 5, bidirectional=True), nn.Linear(10, 7)

    def forward(self, picture: Tensor) -> dict[str, Any]:
        steps = torch.relu(self.norm(self.conv(picture))).squeeze(2).permute(2, 0, 1)
        steps, _ = self.recurrent(steps)
        return {"logits": self.output(steps).log_softmax(-1), "hidden": None}


def answers(result: Any, inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What model.pt and model.onnx answer."""
    return (
        run_torchscript(load_torchscript(result.torchscript_path), inputs),
        run_onnx(load_onnx(result.onnx_path), inputs),
    )


def assert_answers(result: Any, inputs: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for got in answers(result, inputs):
        assert [tuple(t.shape) for t in got] == [tuple(t.shape) for t in wanted]
        for one, other in zip(got, wanted, strict=True):
            assert float((one - other).abs().max()) <= TOLERANCE * max(1.0, float(other.abs().max()))


def test_inputs_by_name_with_one_left_out_and_a_setting_are_served_as_the_network_answers(tmp_path):
    network = randomise_norms(Described()).eval()
    x, y = torch.randn(2, 4), torch.randn(2, 3)
    example = {"x": x.numpy(), "mask": None, "y": y, "scale": 2.0}
    result = export_model(network, example, tmp_path, name="described")
    assert result.report["fold"]["folded"] == 1
    assert [spec["name"] for spec in result.report["inputs"]] == ["x", "y"]
    assert result.report["fixed_inputs"] == [{"name": "mask", "value": None}, {"name": "scale", "value": 2.0}]
    assert [spec["name"] for spec in result.report["outputs"]] == ["logits"]
    assert [one["name"] for one in result.report["left_out"]] == ["loss"]
    x, y = torch.randn(5, 4), torch.randn(5, 3)
    with torch.no_grad():
        assert_answers(result, (x, y), (network(x=x, y=y, scale=2.0).logits,))


def test_a_recogniser_that_answers_time_first_is_served_rows_first(tmp_path):
    network = randomise_norms(Recogniser()).eval()
    axes = {"picture": {3: "width"}}
    result = export_model(network, (torch.randn(2, 1, 8, 12),), tmp_path, name="ctc", dynamic_axes=axes)
    assert result.report["outputs"] == [
        {"name": "logits", "datatype": "FP32", "shape": [-1, -1, 7], "rows_dim": 1}
    ]
    assert result.report["fold"]["folded"] == 1
    for rows, width in ((1, 12), (3, 20)):
        picture = torch.randn(rows, 1, 8, width)
        with torch.no_grad():
            assert_answers(result, (picture,), (network(picture)["logits"].transpose(0, 1),))
    with np.load(result.reference_path) as reference:
        assert reference["output.logits"].shape == (7, 12, 7)


def test_a_recurrent_layer_with_the_steps_in_dim_0_and_its_state_as_an_input_is_served_rows_first(tmp_path):
    network = nn.LSTM(4, 5, 2).eval()
    example = (torch.randn(6, 2, 4), (torch.randn(2, 2, 5), torch.randn(2, 2, 5)))
    axes = {"input": {0: "steps", 1: "rows"}, "hx_0": {1: "rows"}, "hx_1": {1: "rows"}}
    result = export_model(network, example, tmp_path, name="lstm", dynamic_axes=axes)
    assert [(spec["name"], spec["shape"]) for spec in result.report["inputs"]] == [
        ("input", [-1, -1, 4]),
        ("hx_0", [-1, 2, 5]),
        ("hx_1", [-1, 2, 5]),
    ]
    assert [spec["rows_dim"] for spec in (*result.report["inputs"], *result.report["outputs"])] == [1] * 6
    for rows, steps in ((1, 3), (4, 9)):
        x, h, c = torch.randn(steps, rows, 4), torch.randn(2, rows, 5), torch.randn(2, rows, 5)
        with torch.no_grad():
            y, (h_n, c_n) = network(x, (h, c))
        served = tuple(t.transpose(0, 1) for t in (x, h, c))
        assert_answers(result, served, tuple(t.transpose(0, 1) for t in (y, h_n, c_n)))


class Step(nn.Module):
    """A recurrent layer whose state comes in with the rows in dim 0, as what is served must."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, *state: Tensor) -> Any:
        turned = tuple(s.transpose(0, 1) for s in state)
        return self.layer(x, turned[0] if len(turned) == 1 else turned)


@pytest.mark.parametrize(("kind", "states"), [(nn.LSTM, 2), (nn.GRU, 1), (nn.RNN, 1)])
def test_a_state_with_its_rows_in_dim_0_is_an_input_beside_a_dynamic_length(kind, states):
    network = Step(kind(4, 5, 2, batch_first=True)).eval()
    example = (torch.randn(2, 6, 4), *(torch.randn(2, 2, 5) for _ in range(states)))
    session = onnx_session(to_onnx(captured(network, *example, axes={"x": {1: "steps"}})))
    x, state = torch.randn(3, 9, 4), tuple(torch.randn(3, 2, 5) for _ in range(states))
    with torch.no_grad():
        y, last = network(x, *state)
    last = last if isinstance(last, tuple) else (last,)
    wanted = (y, *(s.transpose(0, 1) for s in last))
    assert largest_difference(run_onnx(session, (x, *state)), wanted) < TOLERANCE


def test_in_16_bits_rows_come_to_dim_0_too():
    network = randomise_norms(Recogniser()).eval()
    graph = captured(network, torch.randn(2, 1, 8, 12))
    picture = torch.randn(3, 1, 8, 12)
    lower = convert(graph, PRECISIONS["fp16"], [(picture,)]).captured.graph_module
    with torch.no_grad():
        got, wanted = lower(picture)[0], network(picture)["logits"].transpose(0, 1)
    assert got.shape == wanted.shape
    assert float((got - wanted).abs().max()) < 0.05  # some dozens of roundings to 11 bits of numbers up to 3


@pytest.fixture
def user_net(tmp_path, monkeypatch):
    (tmp_path / "user_net.py").write_text(
        "import torch\n"
        "from torch import nn\n\n\n"
        "class Net(nn.Module):\n"
        "    def forward(self, x, mask=None, *, y):\n"
        "        z = x + 2 * y if mask is None else x * mask\n"
        "        return z.transpose(0, 1), z.mean(), torch.tensor(2.5), None\n\n\n"
        "def by_name():\n"
        "    x = torch.randn(2, 4)\n"
        "    return Net(), {'x': x, 'mask': None, 'y': x}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_the_command_takes_inputs_by_name_and_tells_what_is_left_out_and_moved(user_net, capsys):
    arguments = ["user_net:Net", "--example", "y:FP32:-1x4", "--example", "x:FP32:-1x4"]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "inputs         x FP32 -1x4, y FP32 -1x4" in told
    session = load_onnx(Path("repository/Net/1/model.onnx"))
    x, y = np.ones((1, 4), np.float32), np.zeros((1, 4), np.float32)
    assert session.run(None, {"x": x, "y": y})[0].tolist() == x.tolist()
    assert "left out: y1: it is one number for the whole batch" in told
    assert "left out: y2 = 2.5: it is the same for every request" in told
    assert "left out: y3: it is None, no tensor" in told
    assert "transposed: y0 has its rows in dim 1 in the network, in dim 0 when served" in told


def test_a_factory_may_give_its_example_by_name(user_net, capsys):
    assert main(["user_net:by_name"]) == 0
    assert "fixed: mask = None" in capsys.readouterr().out


def test_the_command_takes_inputs_whose_rows_are_in_another_dim(tmp_path, capsys):
    arguments = [
        "torch.nn:Identity",
        "--repository",
        str(tmp_path),
        "--name",
        "same",
        "--example",
        "x:FP32:-1xrowsx4",
    ]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "inputs         x FP32 -1x-1x4" in told
    assert "transposed: x has its rows in dim 1 in the network" in told
