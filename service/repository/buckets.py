"""Batch sizes: which are allowed, which are warmed, and how rows are padded up to one. Pure."""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np


def bucket_for(rows: int, buckets: Sequence[int]) -> int:
    """The smallest bucket (ascending) that takes `rows`; `rows` itself when there are no buckets."""
    return buckets[bisect_left(buckets, rows)] if buckets and rows <= buckets[-1] else rows


def buckets_for(device: str, configured: Sequence[int], max_batch_size: int) -> tuple[int, ...]:
    """The buckets that a model is run at on a device, ascending; none = at any size up to max_batch_size.

    Those of config.yaml where it names any. Otherwise powers of two and max_batch_size on a GPU, which prepares
    (plans convolutions, captures graphs) for each size anew; none on the CPU, which only loses time to padding.

    Args:
        device: "cpu" or "cuda:N".
        configured: config.yaml's batch_buckets, ascending; may be empty.
    """
    if configured or device == "cpu":
        return tuple(configured)
    return _powers_of_two(max_batch_size)


def sizes_to_warm(buckets: Sequence[int], max_batch_size: int) -> tuple[int, ...]:
    """The batch sizes to run before a model is ready: every bucket, or powers of two up to the largest."""
    return tuple(buckets) or _powers_of_two(max_batch_size)


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


def _powers_of_two(largest: int) -> tuple[int, ...]:
    """1, 2, 4, ... below `largest`, then `largest` itself."""
    return tuple(sorted({*(2**exponent for exponent in range(largest.bit_length())), largest}))
