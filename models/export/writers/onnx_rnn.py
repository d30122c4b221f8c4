"""The ONNX translation of nn.RNN, which torch.onnx lacks: it would unroll the loop and so fix the length.

    before  aten.rnn_tanh.input(x, hx, [W_ih, W_hh, b_ih, b_hh, ...], ...)        x: (length, rows, features)
    after   one RNN node per layer: Y = f(x W_ih' + b_ih + h W_hh' + b_hh), both directions in it

Source: the ONNX operator RNN, version 14; torch.nn.RNN for the order of weights. Needed only by onnx_writer.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import opset18

op: Any = opset18  # the operators take Python lists, which their type hints refuse


def _translation(activation: str) -> Callable[..., Any]:
    def rnn(
        x: Any,
        hx: Any,
        params: Sequence[Any],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Any, Any]:
        directions = 2 if bidirectional else 1
        per_direction = 4 if has_biases else 2
        sequence = op.Transpose(x, perm=[1, 0, 2]) if batch_first else x
        states = []
        for layer in range(num_layers):
            weights = [
                params[
                    (layer * directions + d) * per_direction : (layer * directions + d + 1) * per_direction
                ]
                for d in range(directions)
            ]
            outputs, state = op.RNN(
                sequence,
                _stacked([w[0] for w in weights]),
                _stacked([w[1] for w in weights]),
                _stacked([op.Concat(w[2], w[3], axis=0) for w in weights]) if has_biases else None,
                None,
                op.Slice(hx, [layer * directions], [(layer + 1) * directions], [0]),
                activations=[activation] * directions,
                direction="bidirectional" if bidirectional else "forward",
                hidden_size=int(hx.shape[2]),
            )
            # (length, directions, rows, hidden) → (length, rows, directions * hidden)
            sequence = op.Reshape(op.Transpose(outputs, perm=[0, 2, 1, 3]), [0, 0, -1])
            states.append(state)
        result = op.Transpose(sequence, perm=[1, 0, 2]) if batch_first else sequence
        return result, states[0] if len(states) == 1 else op.Concat(*states, axis=0)

    return rnn


def _stacked(parts: Sequence[Any]) -> Any:
    """One (…) per direction → (directions, …)."""
    raised = [op.Unsqueeze(part, [0]) for part in parts]
    return raised[0] if len(raised) == 1 else op.Concat(*raised, axis=0)


TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.rnn_tanh.input: _translation("Tanh"),
    torch.ops.aten.rnn_relu.input: _translation("Relu"),
}
