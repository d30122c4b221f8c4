"""Finished requests as records in shared memory, folded into the metric cells in bulk.

    append()       one struct.pack_into of ten numbers into this writer's ring
    when full      the records are folded into the row's cells, vectorised, and the ring begins anew
    at a read      totals = cells + the records not folded yet, of every writer

A request is observed in eight histograms, each a bisection and two additions. One by one that is a tenth of a
small request's time; as a record it is one store. Nothing is late: a scrape through any process reads the records.

One writer thread per ring. `sequence` is odd during a fold, and a reader that met one reads again; a record counts
once `count` has moved past it.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

RECORDS: Final = 1024
_RECORD: Final = struct.Struct("<10d")
_SEQUENCE, _COUNT = 0, 1
HEAD_CELLS: Final = 2
RING_CELLS: Final = HEAD_CELLS + RECORDS * 10
"""Cells of 8 bytes that one ring takes."""


@dataclass(frozen=True)
class Columns:
    """Where the numbers of a record go.

    cells: [lane, column] first cell of the histogram in which a lane's column is observed.
    bounds: per column, the histogram's upper bounds.
    """

    cells: np.ndarray
    bounds: Sequence[np.ndarray]

    def fold(self, records: np.ndarray, cells: np.ndarray) -> None:
        """Add records (n, 10) to cells: [0] a counter's cell, [1] the lane, [2:] the columns."""
        np.add.at(cells, records[:, 0].astype(np.int64), 1.0)
        lanes = records[:, 1].astype(np.int64)
        for column, bounds in enumerate(self.bounds):
            values = records[:, 2 + column]
            first = self.cells[lanes, column]
            np.add.at(cells, first + np.searchsorted(bounds, values), 1.0)
            np.add.at(cells, first + len(bounds) + 1, values)


class RequestRing:
    """One writer's ring. `memory`: RING_CELLS cells of shared memory; `cells`: the same writer's metric cells."""

    def __init__(self, memory: "memoryview[float]", cells: np.ndarray, columns: Columns) -> None:
        self._bytes = memoryview(memory).cast("B")
        self._head = self._bytes[: HEAD_CELLS * 8].cast("q")
        self._records = np.frombuffer(self._bytes, np.float64)[HEAD_CELLS:].reshape(RECORDS, 10)
        self._cells = cells
        self._columns = columns

    def append(self, *record: float) -> None:
        """Count one request: its counter's cell, its lane, its eight columns. By the writer alone."""
        count = self._head[_COUNT]
        if count == RECORDS:
            self._fold()
            count = 0
        _RECORD.pack_into(self._bytes, HEAD_CELLS * 8 + count * _RECORD.size, *record)
        self._head[_COUNT] = count + 1

    def _fold(self) -> None:
        self._head[_SEQUENCE] += 1
        self._columns.fold(self._records, self._cells)
        self._head[_COUNT] = 0
        self._head[_SEQUENCE] += 1

    def read(self) -> np.ndarray:
        """The writer's cells with the records that are not folded yet. By any process."""
        while True:
            before = self._head[_SEQUENCE]
            cells = self._cells.copy()
            records = self._records[: self._head[_COUNT]].copy()
            if before % 2 == 0 and self._head[_SEQUENCE] == before:
                self._columns.fold(records, cells)
                return cells
