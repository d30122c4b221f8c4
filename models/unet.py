"""U-Net: a class for every pixel, by transposed convolutions joined with the maps of the way down."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class DoubleConv(nn.Sequential):
    """Twice: 3x3 convolution, batch norm, ReLU.

    Shape: in float (N, in_channels, H, W), out (N, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )


class UpConv(nn.Sequential):
    """A 2x2 transposed convolution of stride 2, batch norm, ReLU: twice the size, half the channels.

    Shape: in float (N, C, H, W), C even; out (N, C / 2, 2 * H, 2 * W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.ConvTranspose2d(channels, channels // 2, 2, stride=2, bias=False),
            nn.BatchNorm2d(channels // 2),
            nn.ReLU(),
        )


class UNet(nn.Module):
    """Down through double convolutions and max pools, up through transposed convolutions, 1x1 at the end.

    Args:
        in_channels: C, channels of a picture.
        num_classes: K, numbers answered for each pixel.
        widths: channels of each level from the top; each twice the one before; at least two levels.
    Shape: in float (N, C, H, W), out (N, K, H, W); N >= 1; H and W multiples of 2 ** (len(widths) - 1).
    Raises: ValueError at construction for widths that do not double.
    Export: TorchScript and ONNX; N is dynamic; H and W are fixed to the example's.
    Source: Ronneberger et al. 2015, arXiv:1505.04597, figure 1. Differs: padding keeps the size (the original
    crops), and every convolution but the last has a batch norm.
    """

    def __init__(
        self, in_channels: int = 3, num_classes: int = 2, widths: Sequence[int] = (16, 32, 64, 128)
    ) -> None:
        super().__init__()
        if len(widths) < 2 or any(below != 2 * above for above, below in pairwise(widths)):
            raise ValueError(
                f"UNet got widths {tuple(widths)}; expected two or more, each twice the one before"
            )
        self.down = nn.ModuleList(
            DoubleConv(before, after) for before, after in zip((in_channels, *widths), widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(UpConv(width) for width in reversed(widths[1:]))
        self.join = nn.ModuleList(DoubleConv(width, width // 2) for width in reversed(widths[1:]))
        self.output = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skipped: list[Tensor] = []
        for i, level in enumerate(self.down):
            x = level(x if i == 0 else self.pool(x))
            skipped.append(x)
        for up, join, skip in zip(self.up, self.join, reversed(skipped[:-1]), strict=True):
            x = join(torch.cat((skip, up(x)), dim=1))
        y: Tensor = self.output(x)
        return y


def build() -> nn.Module:
    """Return the network for 3x64x64 pictures and 2 classes a pixel; 17 batch norms."""
    return UNet()


def example_inputs() -> tuple[Tensor, ...]:
    """Return one input x, float32 (2, 3, 64, 64)."""
    return (torch.randn(2, 3, 64, 64),)
