"""Integers that stay valid: ids, categories, counts, pictures of bytes.

Each place (places.py) has a range of its own, since a table has 1000 users beside 7 weekdays. Two exceptions: an
example of equal rows shows no ranges of places, and the bytes of a picture are all alike; there one range holds for
all. A byte that shows one value is a picture that somebody left empty, and is drawn from all of 0..255.

A sentinel (-100 for "ignore", 2**63 - 1 for "none") is a value beside the range and no end of it: it is drawn where
the example shows it, and nothing between it and the range ever is.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.models.export.network.sampling.places import pooled_axes, values_at_places

_Array = npt.NDArray[Any]

# How many of the ordinary draws at a place that shows a sentinel are one.
_SENTINEL_SHARE = 0.125
# Types of so many bits hold counts and ids, and their ends are no values that anything counts up to.
_SENTINEL_BITS = 32
_TABLE_DIMS = 2


class Integers:
    """values: the example, of any integer type. axes: the dynamic ones, as in Example."""

    def __init__(self, values: _Array, axes: Mapping[int, str]) -> None:
        self._values, self._axes = values, axes
        self._one_value = bool((values == values.flat[0]).all())
        self._is_byte = values.dtype == np.uint8
        self._sentinels = _sentinels(values)
        self._pooled = self._pool()
        self._low, self._high = self._ranges()

    def from_ranges(self, shape: tuple[int, ...], scale: float, rng: np.random.Generator) -> _Array:
        """Even rows lie anywhere in the ranges, odd rows at their ends: so every end is met by the second such row.

        scale: of no meaning here.
        """
        low, high = np.broadcast_to(self._low, shape), np.broadcast_to(self._high, shape)
        drawn = rng.integers(low, high, endpoint=True, dtype=self._values.dtype)
        shown = [(s, np.any(self._values == s, axis=self._pooled, keepdims=True)) for s in self._sentinels]
        for sentinel, where in shown:
            drawn[(rng.random(shape) < _SENTINEL_SHARE) & where] = sentinel
        turn = rng.integers(2 + len(shown), size=(1, *shape[1:]))
        number = np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
        corner = (number // 2 + turn) % (2 + len(shown))
        odd = number % 2 == 1
        for index, ends in enumerate((low, high)):
            drawn = np.where(odd & (corner == index), ends, drawn)
        for index, (sentinel, where) in enumerate(shown, start=2):
            drawn = np.where(odd & (corner == index) & where, self._values.dtype.type(sentinel), drawn)
        return drawn

    def from_values(self, shape: tuple[int, ...], rng: np.random.Generator) -> _Array:
        """At each place one of the values that the example shows there."""
        return values_at_places(self._values, self._axes, shape, rng)

    def unproved(self, name: str) -> str | None:
        """What is never tried of this input, where the example shows one value only; None where it shows more.

        name: of the input.
        """
        if self._is_byte:
            return None
        if self._one_value:
            return (
                f"every value of the input {name!r} is {self._values.flat[0]} in the example, so no other was tried. "
                "Give an example that shows the least and the largest valid value."
            )
        if self._values.ndim != _TABLE_DIMS or 1 in self._axes:
            return None
        (columns,) = np.nonzero((np.broadcast_to(self._low == self._high, (1, self._values.shape[1])))[0])
        if not len(columns):
            return None
        return (
            f"the input {name!r} shows one value only in {len(columns)} of its {self._values.shape[1]} columns "
            f"(column {columns[0]}: {self._values[0, columns[0]]}), so no other was tried there. Give an example that "
            "shows the least and the largest valid value of each column."
        )

    def _pool(self) -> tuple[int, ...]:
        """The axes that share one range."""
        every = tuple(range(self._values.ndim))
        if self._is_byte and self._values.ndim > _TABLE_DIMS:
            return every
        pooled = pooled_axes(self._axes)
        first = self._values.min(axis=pooled, keepdims=True)
        return every if bool((self._values == first).all()) else pooled

    def _ranges(self) -> tuple[_Array, _Array]:
        """The least and the largest value at each place, sentinels aside; the shape broadcasts to any draw's."""
        kind = np.iinfo(self._values.dtype)
        if self._is_byte and self._one_value:
            return np.full([1] * self._values.ndim, kind.min, np.uint8), np.full(
                [1] * self._values.ndim, kind.max, np.uint8
            )
        plain = ~np.isin(self._values, np.array(self._sentinels, self._values.dtype))
        low = self._values.min(axis=self._pooled, keepdims=True, where=plain, initial=kind.max)
        high = self._values.max(axis=self._pooled, keepdims=True, where=plain, initial=kind.min)
        only = ~plain.any(axis=self._pooled, keepdims=True)  # nothing but sentinels at this place
        low = np.where(only, self._values.min(axis=self._pooled, keepdims=True), low)
        return low, np.where(only, low, high)


def _sentinels(values: _Array) -> list[int]:
    """Values that stand for something else than a number: the ends of wide types, the one negative of an id."""
    shown = [int(value) for value in np.unique(values)]
    if len(shown) < 2:
        return []
    ends: set[int] = set()
    for kind in (np.int32, np.uint32, np.int64, np.uint64):
        if _SENTINEL_BITS <= np.iinfo(kind).bits <= np.iinfo(values.dtype).bits:
            ends |= {int(np.iinfo(kind).min), int(np.iinfo(kind).max)}
    found = [value for value in shown if value in ends and value != 0]
    negative = [value for value in shown if value < 0 and value not in found]
    rest = [value for value in shown if value not in found and value >= 0]
    if len(negative) == 1 and rest:
        found += negative
    return found if len(found) < len(shown) else []
