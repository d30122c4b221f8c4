"""Numbers that several processes count together: one row of float64 cells per writer, summed when read.

before     every writer process: rows[writer][cell] += amount          (its own row, nobody else's)
at a read  totals[cell] = sum over rows (or max, where the metric says so)

The cells lie in anonymous memory that every process maps. It is made before the processes start, with its size
fixed by the declared metrics and the label values known then, so that nothing is created, renamed or locked
between processes while serving, and nothing is left behind. A restarted worker goes on in the row of the one
that died: totals never fall. An aligned 8-byte store is not torn on the platforms served, so a reader needs no
lock; within a process the row's lock makes `+=` whole when several threads write.

Knows nothing of what is counted (recorder.py) nor of Prometheus (exposition.py).
"""

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from foldserve.service.ipc.handles import SharedMemory
from foldserve.service.metrics.request_ring import Columns, RequestRing, ring_cells

CELL_BYTES = 8

Kind = Literal["counter", "gauge", "histogram"]


def _all(values: tuple[str, ...]) -> bool:
    return True


@dataclass(frozen=True)
class Metric:
    """What is counted under one name.

    labels: label names, in the order in which label values are given everywhere.
    buckets: a histogram's upper bounds, ascending, without +Inf.
    combine: how the writers' cells become one number.
    from_zero: which series are exposed before they ever counted: a burst of what is first counted after them is an
        increase. For all others a first burst is invisible; there are too many that never occur.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()
    combine: Literal["sum", "max"] = "sum"
    from_zero: Callable[[tuple[str, ...]], bool] = _all

    @property
    def cells(self) -> int:
        """Cells of one series: a histogram has one per bucket, one for +Inf and one for the sum."""
        return len(self.buckets) + 2 if self.kind == "histogram" else 1


class Layout:
    """Which cell belongs to which series. The same in every process that is given the same arguments."""

    def __init__(self, metrics: Iterable[Metric], series: Mapping[str, Sequence[tuple[str, ...]]]) -> None:
        """
        Args:
            metrics: what is counted.
            series: metric name -> every tuple of label values that can occur.
        Raises: ValueError when a tuple does not match the metric's labels.
        """
        self.metrics = tuple(metrics)
        self.offsets: dict[str, dict[tuple[str, ...], int]] = {}
        width = 0
        for metric in self.metrics:
            of_metric = self.offsets[metric.name] = {}
            for values in dict.fromkeys(series[metric.name]):
                if len(values) != len(metric.labels):
                    raise ValueError(f"metric {metric.name} has labels {metric.labels}, got {values}")
                of_metric[values] = width
                width += metric.cells
        self.width = width

    def cells_of(self, kind: Kind) -> np.ndarray:
        """The indices of every cell of the metrics of one kind."""
        return self._cells(metric for metric in self.metrics if metric.kind == kind)

    def cells_combined_by_max(self) -> np.ndarray:
        """The indices of the cells whose total is the largest row, not the sum."""
        return self._cells(metric for metric in self.metrics if metric.combine == "max")

    def _cells(self, metrics: Iterable[Metric]) -> np.ndarray:
        cells = [
            offset + i
            for metric in metrics
            for offset in self.offsets[metric.name].values()
            for i in range(metric.cells)
        ]
        return np.array(cells, dtype=np.int64)


class Row:
    """The cells of one writer. Written by one process at a time; its threads may share it."""

    def __init__(self, cells: "memoryview[float]") -> None:
        self._cells = cells
        self.lock = threading.Lock()

    # The methods below are called with the lock held, so that one request's numbers cost one acquisition.

    def add(self, cell: int, amount: float) -> None:
        """Add to a counter or gauge."""
        self._cells[cell] += amount

    def set(self, cell: int, value: float) -> None:
        """Set a gauge."""
        self._cells[cell] = value

    def observe(self, cell: int, buckets: tuple[float, ...], value: float) -> None:
        """Count a value in the histogram whose cells begin at `cell`."""
        self._cells[cell + bisect_left(buckets, value)] += 1.0
        self._cells[cell + len(buckets) + 1] += value


class Store:
    """The shared memory: a row per writer, its cells and then its ring of requests (request_ring.py)."""

    def __init__(self, memory: SharedMemory, layout: Layout, rows: int, columns: Columns) -> None:
        """Map memory that create() made for the same layout and rows."""
        self.memory = memory
        self.layout = layout
        self._map = memory.map()
        shared = memoryview(self._map).cast("d")
        width = layout.width + ring_cells(layout.width)
        starts = range(0, rows * width, width)
        self._rows = [shared[at : at + layout.width] for at in starts]
        self._table = np.frombuffer(self._map, np.float64).reshape(rows, width)[:, : layout.width]
        self.rings = [
            RequestRing(shared[at + layout.width : at + width], layout.width, columns) for at in starts
        ]
        self._max_cells = layout.cells_combined_by_max()
        self._gauge_cells = layout.cells_of("gauge")

    @classmethod
    def create(cls, layout: Layout, rows: int, columns: Columns) -> "Store":
        """Make the memory, all zero, and map it."""
        cells = rows * (layout.width + ring_cells(layout.width))
        return cls(SharedMemory("metrics", cells * CELL_BYTES), layout, rows, columns)

    def row(self, index: int) -> Row:
        """The row of one writer."""
        return Row(self._rows[index])

    def totals(self) -> np.ndarray:
        """One number per cell, over all rows."""
        totals: np.ndarray = self._table.sum(axis=0)
        totals[self._max_cells] = self._table[:, self._max_cells].max(axis=0)
        for ring in self.rings:
            ring.read_into(totals)
        return totals

    def reset_gauges(self, index: int) -> None:
        """Set the gauges of a dead writer's row to 0: what it held is gone. Its counts stay."""
        self._table[index, self._gauge_cells] = 0.0
