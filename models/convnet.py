"""A plain convolutional classifier whose every choice is an argument: for experiments and for tests."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from foldserve.models.activations import activation

KERNEL = 3
PADDING = 1


def output_size(size: int, stride: int) -> int:
    """Return how many pixels a side of size pixels has after one 3x3 convolution with padding 1.

    floor((size + 2 * 1 - 3) / stride) + 1, so stride 1 keeps the size, and stride 2 gives ceil(size / 2).
    """
    return (size + 2 * PADDING - KERNEL) // stride + 1


class ConvNet(nn.Module):
    """Convolution, batch norm, activation, once per width; then a mean over the pixels and a linear layer.

    Args:
        in_channels: C, channels of a picture.
        num_classes: K, numbers answered for a row.
        widths: channels after each convolution; at least one.
        stride: of every convolution, >= 1; map_size() tells the size that it leaves.
        hidden_activation: a name of models/activations.py.
        batch_norm: a norm after every convolution; without it the convolutions have a bias of their own.
    Shape: in float (N, C, H, W), out (N, K), any N, H, W >= 1; dtype is kept.
    Raises: ValueError at construction for no widths or a stride below 1; UnknownActivation.
    Export: TorchScript and ONNX; N is dynamic; H and W may be.
    Source: Springenberg et al. 2014, arXiv:1412.6806 (strides instead of pooling, a mean at the end), with
    batch norm by Ioffe and Szegedy 2015, arXiv:1502.03167.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        widths: Sequence[int] = (16, 32, 64),
        stride: int = 2,
        hidden_activation: str = "relu",
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        if not widths:
            raise ValueError(
                "ConvNet got no widths; expected the channels of at least one convolution, as (16, 32)"
            )
        if stride < 1:
            raise ValueError(f"ConvNet got stride {stride}; expected 1 or more")
        self.stride = stride
        self.depth = len(widths)
        layers: list[nn.Module] = []
        for before, after in zip((in_channels, *widths), widths, strict=False):
            layers.append(nn.Conv2d(before, after, KERNEL, stride, PADDING, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm2d(after))
            layers.append(activation(hidden_activation))
        self.features = nn.Sequential(*layers)
        self.output = nn.Linear(widths[-1], num_classes)

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width, in pixels, of the last feature map for a picture of that size."""
        for _ in range(self.depth):
            height, width = output_size(height, self.stride), output_size(width, self.stride)
        return height, width

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.output(self.features(x).mean(dim=(2, 3)))
        return y


def build() -> nn.Module:
    """Return the network for 3x32x32 pictures and 10 classes; its last map is 4x4."""
    return ConvNet()


def example_inputs() -> tuple[Tensor, ...]:
    """Return one input x, float32 (2, 3, 32, 32)."""
    return (torch.randn(2, 3, 32, 32),)
