"""What is known of one class of a package: how it is built, what it takes, and which of its dims are dynamic."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Inputs = tuple[Tensor, ...] | dict[str, Tensor]
Size = tuple[int, ...]


@dataclass(frozen=True)
class PublishedClass:
    """build: the network with random weights, small. inputs: of so many rows, with dynamic dims of such a size.

    sizes: the example's first, then others that are tried on the files; one empty size where all dims are fixed.
    axes: as export_model takes them. Dims that share a label are one number in `sizes`.
    """

    package: str
    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int, Size], Inputs]
    sizes: Sequence[Size] = ((),)
    axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)


def pictures(rows: int, size: Size) -> Inputs:
    """Shape: (rows, 3, height, width), as a normalised picture."""
    return (torch.randn(rows, 3, *size),)


def fixed_pictures(side: int) -> Callable[[int, Size], Inputs]:
    return lambda rows, _: pictures(rows, (side, side))


HEIGHT_AND_WIDTH = {2: "height", 3: "width"}
