"""A small convolutional network that reads handwritten digits; its trained weights lie beside it.

Trained by models/train_digits.py on the 8x8 digits of scikit-learn.
"""

from importlib.resources import as_file, files

import torch
from torch import Tensor, nn

from foldserve.models.weights import load_weights

WEIGHTS = "digits.safetensors"


class Digits(nn.Module):
    """Three 3x3 convolutions, each with a batch norm and a ReLU, one max pool between, and a linear layer.

    Accuracy of the shipped weights on the 360 held-out digits: 1.000. (Five splits and seeds, this one among
    them, trained the same way, gave 0.994 to 1.000, 0.998 on average.)

    Shape: in float (N, 1, 8, 8), the darkness of each pixel from 0 to 16, as sklearn.datasets.load_digits has
    it; out (N, 10), logits of the digits 0 to 9; any N >= 1; dtype is kept.
    Export: TorchScript and ONNX; N is dynamic.
    Source: LeCun et al. 1998, doi:10.1109/5.726791, with batch norm, arXiv:1502.03167.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_layer(1, 32),
            *_layer(32, 32),
            nn.MaxPool2d(2),
            *_layer(32, 64),
        )
        self.output = nn.Linear(64 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        # Scaled here, so that a client sends the pixels as they are.
        y: Tensor = self.output(self.features(x / 16).flatten(1))
        return y


def _layer(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def build() -> nn.Module:
    """Return the network with its trained weights."""
    network = Digits()
    with as_file(files("foldserve.models").joinpath(WEIGHTS)) as path:
        load_weights(network, path)
    return network


def example_inputs() -> tuple[Tensor, ...]:
    """Return one input x, float32 (2, 1, 8, 8), whole numbers from 0 to 16."""
    return (torch.randint(0, 17, (2, 1, 8, 8)).float(),)
