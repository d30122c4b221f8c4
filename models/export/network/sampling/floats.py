"""Floats with the mean and the spread of the example, never constant.

Where the example is never negative, neither is a draw, and none is larger than the example's largest: what comes
next may be a logarithm or a probability. A table whose example has rows enough has statistics per column. Values
that are not finite, or so large that they can only be marks (-1e9), tell nothing of the spread.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.models.export.network.sampling.places import values_at_places

_Array = npt.NDArray[Any]

_TABLE_DIMS = 2
# So many rows say something of the spread of one column; fewer do not.
_COLUMN_ROWS = 4
# So many times the usual size of a value is a mark.
_MARK = 1e6


class Floats:
    """values: the example, of any float type. axes: the dynamic ones, as in Example."""

    def __init__(self, values: _Array, axes: Mapping[int, str]) -> None:
        self._values, self._axes = values, axes
        self._of_columns = values.ndim == _TABLE_DIMS and 1 not in axes and len(values) >= _COLUMN_ROWS

    def from_ranges(self, shape: tuple[int, ...], scale: float, rng: np.random.Generator) -> _Array:
        """Normal around the mean, with `scale` times the spread; uniform from the least value on if none is negative,
        over the whole range or that share of it.
        """
        known = np.ma.masked_invalid(self._values.astype(np.float64))
        sizes = np.abs(known.compressed())
        if sizes.any():
            known = np.ma.masked_where(np.abs(known) > _MARK * np.median(sizes[sizes > 0]), known)
        over = 0 if self._of_columns else None
        low, high, mean, spread = (
            np.broadcast_to(np.ma.filled(of(known, axis=over), 0.0), shape[1:] if self._of_columns else shape)
            for of in (np.ma.min, np.ma.max, np.ma.mean, np.ma.std)
        )
        constant = low == high
        spread = np.where(constant, np.maximum(1.0, np.abs(low)), spread)
        normal = mean + spread * scale * rng.standard_normal(shape)
        uniform = low + (high - low) * min(scale, 1.0) * rng.random(shape)
        drawn = np.where((low >= 0) & ~constant, uniform, normal)
        return np.asarray(drawn.astype(self._values.dtype))

    def from_values(self, shape: tuple[int, ...], rng: np.random.Generator) -> _Array:
        """At each place one of the values that the example shows there."""
        return values_at_places(self._values, self._axes, shape, rng)

    def unproved(self, name: str) -> str | None:
        """None: floats are drawn also where the example shows one value."""
        return None
