"""About how long answers take to be written, by what they hold: what takes long is not done on an event loop.

The cost is in the values and rows, and differs by the form: a float as JSON takes 20 ns, as a class with its label a
microsecond. Measured on one core of a server processor, with other work beside it.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np

AT_ONCE_NS: Final = 2_000_000
"""What an event loop may be held for; of more, the codec process writes the answer."""
SMALL_BYTES: Final = 4096
"""Outputs of no more bytes are written at once, whatever is asked: 2.5 ms at the worst, classes of UINT8."""
_FLOAT_NS: Final = 20
_INT_NS: Final = 6
_ROW_NS: Final = 70
"""A list, besides what is in it."""
_OBJECT_NS: Final = 1200
"""A value that becomes an object of Python's, with a text of its own."""
_SORT_NS: Final = 150
"""A value in what is sorted for the largest."""
_COPY_NS: Final = 1
"""A byte that is copied as it is, until it is sent."""


def json_ns(arrays: Iterable[np.ndarray]) -> int:
    """Of numbers as JSON."""
    return sum(
        array.size * (_FLOAT_NS if array.dtype.kind == "f" else _INT_NS)
        + (array.size // max(1, array.shape[-1]) if array.ndim else 1) * _ROW_NS
        for array in arrays
    )


def objects_ns(arrays: Iterable[np.ndarray]) -> int:
    """Of numbers that become Python's one by one."""
    return sum(array.size for array in arrays) * _OBJECT_NS


def largest_ns(array: np.ndarray, count: int) -> int:
    """Of so many of the largest values of each row, each with a label."""
    rows = len(array) if array.ndim else 1
    columns = array.size // max(1, rows)
    return array.size * _SORT_NS + rows * min(count, columns) * _OBJECT_NS


def copy_ns(arrays: Iterable[np.ndarray]) -> int:
    """Of bytes as they are."""
    return sum(array.nbytes for array in arrays) * _COPY_NS
