"""A network with large inputs and next to no work: what a server does with 602 KB bodies shows, not the model."""

import torch
from torch import Tensor, nn


class LightNet(nn.Module):
    """One convolution with large strides, its mean, and a linear layer.

    Shape: in float (N, 3, 224, 224), out (N, 10), any N >= 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, kernel_size=16, stride=16)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.norm(self.patches(x))).mean(dim=(2, 3)))
        return y


def build() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return the network with fresh weights, and one input x, float32 (2, 3, 224, 224)."""
    return LightNet(), (torch.randn(2, 3, 224, 224),)
