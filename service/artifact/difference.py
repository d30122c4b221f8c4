"""How far two answers are apart, in the one measure that the export's gates, the manifest and the server use.

Integers and booleans: the share of elements that differ. Floats: the largest absolute difference, relative to a
scale. Without axes that is the largest wanted value of the tensor (1 where that is all zeros). With some, every
column is measured by its own size, so that scores of 0..1 beside boxes of 0..640, or logits beside masked ones of
-1e9, count. A column is what has one index in an axis of fixed size, other than the rows: a channel, a feature, a
place; each such axis is looked at.

Two things keep chance out of a column's size. Columns of like size, each at least a tenth of the next larger one,
have the size of the largest of them: that one column of features is small says nothing. And no column is measured
by less than 2**-12 of the largest: the float32 rounding of its neighbours (2**-24) then still leaves it three digits.

Values that are not finite must be the same at the same places; otherwise, and for another shape or kind, the
difference is infinite. Pure; tensors: models/export/network/difference.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

_ALIKE: Final = 10.0
_LEAST_SHARE: Final = 2.0**-12
# A mask's value (-1e4, -1e9, the least float32), with or without a logit added: above all others by a factor of
# a hundred, and all within a tenth. No column of a network's own has such a gap and is so even.
_LEAST_MASK: Final = 1e3
_MASK_GAP: Final = 100.0
_MASK_RANGE: Final = 1.1


@dataclass(frozen=True)
class Difference:
    """max_abs: the largest absolute difference. max_rel: the same relative to the scale."""

    max_abs: float
    max_rel: float

    def worse(self, other: "Difference") -> "Difference":
        """The larger of each figure."""
        return Difference(max(self.max_abs, other.max_abs), max(self.max_rel, other.max_rel))


NONE: Final = Difference(0.0, 0.0)
_APART: Final = Difference(math.inf, math.inf)


@dataclass(frozen=True)
class Scale:
    """What the differences of one output are relative to.

    columns: per axis the size of each column, as shape (size of that axis,). whole: that of the tensor.
    mask: magnitudes from here on are a mask's, relative to themselves; infinite where there is no mask.
    """

    columns: tuple[tuple[int, np.ndarray], ...]
    whole: float
    mask: float


def relative_error(got: np.ndarray, want: np.ndarray, axes: Sequence[int] = ()) -> float:
    """max_rel of an answer and the wanted one. axes: as for scale_of()."""
    floats = want.dtype.kind == "f" and want.size
    return difference(got, want, scale_of([want], axes) if floats else None).max_rel


def scale_of(wanted: Sequence[np.ndarray], axes: Sequence[int]) -> Scale:
    """The scale of an output, from its values in several batches. axes: those of fixed size, other than the rows."""
    sizes = [np.abs(np.where(np.isfinite(w), w, 0.0), dtype=np.float64) for w in wanted if w.size]
    mask = _mask_of(sizes)
    if mask != math.inf:
        sizes = [np.where(size < mask, size, 0.0) for size in sizes]
    whole = max((float(size.max()) for size in sizes), default=0.0)
    columns = []
    for axis in axes if whole > 0 else ():
        of_batches = [_largest_of(size, axis) for size in sizes]
        columns.append((axis, _alike(np.max(of_batches, axis=0), whole)))
    return Scale(tuple(columns), whole, mask)


def difference(got: np.ndarray, want: np.ndarray, scale: Scale | None = None) -> Difference:
    """The difference between an answer and the wanted one; scale: of the whole tensor alone when it is not given."""
    if got.shape != want.shape or (got.dtype.kind == "f") != (want.dtype.kind == "f"):
        return _APART
    if want.size == 0:
        return NONE
    if want.dtype.kind != "f":
        largest = np.abs(got.astype(np.float64) - want.astype(np.float64)).max()
        return Difference(float(largest), float(np.mean(got != want)))
    found, wanted = got.astype(np.float64, copy=False), want.astype(np.float64, copy=False)
    finite = np.isfinite(wanted)
    if finite.all():
        if not np.isfinite(found).all():
            return _APART
        off = np.abs(found - wanted)
    else:
        if not np.array_equal(np.isfinite(found), finite) or not np.array_equal(
            found[~finite], wanted[~finite], equal_nan=True
        ):
            return _APART
        off = np.abs(np.where(finite, found, 0.0) - np.where(finite, wanted, 0.0))
    return Difference(float(off.max()), _relative(off, wanted, finite, scale or scale_of([wanted], ())))


def _relative(off: np.ndarray, wanted: np.ndarray, finite: np.ndarray, scale: Scale) -> float:
    worst = 0.0
    if scale.mask != math.inf:
        sizes = np.abs(wanted)
        masked = finite & (sizes >= scale.mask)
        worst = float((off[masked] / sizes[masked]).max(initial=0.0))
        off = np.where(masked, 0.0, off)
    worst = max(worst, float(off.max()) / (scale.whole or 1.0))
    for axis, columns in scale.columns:
        worst = max(worst, float((_largest_of(off, axis) / columns).max()))
    return worst


def _largest_of(sizes: np.ndarray, axis: int) -> np.ndarray:
    """The largest of each column of an axis, which may be the only one."""
    largest: np.ndarray = sizes.max(
        axis=tuple(other for other in range(sizes.ndim) if other != axis % sizes.ndim)
    )
    return largest


def _alike(columns: np.ndarray, whole: float) -> np.ndarray:
    """The size of each column, with that of the largest among columns of like size; none far below whole."""
    order = np.argsort(-columns, kind="stable")
    ordered = columns[order]
    # A column of zeros has no size of its own: it goes with the smallest that have one.
    starts = np.concatenate([[False], (ordered[1:] > 0) & (ordered[1:] * _ALIKE < ordered[:-1])])
    first = np.concatenate([[0], np.flatnonzero(starts)])
    sizes = np.empty_like(columns)
    sizes[order] = ordered[first][np.cumsum(starts)]
    return sizes.clip(min=whole * _LEAST_SHARE)


def _mask_of(sizes: Sequence[np.ndarray]) -> float:
    """The least magnitude that is a mask's, infinite where no value is one."""
    most = max((float(size.max()) for size in sizes), default=0.0)
    least = most / _MASK_RANGE
    if least < _LEAST_MASK:
        return math.inf
    below = max(float(size[size < least].max(initial=0.0)) for size in sizes)
    return least if below * _MASK_GAP <= least else math.inf
