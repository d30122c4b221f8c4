"""How far an answer is from the wanted one. Pure. In step with models/export/difference.py; a test compares."""

import numpy as np


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """How far an answer is from the wanted one; the measure in which the manifest states its tolerance.

    Floats: the largest difference relative to the largest value wanted (to 1 where that is all zeros).
    Integers and booleans: the share of elements that differ. Infinite when shape or kind differ, or when the
    values that are not finite are not the same. Keep in step with models/export/difference.py; a test does.
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
    largest = float(np.abs(found[finite] - wanted[finite]).max(initial=0.0))
    scale = float(np.abs(wanted[finite]).max(initial=0.0))
    return largest / scale if scale > 0 else largest
