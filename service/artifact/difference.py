"""How far an answer is from the wanted one. Pure. In step with models/export/difference.py; a test compares."""

from collections.abc import Sequence

import numpy as np

# What they stand for, and why they are so large: models/export/difference.py.
_ALIKE = 10.0
_LEAST_SHARE = 2.0**-12
_LEAST_MASK = 1e3
_MASK_GAP = 100.0
_MASK_RANGE = 1.1


def relative_error(got: np.ndarray, want: np.ndarray, axes: Sequence[int] = ()) -> float:
    """How far an answer is from the wanted one; the measure in which the manifest states its tolerances.

    Floats: the largest difference relative to the largest value wanted (to 1 where that is all zeros), and in each
    column of axes relative to the size of the column; a mask's values, such as -1e9, are relative to themselves.
    Integers and booleans: the share of elements that differ. Infinite when shape or kind differ, or when the
    values that are not finite are not the same.

    Args:
        axes: those of fixed size, other than the rows; without any, only the whole tensor is looked at.
    """
    if got.shape != want.shape or (got.dtype.kind == "f") != (want.dtype.kind == "f"):
        return float("inf")
    if want.size == 0:
        return 0.0
    if want.dtype.kind != "f":
        return float(np.mean(got != want))
    found, wanted = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(wanted)
    if not np.array_equal(np.isfinite(found), finite) or not np.array_equal(
        found[~finite], wanted[~finite], equal_nan=True
    ):
        return float("inf")
    sizes = np.abs(np.where(finite, wanted, 0.0))
    off = np.abs(np.where(finite, found, 0.0) - np.where(finite, wanted, 0.0))
    masked = sizes >= _mask_of(sizes)
    worst = float((off[masked] / sizes[masked]).max(initial=0.0))
    off, sizes = np.where(masked, 0.0, off), np.where(masked, 0.0, sizes)
    whole = float(sizes.max())
    worst = max(worst, float(off.max()) / (whole if whole > 0 else 1.0))
    for axis in axes if whole > 0 else ():
        others = tuple(a for a in range(want.ndim) if a != axis)
        columns = _alike(sizes.max(axis=others), whole)
        worst = max(worst, float((off.max(axis=others) / columns).max()))
    return worst


def _alike(columns: np.ndarray, whole: float) -> np.ndarray:
    """The size of each column, with that of the largest among columns of like size; none far below whole."""
    order = np.argsort(-columns, kind="stable")
    ordered = columns[order]
    starts = np.concatenate([[False], (ordered[1:] > 0) & (ordered[1:] * _ALIKE < ordered[:-1])])
    first = np.concatenate([[0], np.flatnonzero(starts)])
    sizes = np.empty_like(columns)
    sizes[order] = ordered[first][np.cumsum(starts)]
    return sizes.clip(min=whole * _LEAST_SHARE)


def _mask_of(sizes: np.ndarray) -> float:
    """The least magnitude that is a mask's, infinite where no value is one."""
    least = float(sizes.max()) / _MASK_RANGE
    if least < _LEAST_MASK:
        return float("inf")
    below = float(sizes[sizes < least].max(initial=0.0))
    return least if below * _MASK_GAP <= least else float("inf")
