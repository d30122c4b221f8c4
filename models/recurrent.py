"""Let torch.export keep the length of a sequence dynamic through nn.LSTM, nn.GRU and nn.RNN.

torch.export keeps `aten.lstm.input` (gru, rnn_tanh, rnn_relu alike) as one node, but it finds the shape of
the node's answer by running torch's decomposition, and that is a Python loop over the steps: the length
becomes a constant. Inside `symbolic_length()` the loop of one layer is replaced by its shape alone. The node,
and with it every number, stays torch's own. Needed wherever such a node is captured or captured again, so
around torch.export.export and around torch.onnx.export of a captured graph.

Knows nothing of a network. Owns no state: what it replaces in torch it puts back. Not for use from two
threads at once, as torch.export itself.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch._decomp.decompositions as decompositions
from torch import Tensor


def _lstm_layer_shape(
    steps: Tensor,
    hidden: tuple[Tensor, Tensor],
    params: list[Tensor],
    has_biases: bool,
    reverse: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Stand in for one_layer_lstm: steps (length, rows, in) → (length, rows, out) and the two last states."""
    h, c = hidden
    return steps.new_empty(*steps.shape[:-1], h.shape[-1]), (torch.empty_like(h), torch.empty_like(c))


def _rnn_layer_shape(
    steps: Tensor,
    hidden: Tensor,
    params: list[Tensor],
    has_biases: bool,
    hidden_fn: Any,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Stand in for one_layer_rnn, which nn.GRU and nn.RNN share."""
    return steps.new_empty(*steps.shape[:-1], hidden.shape[-1]), torch.empty_like(hidden)


_STAND_INS = {"one_layer_lstm": _lstm_layer_shape, "one_layer_rnn": _rnn_layer_shape}


@contextlib.contextmanager
def symbolic_length() -> Iterator[None]:
    """While this is open, a capture leaves the length of recurrent layers dynamic; may be nested.

    Only captures may run inside: a decomposition that is asked for numbers would get uninitialised memory.
    """
    # A torch that has moved these functions is left alone: fixed lengths then work as before, and a dynamic
    # one ends in torch.export's own message. tests/models/test_recurrent.py tells us of the move.
    found = {name: getattr(decompositions, name) for name in _STAND_INS if hasattr(decompositions, name)}
    try:
        for name in found:
            setattr(decompositions, name, _STAND_INS[name])
        with warnings.catch_warnings():
            # nn.RNNBase keeps a second list of its weights, which torch.export swaps for fakes and puts back.
            warnings.filterwarnings(
                "ignore", message=r"The tensor attributes .*_flat_weights.* were assigned during export"
            )
            yield
    finally:
        for name, function in found.items():
            setattr(decompositions, name, function)
