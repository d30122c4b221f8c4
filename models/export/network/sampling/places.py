"""The places of an example: its positions along the static axes, which mean the same in every row.

A column of a table is a place; a position in a sequence of any length is none. What the example shows at one place
says nothing of another.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]


def pooled_axes(axes: Mapping[int, str]) -> tuple[int, ...]:
    """The axes along which values are alike: the rows, and every axis of any size."""
    return tuple(sorted({0, *axes}))


def values_at_places(
    values: _Array, axes: Mapping[int, str], shape: tuple[int, ...], rng: np.random.Generator
) -> _Array:
    """An array of this shape; each element is one that the example shows at that place."""
    pooled = pooled_axes(axes)
    indices = []
    for axis, size in enumerate(values.shape):
        if axis in pooled:
            indices.append(rng.integers(size, size=shape))
        else:
            along = np.arange(size).reshape([-1 if a == axis else 1 for a in range(values.ndim)])
            indices.append(np.broadcast_to(along, shape))
    return np.asarray(values[tuple(indices)])
