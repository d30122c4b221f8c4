"""MobileNet: depthwise separable convolutions, for pictures on small devices."""

import torch
from torch import Tensor, nn

# (channels out, stride) of each separable convolution, at width 1. Source: the paper's table 1.
_BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)


class SeparableConv(nn.Sequential):
    """A 3x3 convolution in each channel alone, then a 1x1 across channels; each with a norm and a ReLU.

    Args:
        in_channels, out_channels: C in, C out.
        stride: of the 3x3 convolution.
    Shape: in float (N, in_channels, H, W), out (N, out_channels, ceil(H / stride), ceil(W / stride)).
    Source: Howard et al. 2017, arXiv:1704.04861, section 3.1 and figure 3.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )


class MobileNet(nn.Module):
    """A 3x3 convolution, 13 separable ones, a mean over the pixels, a linear layer.

    Args:
        num_classes: K, numbers answered for a row.
        width: every layer's channels times this, at least 8 and in whole channels; > 0.
    Shape: in float (N, 3, H, W), out (N, K), any N >= 1; H and W from 32 up; dtype is kept.
    Raises: ValueError at construction for a width that is not above 0.
    Export: TorchScript and ONNX; N is dynamic; H and W may be.
    Source: Howard et al. 2017, arXiv:1704.04861, table 1. Differs: padding 1 on all sides, where the original
    pads as TensorFlow's SAME.
    """

    def __init__(self, num_classes: int = 1000, width: float = 1.0) -> None:
        super().__init__()
        if not width > 0:
            raise ValueError(f"MobileNet got width {width}; expected a number above 0, as 0.25, 0.5 or 1.0")
        channels = max(8, int(32 * width))
        layers: list[nn.Module] = [
            nn.Conv2d(3, channels, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
        for base, stride in _BLOCKS:
            after = max(8, int(base * width))
            layers.append(SeparableConv(channels, after, stride))
            channels = after
        self.features = nn.Sequential(*layers)
        self.output = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.output(self.features(x).mean(dim=(2, 3)))
        return y


def build() -> nn.Module:
    """Return the network for 224x224 pictures and 1000 classes: 4,231,976 parameters, 27 batch norms."""
    return MobileNet()


def example_inputs() -> tuple[Tensor, ...]:
    """Return one input x, float32 (2, 3, 224, 224)."""
    return (torch.randn(2, 3, 224, 224),)
