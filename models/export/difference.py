"""How far two answers are apart, in the one measure that the gates, the manifest and the messages use.

Integers and booleans: the share of elements that differ. Floats: the largest absolute difference, relative to a
scale. Without a Scale that is the largest wanted value of the tensor (1 where that is all zeros). With one, every
column is measured by its own size, so that scores of 0..1 beside boxes of 0..640, or logits beside masked ones of
-1e9, count. A column is what has one index in an axis of fixed size, other than the rows: a channel, a feature, a
place; each such axis is looked at.

Two things keep chance out of a column's size. Columns of like size, each at least a tenth of the next larger one,
have the size of the largest of them: that one column of features is small says nothing. And no column is measured
by less than 2**-12 of the largest: the float32 rounding of its neighbours (2**-24) then still leaves it three digits.

Values that are not finite must be the same at the same places; otherwise, and for another shape or kind, the
difference is infinite. Keep in step with service/artifact/difference.py; a test compares.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_ALIKE = 10.0
_LEAST_SHARE = 2.0**-12
# A mask's value (-1e4, -1e9, the least float32), with or without a logit added: above all others by a factor of
# a hundred, and all within a tenth. No column of a network's own has such a gap and is so even.
_LEAST_MASK = 1e3
_MASK_GAP = 100.0
_MASK_RANGE = 1.1


@dataclass(frozen=True)
class Difference:
    """max_abs: the largest absolute difference. max_rel: the same relative to the scale."""

    max_abs: float
    max_rel: float

    def worse(self, other: "Difference") -> "Difference":
        """The larger of each figure."""
        return Difference(max(self.max_abs, other.max_abs), max(self.max_rel, other.max_rel))


NONE = Difference(0.0, 0.0)
_APART = Difference(math.inf, math.inf)


@dataclass(frozen=True)
class Scale:
    """What the differences of one output are relative to.

    columns: per axis the size of each column, as shape (size of that axis,). whole: that of the tensor.
    mask: magnitudes from here on are a mask's, relative to themselves; infinite where there is no mask.
    """

    columns: tuple[tuple[int, Tensor], ...]
    whole: float
    mask: float


def scale_of(wanted: Sequence[Tensor], axes: Sequence[int]) -> Scale:
    """The scale of an output, from its values in several batches. axes: those of fixed size, other than the rows."""
    sizes = [torch.where(torch.isfinite(w), w.double(), 0.0).abs() for w in wanted if w.numel()]
    mask = _mask_of(sizes)
    sizes = [torch.where(size < mask, size, 0.0) for size in sizes]
    whole = max((float(size.max()) for size in sizes), default=0.0)
    columns = []
    for axis in axes if whole > 0 else ():
        of_batches = [_largest_of(size, axis) for size in sizes]
        columns.append((axis, _alike(torch.stack(of_batches).amax(0), whole)))
    return Scale(tuple(columns), whole, mask)


def difference(got: Tensor, want: Tensor, scale: Scale | None = None) -> Difference:
    """The difference between an answer and the wanted one; see the head of this file for the measure."""
    if got.shape != want.shape or got.is_floating_point() != want.is_floating_point():
        return _APART
    if want.numel() == 0:
        return NONE
    if not want.is_floating_point():
        differs = got.long() != want.long()
        largest = (got.double() - want.double()).abs().max()
        return Difference(float(largest), float(differs.double().mean()))
    found, wanted = got.double(), want.double()
    finite = torch.isfinite(wanted)
    if not torch.equal(torch.isfinite(found), finite) or not torch.equal(
        found[~finite].nan_to_num(nan=0.0), wanted[~finite].nan_to_num(nan=0.0)
    ):
        return _APART
    off = torch.where(finite, (found - wanted).abs(), 0.0)
    return Difference(float(off.max()), _relative(off, wanted, scale or scale_of([wanted], ())))


def _relative(off: Tensor, wanted: Tensor, scale: Scale) -> float:
    masked = torch.isfinite(wanted) & (wanted.abs() >= scale.mask)
    worst = float((off[masked] / wanted[masked].abs()).max()) if bool(masked.any()) else 0.0
    off = torch.where(masked, 0.0, off)
    worst = max(worst, float(off.max()) / (scale.whole or 1.0))
    for axis, columns in scale.columns:
        worst = max(worst, float((_largest_of(off, axis) / columns).max()))
    return worst


def _largest_of(sizes: Tensor, axis: int) -> Tensor:
    """The largest of each column of an axis, which may be the only one."""
    return sizes.movedim(axis, 0).flatten(1).amax(1) if sizes.dim() > 1 else sizes


def _alike(columns: Tensor, whole: float) -> Tensor:
    """The size of each column, with that of the largest among columns of like size; none far below whole."""
    order = torch.argsort(columns, descending=True)
    ordered = columns[order]
    # A column of zeros has no size of its own: it goes with the smallest that have one.
    starts = (ordered[1:] > 0) & (ordered[1:] * _ALIKE < ordered[:-1])
    group = torch.cat([torch.zeros(1, dtype=torch.long), starts.long().cumsum(0)])
    first = torch.cat([torch.zeros(1, dtype=torch.long), starts.nonzero().flatten() + 1])
    sizes = torch.empty_like(columns)
    sizes[order] = ordered[first][group]
    return sizes.clamp_min(whole * _LEAST_SHARE)


def _mask_of(sizes: Sequence[Tensor]) -> float:
    """The least magnitude that is a mask's, infinite where no value is one."""
    most = max((float(size.max()) for size in sizes), default=0.0)
    least = most / _MASK_RANGE
    if least < _LEAST_MASK:
        return math.inf
    below = max(float(torch.where(size < least, size, 0.0).max()) for size in sizes)
    return least if below * _MASK_GAP <= least else math.inf
