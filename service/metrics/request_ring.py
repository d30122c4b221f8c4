"""Finished requests as records in shared memory, folded into the writer's metric cells in bulk.

    append()       one struct.pack_into of ten numbers into this writer's ring
    when full      bank B = bank A + the records, vectorised; then one store makes B the bank and empties the ring
    at a read      the bank + the records that are not folded yet

A request is observed in eight histograms, each a bisection and two additions. One by one that is a tenth of a
small request's time; as a record it is one store. Nothing is late: a scrape through any process reads the records.

One writer thread per ring; readers in any process, which never wait for it. The word at the front holds how often
the ring was folded and how many records it holds, and is written by one store of 8 bytes: a writer that is killed
at any moment, in a fold too, leaves exact numbers behind, and the next writer goes on from there. A reader that
finds the word folded further than before it copied has seen two states, and copies again; that takes RECORDS
requests in the time of a copy.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

RECORDS: Final = 1024
_FIELDS: Final = 10
_RECORD: Final = struct.Struct(f"<{_FIELDS}d")
_CELL_BYTES: Final = 8
_COUNT_BITS: Final = 16
"""Of the word; folds stand above. 2**47 folds of RECORDS requests are more than a server lives to see."""
_COUNT_MASK: Final = (1 << _COUNT_BITS) - 1
assert RECORDS <= _COUNT_MASK


def ring_cells(width: int) -> int:
    """Cells of 8 bytes that the ring of a writer with `width` metric cells takes: the word, two banks, records."""
    return 1 + 2 * width + RECORDS * _FIELDS


@dataclass(frozen=True)
class RingLayout:
    """Where the numbers of a record go.

    cells: [row of the model table, column] first cell of the histogram in which a model's column is observed.
    bounds: per column, the histogram's upper bounds.
    """

    cells: np.ndarray
    bounds: Sequence[np.ndarray]

    def fold(self, records: np.ndarray, cells: np.ndarray) -> None:
        """Add records (n, 10) to cells: [0] a counter's cell, [1] the model's row, [2:] the columns."""
        np.add.at(cells, records[:, 0].astype(np.int64), 1.0)
        rows = records[:, 1].astype(np.int64)
        for column, bounds in enumerate(self.bounds):
            values = records[:, 2 + column]
            first = self.cells[rows, column]
            np.add.at(cells, first + np.searchsorted(bounds, values), 1.0)
            np.add.at(cells, first + len(bounds) + 1, values)


class RequestRing:
    """One writer's ring. `memory`: ring_cells(width) cells of shared memory, zero at first."""

    def __init__(self, memory: "memoryview[float]", width: int, layout: RingLayout) -> None:
        self._bytes = memoryview(memory).cast("B")
        self._word = self._bytes[:_CELL_BYTES].cast("q")
        cells = np.frombuffer(self._bytes, np.float64)
        self._banks = cells[1 : 1 + 2 * width].reshape(2, width)
        self._records = cells[1 + 2 * width :].reshape(RECORDS, _FIELDS)
        self._records_at = (1 + 2 * width) * _CELL_BYTES
        self._layout = layout

    def append(self, *record: float) -> None:
        """Count one request: its counter's cell, its model's row, its eight columns. By the writer alone."""
        word = self._word[0]
        count = word & _COUNT_MASK
        if count == RECORDS:
            self._fold(word >> _COUNT_BITS)
            word, count = self._word[0], 0
        _RECORD.pack_into(self._bytes, self._records_at + count * _RECORD.size, *record)
        self._word[0] = word + 1

    def _fold(self, folds: int) -> None:
        following = self._banks[(folds + 1) & 1]
        following[:] = self._banks[folds & 1]
        self._layout.fold(self._records, following)
        self._word[0] = (folds + 1) << _COUNT_BITS

    def read_into(self, cells: np.ndarray) -> None:
        """Add everything that was ever appended to `cells`. By any process."""
        while word := self._word[0]:  # 0: nothing ever was
            folds = word >> _COUNT_BITS
            bank = self._banks[folds & 1].copy()
            records = self._records[: word & _COUNT_MASK].copy()
            if self._word[0] >> _COUNT_BITS == folds:
                cells += bank
                self._layout.fold(records, cells)
                return
