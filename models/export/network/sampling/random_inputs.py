"""Fresh inputs that a network accepts, drawn in the image of its example.

Every input is of one kind, read from its example: a mask (masks.py), integers (integers.py) or floats (floats.py).
A kind draws from the ranges that the example shows. Not every network takes all of that: an id may be valid in one
row only together with another input. So an input can also be drawn closer to the example: its values, mixed, or its
rows. Row 0, 1, 2, ... of a draw each have another pattern, so that few rows meet much: prefixes and scattered masks,
values inside a range and at its ends. Seeded: the same call gives the same tensors. Knows nothing of networks.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foldserve.models.export.network.example.example import Example, Source
from foldserve.models.export.network.sampling.floats import Floats
from foldserve.models.export.network.sampling.integers import Integers
from foldserve.models.export.network.sampling.masks import Masks

_Array = npt.NDArray[Any]


class _Kind(Protocol):
    def from_ranges(self, shape: tuple[int, ...], scale: float, rng: np.random.Generator) -> _Array: ...

    def from_values(self, shape: tuple[int, ...], rng: np.random.Generator) -> _Array: ...

    def unproved(self, name: str) -> str | None: ...


def random_inputs(
    example: Example,
    rows: int,
    seed: int,
    sizes: Mapping[str, int] | None = None,
    *,
    scale: float = 1.0,
) -> tuple[Tensor, ...]:
    """One tensor per input, with this many rows, in the types of the example and drawn from its source.

    sizes: {label: size} for dynamic axes other than the rows; the example's size where a label is missing.
    scale: how far floats stray from their mean, in units of the example's spread.
    """
    rng = np.random.default_rng(seed)
    wanted = {**(sizes or {}), "rows": rows}
    # One pick of rows for all inputs: an example's row is valid as a whole.
    picks = None if example.together else rng.integers(example.rows, size=rows)
    tensors = []
    for tensor, axes in zip(example.tensors, example.axes, strict=True):
        # A number without dims is drawn as one row.
        values = np.atleast_1d(tensor.numpy())
        shape = tuple(wanted.get(axes.get(axis, ""), size) for axis, size in enumerate(values.shape))
        if tensor.numel() == 0:
            drawn = np.zeros(shape, values.dtype)
        elif example.source is Source.ROWS:
            drawn = _rows_of(values, picks, shape)
        elif example.source is Source.VALUES:
            drawn = _kind(values, axes).from_values(shape, rng)
        else:
            drawn = _kind(values, axes).from_ranges(shape, scale, rng)
        if example.together and values.dtype.kind in "iu":
            drawn = _within(drawn, _index_limit(example, values, wanted))
        dense = torch.from_numpy(np.ascontiguousarray(drawn.astype(values.dtype, copy=False)))
        tensors.append(dense if tensor.dim() else dense.reshape(()))
    return tuple(tensors)


def _index_limit(example: Example, values: _Array, wanted: Mapping[str, int]) -> int | None:
    """How large whole numbers may be at most, when they are indexes into rows that are fewer than in the example.

    As the ends of a graph's edges are: every number in the example is less than there are rows.
    """
    limits = []
    for tensor, axes in zip(example.tensors, example.axes, strict=True):
        rows = wanted.get(axes.get(0, ""))
        if rows is not None and values.max() < tensor.shape[0] and rows < tensor.shape[0]:
            limits.append(rows)
    return min(limits, default=None)


def _within(drawn: _Array, limit: int | None) -> _Array:
    return drawn if limit is None else np.where(drawn >= limit, drawn % limit, drawn)


def unproved_values(example: Example) -> tuple[str, ...]:
    """Of which inputs the example shows so little that no draw tries more, and how to mend that."""
    shown = zip(example.names, example.tensors, example.axes, strict=True)
    told = (_kind(tensor.numpy(), axes).unproved(name) for name, tensor, axes in shown if tensor.numel())
    return tuple(text for text in told if text is not None)


def _kind(values: _Array, axes: Mapping[int, str]) -> _Kind:
    """The kind of input that an example of these values shows. axes: the dynamic ones, as in Example."""
    mask = Masks.read(values, axes)
    if mask is not None:
        return mask
    return Floats(values, axes) if values.dtype.kind == "f" else Integers(values, axes)


def _rows_of(values: _Array, picks: _Array | None, shape: tuple[int, ...]) -> _Array:
    """These rows of the example, or all where they belong together, cut or repeated along an axis of another size."""
    drawn = values if picks is None else values[picks]
    for axis in range(0 if picks is None else 1, len(shape)):
        drawn = np.take(drawn, np.arange(shape[axis]) % values.shape[axis], axis=axis)
    return drawn
