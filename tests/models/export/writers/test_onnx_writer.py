from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from foldserve.models.errors import FormNotWritten, NotCapturable
from foldserve.models.export.writers.onnx_writer import (
    DEFAULT_OPSET,
    load_onnx,
    opset_of,
    run_onnx,
    save_onnx,
    to_onnx,
)
from tests.models.export.support import (
    ConvNorm,
    First,
    captured,
    largest_difference,
    onnx_session,
    pictures,
)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    torch.manual_seed(0)
    return to_onnx(captured(ConvNorm(), pictures())).model


def test_inputs_outputs_and_the_row_axis_have_their_names(model):
    def shape(value):
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    assert [(i.name, shape(i)) for i in model.graph.input] == [("x", ["rows", 3, 8, 8])]
    assert [(o.name, shape(o)) for o in model.graph.output] == [("y", ["rows", 4, 6, 6])]


def test_the_file_says_nothing_about_the_machine_that_wrote_it(model):
    assert str(Path(__file__).parent).encode() not in model.SerializeToString()
    assert str(Path(torch.__file__).parent).encode() not in model.SerializeToString()
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)


def test_weights_are_inside_the_file_and_named_after_their_place(model, tmp_path):
    save_onnx(model, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert any(tensor.name.startswith("conv.weight") for tensor in model.graph.initializer)
    x = pictures(5)
    assert run_onnx(load_onnx(tmp_path / "model.onnx"), (x,))[0].shape == (5, 4, 6, 6)


def test_the_default_opset_is_written_and_another_one_when_asked(model):
    assert opset_of(model) == DEFAULT_OPSET
    assert opset_of(to_onnx(captured(ConvNorm(), pictures()), 20).model) == 20
    with pytest.raises(NotCapturable, match=r"opset is 11; torch.onnx writes 18 or newer"):
        to_onnx(captured(ConvNorm(), pictures()), 11)


def test_the_same_network_gives_the_same_bytes(tmp_path):
    network = ConvNorm()
    for name in ("a", "b"):
        save_onnx(to_onnx(captured(network, pictures())).model, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(4, 5, 2, bidirectional=True, batch_first=True),
        nn.GRU(4, 5, batch_first=True),
        nn.RNN(4, 5, 2, bidirectional=True, batch_first=True),
        nn.RNN(4, 5, nonlinearity="relu", bias=False, batch_first=True),
    ],
    ids=["lstm", "gru", "rnn", "rnn without bias"],
)
def test_recurrent_layers_are_one_node_each_with_a_dynamic_length(layer):
    network = First(layer)
    written = to_onnx(captured(network, torch.randn(2, 7, 4), axes={"x": {1: "length"}}))
    assert [n.op_type for n in written.model.graph.node if n.op_type in {"LSTM", "GRU", "RNN", "Loop"}] == (
        [type(layer).__name__] * layer.num_layers
    )
    session = onnx_session(written)
    for shape in ((1, 1, 4), (3, 11, 4)):
        x = torch.randn(shape)
        with torch.no_grad():
            want = network(x)
        # Values are in (-1, 1) or small; tens of float32 roundings of 6e-8 along the length.
        assert largest_difference(run_onnx(session, (x,)), (want,)) < 5e-6


def test_an_operator_without_a_translation_is_refused_by_the_users_line():
    class Inverse(nn.Module):
        def forward(self, x):
            return torch.linalg.inv(x) + 1  # torch.onnx asks for linalg_inv_ex, which nobody wrote

    with pytest.raises(
        FormNotWritten, match=r"at test_onnx_writer.py, line \d+, in forward: `.*inv\(x\).*: Disp"
    ):
        to_onnx(captured(Inverse(), torch.eye(4).repeat(2, 1, 1)))


def test_the_exporter_writes_nothing_to_the_terminal(capfd):
    to_onnx(captured(ConvNorm(), pictures()))
    assert capfd.readouterr() == ("", "")


def test_inputs_and_outputs_may_be_called_as_weights_and_operators_are():
    class Namesakes(nn.Module):
        def __init__(self):
            super().__init__()
            self.x, self.y = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([3.0]))
            self.layer = nn.Linear(1, 1)

        def forward(self, x, mul):
            return {"y": x * self.x + self.y, "layer.weight": self.layer(mul), "add": x * mul}

    network = Namesakes().eval()
    inputs = (torch.ones(2, 1), torch.randn(2, 1))
    graph = captured(network, *inputs)
    session = onnx_session(to_onnx(graph))
    assert [i.name for i in session.get_inputs()] == ["x", "mul"]
    assert [o.name for o in session.get_outputs()] == ["y", "layer.weight", "add"]
    with torch.no_grad():
        assert largest_difference(run_onnx(session, inputs), tuple(network(*inputs).values())) < 1e-6
