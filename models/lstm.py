"""An LSTM that gives a sequence of measurements one class; sequences may have any length."""

import torch
from torch import Tensor, nn


class SequenceClassifier(nn.Module):
    """A linear layer and a batch norm on every step's features, an LSTM, a linear layer on its last state.

    Args:
        features: F, numbers measured at a step.
        hidden: width of the normalised features and of the LSTM.
        layers: LSTMs on top of each other.
        num_classes: K, numbers answered for a sequence.
    Shape: in float (N, T, F), out (N, K), any N, T >= 1; one length per batch; dtype is kept.
    Export: TorchScript and ONNX; N and T are dynamic. A capture with a dynamic T needs
        foldserve.models.recurrent.symbolic_length() around it. The norm folds into the linear layer before it.
    Source: Hochreiter and Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735, with forget gates as in
    torch.nn.LSTM; norms outside the recurrence as in Laurent et al. 2015, arXiv:1510.01378.
    """

    def __init__(self, features: int = 8, hidden: int = 32, layers: int = 2, num_classes: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(features, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.lstm = nn.LSTM(hidden, hidden, layers, batch_first=True)
        self.output = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        # BatchNorm1d has the channels in dim 1, the sequence has them last.
        embedded = self.norm(self.embed(x).transpose(1, 2)).transpose(1, 2)
        steps, _ = self.lstm(embedded)
        y: Tensor = self.output(steps[:, -1])
        return y


DYNAMIC_AXES = {"x": {1: "length"}}


def build() -> nn.Module:
    """Return the network for 8 features a step and 4 classes, with fresh weights."""
    return SequenceClassifier()


def example_inputs() -> tuple[Tensor, ...]:
    """Return one input x, float32 (2, 12, 8): two sequences of 12 steps."""
    return (torch.randn(2, 12, 8),)
