"""Numbers that several processes count together: one row of float64 cells per writer, summed when read.

before     every writer process: rows[writer][cell] += amount          (its own row, nobody else's)
at a read  totals[cell] = sum over rows (or max, where the metric says so)

The cells lie in anonymous memory that every process maps. It is made before the processes start, with its size
fixed by the declared metrics and the rows of the model table, so that nothing is created, renamed or locked
between processes while serving, and nothing is left behind. A restarted worker goes on in the row of the one
that died: totals never fall. An aligned 8-byte store is not torn on the platforms served, so a reader needs no
lock; within a process the row's lock makes `+=` whole when several threads write.

Knows nothing of what is counted (recorder.py) nor of Prometheus (exposition.py).
"""

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from foldserve.service.ipc.handles import SharedMemory
from foldserve.service.metrics.request_ring import RequestRing, RingLayout, ring_cells

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
    no_model: the labels of the model for what named none that is served; None where there is no such thing.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()
    combine: Literal["sum", "max"] = "sum"
    from_zero: Callable[[tuple[str, ...]], bool] = _all
    no_model: tuple[str, str] | None = None

    @property
    def of_models(self) -> bool:
        """Whether it is counted for each model version."""
        return self.labels[:2] == MODEL_LABELS

    @property
    def own_labels(self) -> tuple[str, ...]:
        """The labels besides those of the model."""
        return self.labels[2:] if self.of_models else self.labels

    @property
    def cells(self) -> int:
        """Cells of one series: a histogram has one per bucket, one for +Inf and one for the sum."""
        return len(self.buckets) + 2 if self.kind == "histogram" else 1


MODEL_LABELS: Final = ("model", "version")
"""With these begin the labels of what is counted for each model version."""


class CellLayout:
    """Which cell belongs to which series. The same in every process that is given the same arguments.

    A metric of models has the same series for each row of the model table, one row behind the other, and for requests
    that named none where it says so: those of the row after the last. What a row's model is called plays no part.
    """

    def __init__(
        self, metrics: Iterable[Metric], series: Mapping[str, Sequence[tuple[str, ...]]], models: int
    ) -> None:
        """
        Args:
            metrics: what is counted.
            series: metric name -> every tuple of values that its labels can have, without those of the model.
            models: rows of the model table.
        Raises: ValueError when a tuple does not match the metric's labels.
        """
        self.metrics = tuple(metrics)
        self.models = models
        self._of: dict[str, tuple[int, int, dict[tuple[str, ...], int]]] = {}
        """By metric: its first cell, the cells of a row, and where in a row each series begins."""
        width = 0
        for metric in self.metrics:
            at: dict[tuple[str, ...], int] = {}
            for values in dict.fromkeys(series.get(metric.name, [()])):
                if len(values) != len(metric.own_labels):
                    raise ValueError(f"metric {metric.name} has labels {metric.own_labels}, got {values}")
                at[values] = len(at) * metric.cells
            self._of[metric.name] = width, len(at) * metric.cells, at
            width += self._rows(metric) * len(at) * metric.cells
        self.width = width

    def cell(self, metric: Metric, row: int, *values: str) -> int:
        """The first cell of the series with these values of the labels. row: of the model; 0 where there is none."""
        first, stride, at = self._of[metric.name]
        return first + row * stride + at[values]

    def series(
        self, metric: Metric, models: Iterable[tuple[int, tuple[str, str]]]
    ) -> dict[tuple[str, ...], int]:
        """The first cell of each series of these models, by the values of all labels.

        Args:
            models: row, and the values of MODEL_LABELS.
        """
        rows: Iterable[tuple[int, tuple[str, ...]]] = models if metric.of_models else [(0, ())]
        if metric.no_model is not None:
            rows = [*rows, (self.models, metric.no_model)]
        return {
            (*labels, *values): self.cell(metric, row, *values)
            for row, labels in rows
            for values in self._of[metric.name][2]
        }

    def cells_of_row(self, row: int) -> np.ndarray:
        """The indices of every cell of a row of the model table."""
        return _indices(
            (first + row * stride, stride)
            for metric in self.metrics
            if metric.of_models
            for first, stride, _ in [self._of[metric.name]]
        )

    def cells_where(self, chosen: Callable[[Metric], bool]) -> np.ndarray:
        """The indices of every cell of the metrics that are chosen."""
        return _indices(
            (first, self._rows(metric) * stride)
            for metric in self.metrics
            if chosen(metric)
            for first, stride, _ in [self._of[metric.name]]
        )

    def _rows(self, metric: Metric) -> int:
        return self.models + (metric.no_model is not None) if metric.of_models else 1


def _indices(spans: Iterable[tuple[int, int]]) -> np.ndarray:
    return np.concatenate([np.arange(0), *(np.arange(first, first + size) for first, size in spans)])


class WriterCells:
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
    """The shared memory: a row per writer, its cells and then its ring of requests (request_ring.py); at the end what
    had been counted of each cell when its row of the model table was given to another model."""

    def __init__(self, memory: SharedMemory, layout: CellLayout, rows: int, ring: RingLayout) -> None:
        """Map memory that create() made for the same layout and rows."""
        self.memory = memory
        self.layout = layout
        self._map = memory.map()
        shared = memoryview(self._map).cast("d")
        width = layout.width + ring_cells(layout.width)
        starts = range(0, rows * width, width)
        self._rows = [shared[at : at + layout.width] for at in starts]
        cells = np.frombuffer(self._map, np.float64)
        self._table = cells[: rows * width].reshape(rows, width)[:, : layout.width]
        self._before = cells[rows * width :]
        self.rings = [
            RequestRing(shared[at + layout.width : at + width], layout.width, ring) for at in starts
        ]
        self._max_cells = layout.cells_where(lambda metric: metric.combine == "max")
        self._gauge_cells = layout.cells_where(lambda metric: metric.kind == "gauge")

    @classmethod
    def create(cls, layout: CellLayout, rows: int, ring: RingLayout) -> "Store":
        """Make the memory, all zero, and map it."""
        cells = rows * (layout.width + ring_cells(layout.width)) + layout.width
        return cls(SharedMemory("metrics", cells * CELL_BYTES), layout, rows, ring)

    def row(self, index: int) -> WriterCells:
        """The row of one writer."""
        return WriterCells(self._rows[index])

    def totals(self) -> np.ndarray:
        """One number per cell, over all rows."""
        # Sums of seconds may differ in the last bit with the order of their parts: nothing is less than nothing.
        totals: np.ndarray = np.maximum(self._counted() - self._before, 0.0)
        totals[self._max_cells] = self._table[:, self._max_cells].max(axis=0)
        return totals

    def _counted(self) -> np.ndarray:
        """The sum of each cell from the start of the server on."""
        counted: np.ndarray = self._table.sum(axis=0)
        for ring in self.rings:
            ring.read_into(counted)
        return counted

    def restart(self, cells: np.ndarray) -> None:
        """Count these from zero again; for one process alone. Nobody's cells are touched: each has its own writer."""
        self._before[cells] = self._counted()[cells]

    def reset_gauges(self, index: int) -> None:
        """Set the gauges of a dead writer's row to 0: what it held is gone. Its counts stay."""
        self._table[index, self._gauge_cells] = 0.0
