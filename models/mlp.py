"""The smallest network: two linear layers. What the README serves first."""

import torch
from torch import Tensor, nn

from foldserve.models.activations import activation


class NeuralNetwork(nn.Module):
    """A perceptron with one hidden layer.

    Args:
        input_dim: features of a row.
        hidden_dim: width of the hidden layer.
        output_dim: numbers answered for a row.
        hidden_activation: a name of models/activations.py.
    Shape: in float (N, input_dim), out (N, output_dim), any N >= 1; dtype is kept.
    Raises: UnknownActivation at construction.
    Export: TorchScript and ONNX; N is dynamic.
    Source: Rumelhart, Hinton and Williams 1986, doi:10.1038/323533a0, with a ReLU for their sigmoid.
    """

    def __init__(
        self,
        input_dim: int = 10,
        hidden_dim: int = 20,
        output_dim: int = 5,
        hidden_activation: str = "relu",
    ) -> None:
        super().__init__()
        self.hidden = nn.Linear(input_dim, hidden_dim)
        self.activation = activation(hidden_activation)
        self.output = nn.Linear(hidden_dim, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.output(self.activation(self.hidden(x)))
        return y


def build() -> nn.Module:
    """Return the 10 → 20 → 5 network with fresh weights (torch's generator decides them)."""
    return NeuralNetwork()


def example_inputs() -> tuple[Tensor, ...]:
    """Return one input x, float32 (2, 10)."""
    return (torch.randn(2, 10),)
