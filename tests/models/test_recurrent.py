"""models/recurrent.py against torch's own recurrent layers."""

import pytest
import torch
import torch._decomp.decompositions as decompositions
from torch import nn
from torch.export import Dim, export

from foldserve.models.recurrent import symbolic_length


class LastStep(nn.Module):
    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps, _ = self.layer(x)
        return steps[:, -1]


LAYERS = {
    "lstm": lambda: nn.LSTM(3, 4, num_layers=2, batch_first=True),
    "lstm-bidirectional": lambda: nn.LSTM(3, 4, batch_first=True, bidirectional=True),
    "lstm-no-bias": lambda: nn.LSTM(3, 4, batch_first=True, bias=False),
    "lstm-projected": lambda: nn.LSTM(3, 4, batch_first=True, proj_size=2),
    "gru": lambda: nn.GRU(3, 4, num_layers=2, batch_first=True),
    "rnn-tanh": lambda: nn.RNN(3, 4, batch_first=True),
    "rnn-relu": lambda: nn.RNN(3, 4, batch_first=True, nonlinearity="relu"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_captured_recurrent_layer_answers_other_rows_and_lengths_as_eager_does(layer, dtype):
    torch.manual_seed(0)
    network = LastStep(LAYERS[layer]()).eval().to(dtype)
    dims = {"x": {0: Dim("rows"), 1: Dim("length")}}
    with symbolic_length():
        program = export(network, (torch.randn(2, 5, 3, dtype=dtype),), dynamic_shapes=dims)
        captured = program.run_decompositions({}).module(check_guards=False)
    for rows, length in [(1, 1), (2, 5), (7, 20)]:
        x = torch.randn(rows, length, 3, dtype=dtype)
        # The captured graph calls the very same kernel, so nothing may differ.
        assert torch.equal(captured(x), network(x))


def test_torch_is_as_before_after_a_capture_that_failed():
    before = (decompositions.one_layer_lstm, decompositions.one_layer_rnn)

    def break_a_capture() -> None:
        with symbolic_length(), symbolic_length():
            assert decompositions.one_layer_lstm is not before[0]
            assert decompositions.one_layer_rnn is not before[1]
            raise RuntimeError("capture broke")

    with pytest.raises(RuntimeError, match="capture broke"):
        break_a_capture()
    assert (decompositions.one_layer_lstm, decompositions.one_layer_rnn) == before


def test_torch_alone_still_makes_the_length_a_constant():
    """When this fails, torch has learned it, and models/recurrent.py can go."""
    network = LastStep(nn.GRU(3, 4, batch_first=True)).eval()
    with (
        pytest.raises(Exception, match="specialized it to be a constant"),
        pytest.warns(UserWarning, match="_flat_weights"),
    ):
        export(network, (torch.randn(2, 5, 3),), dynamic_shapes={"x": {1: Dim("length")}})
