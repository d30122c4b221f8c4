"""Batch sizes: which are allowed, which are warmed, and how rows are padded up to one. Pure."""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np


def bucket_for(rows: int, buckets: Sequence[int]) -> int:
    """The smallest bucket (ascending) that takes `rows`; `rows` itself when there are no buckets."""
    return buckets[bisect_left(buckets, rows)] if buckets and rows <= buckets[-1] else rows


def sizes_to_warm(buckets: Sequence[int], max_batch_size: int) -> tuple[int, ...]:
    """The batch sizes to run before a model is ready: every bucket, or powers of two up to the largest."""
    if buckets:
        return tuple(buckets)
    powers = (2**exponent for exponent in range(max_batch_size.bit_length()))
    return tuple(sorted({*powers, max_batch_size}))


def padded(array: np.ndarray, rows: int) -> np.ndarray:
    """`rows` rows: those of the array, then its last one again. The array itself when nothing is missing.

    The last row is one that the model can surely take, which zeros need not be.
    """
    if len(array) == rows:
        return array
    filled = np.empty((rows, *array.shape[1:]), array.dtype)
    filled[: len(array)] = array
    filled[len(array) :] = array[-1]
    return filled
