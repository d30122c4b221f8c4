"""Residual networks: 18, 34 and 50 layers for 224x224 pictures, and a small one for 32x32.

Layers are named as in torchvision, so weights published for its resnet18, resnet34 and resnet50 fit by name.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with norms, added to the input.

    Args:
        in_channels, channels: C in, C out.
        stride: of the first convolution.
    Shape: in float (N, in_channels, H, W), out (N, channels, ceil(H / stride), ceil(W / stride)).
    Source: He et al. 2015, arXiv:1512.03385, figure 5 left; a 1x1 convolution where the shape changes.
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu(y + self.downsample(x))
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with norms, added to the input.

    Args:
        in_channels: C in.
        channels: of the 3x3 convolution; C out is 4 * channels.
        stride: of the 3x3 convolution.
    Shape: in float (N, in_channels, H, W), out (N, 4 * channels, ceil(H / stride), ceil(W / stride)).
    Source: He et al. 2015, arXiv:1512.03385, figure 5 right. Differs: the stride sits in the 3x3 convolution,
    as in torchvision ("v1.5"), not in the first 1x1.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        out: Tensor = self.relu(y + self.downsample(x))
        return out


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class ResNet(nn.Module):
    """Stages of residual blocks, a mean over the pixels, a linear layer.

    Args:
        block: BasicBlock or Bottleneck.
        depths: blocks of each stage; every stage after the first halves the picture.
        widths: channels argument of the blocks of each stage; as many as depths.
        num_classes: K, numbers answered for a row.
        large_pictures: begin with a 7x7 convolution of stride 2 and a max pool (for 224x224); without it,
            with one 3x3 convolution (for 32x32).
    Shape: in float (N, 3, H, W), out (N, K); N >= 1; H and W from 32 up with large_pictures, from 8 without.
    Raises: ValueError at construction when depths and widths differ in number.
    Export: TorchScript and ONNX; N is dynamic; H and W may be.
    Source: He et al. 2015, arXiv:1512.03385, table 1; the small form is section 4.2.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        num_classes: int = 1000,
        large_pictures: bool = True,
    ) -> None:
        super().__init__()
        if len(depths) != len(widths):
            raise ValueError(
                f"ResNet got {len(depths)} depths and {len(widths)} widths; expected one of each a stage"
            )
        if large_pictures:
            self.conv1 = nn.Conv2d(3, widths[0], 7, 2, padding=3, bias=False)
        else:
            self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if large_pictures else nn.Identity()
        self.stages = len(depths)
        channels = widths[0]
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks: list[nn.Module] = []
            for j in range(depth):
                blocks.append(block(channels, width, stride=2 if i > 0 and j == 0 else 1))
                channels = width * block.expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for i in range(self.stages):
            x = self.get_submodule(f"layer{i + 1}")(x)
        y: Tensor = self.fc(x.mean(dim=(2, 3)))
        return y


def build_18() -> nn.Module:
    """Return ResNet-18 for 224x224 pictures and 1000 classes: 11,689,512 parameters, 20 batch norms."""
    return ResNet(BasicBlock, (2, 2, 2, 2))


def build_34() -> nn.Module:
    """Return ResNet-34 for 224x224 pictures and 1000 classes: 21,797,672 parameters, 36 batch norms."""
    return ResNet(BasicBlock, (3, 4, 6, 3))


def build_50() -> nn.Module:
    """Return ResNet-50 for 224x224 pictures and 1000 classes: 25,557,032 parameters, 53 batch norms."""
    return ResNet(Bottleneck, (3, 4, 6, 3))


def build_small() -> nn.Module:
    """Return the 20-layer form for 32x32 pictures and 10 classes: 272,474 parameters, 21 batch norms."""
    return ResNet(BasicBlock, (3, 3, 3), widths=(16, 32, 64), num_classes=10, large_pictures=False)


def example_inputs() -> tuple[Tensor, ...]:
    """Return one input x, float32 (2, 3, 224, 224)."""
    return (torch.randn(2, 3, 224, 224),)


def example_inputs_small() -> tuple[Tensor, ...]:
    """Return one input x, float32 (2, 3, 32, 32)."""
    return (torch.randn(2, 3, 32, 32),)
