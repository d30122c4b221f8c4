"""Fresh random inputs that a network accepts, drawn in the image of its example.

Floats follow the example's mean and spread (and stay positive where the example does); integers and pictures
stay in the range that the example shows, so that ids stay valid; masks are rows of the example. Seeded: the
same call gives the same tensors. Knows nothing of networks.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from models.export.example import Example


def random_inputs(
    example: Example, rows: int, seed: int, sizes: Mapping[str, int] | None = None
) -> tuple[Tensor, ...]:
    """One tensor per input, with this many rows.

    sizes: {label: size} for dynamic axes other than the rows; the example's size where a label is missing.
    """
    generator = torch.Generator().manual_seed(seed)
    wanted = {**(sizes or {}), "rows": rows}
    tensors = []
    for tensor, axes in zip(example.tensors, example.axes, strict=True):
        shape = [wanted.get(axes.get(axis, ""), size) for axis, size in enumerate(tensor.shape)]
        tensors.append(_like(tensor, shape, generator))
    return tuple(tensors)


def _like(tensor: Tensor, shape: list[int], generator: torch.Generator) -> Tensor:
    if tensor.dtype == torch.bool:
        return _rows_of(tensor, shape, generator)
    if not tensor.is_floating_point():
        least, most = int(tensor.min()), int(tensor.max())
        return torch.randint(least, most + 1, shape, generator=generator, dtype=torch.int64).to(tensor.dtype)
    known = tensor[torch.isfinite(tensor)].double()
    low, high = (float(known.min()), float(known.max())) if known.numel() else (-1.0, 1.0)
    if low == high:
        return torch.randn(shape, generator=generator, dtype=torch.float32)
    if low >= 0:
        return (torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low).float()
    spread = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (spread * float(known.std()) + float(known.mean())).float()


def _rows_of(tensor: Tensor, shape: list[int], generator: torch.Generator) -> Tensor:
    """Rows of the example in random order, repeated along a dynamic axis that is longer now."""
    picks = torch.randint(0, tensor.shape[0], (shape[0],), generator=generator)
    values = tensor[picks]
    for axis in range(1, len(shape)):
        index = torch.arange(shape[axis]) % tensor.shape[axis]
        values = values.index_select(axis, index)
    return values
