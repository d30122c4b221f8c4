"""Every metric that foldserve exposes, and the calls that count them.

The names are a contract (docs/operations.md lists them; a test compares). Base units: seconds, bytes. Who
calls what: inference/observers.py calls request_finished, and a request that was answered an answered_counter; a worker
batch_finished, retried and model_loaded; the supervising process worker_restarted and writer_died. What is
queued, in flight, ready and below its batch limit is not counted but seen at the scrape (ipc/slots/slot_counts.py).
Label values come from fixed sets, made before the processes start (MetricsLayoutSpec), and from the model table: a
client cannot make a new series.

Must not know HTTP or Prometheus. Where the numbers live: store.py. How they are read:
exposition.py.
"""

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as distribution_version
from itertools import product

import numpy as np

from foldserve.service.ipc.handles import SharedMemory
from foldserve.service.metrics import request_ring
from foldserve.service.metrics.catalog import (
    BATCH_REASONS,
    BATCH_ROWS,
    BATCHES,
    BUILD_INFO,
    CODES,
    CONNECTION_REFUSALS,
    CONNECTIONS_REFUSED,
    DURATION_BUCKETS,
    EXPOSED,
    MODEL_LOAD,
    PADDING_ROWS,
    PROTOCOLS,
    REJECTED,
    REJECTIONS,
    REQUEST_DURATION,
    REQUEST_ROWS,
    REQUESTS,
    RETRIED,
    ROW_BUCKETS,
    STAGE_BUCKETS,
    STAGE_DURATION,
    STAGES,
    WORKER_RESTARTS,
    BatchReason,
)
from foldserve.service.metrics.request_ring import RingLayout
from foldserve.service.metrics.store import CellLayout, Store, WriterCells


@dataclass(frozen=True)
class MetricsLayoutSpec:
    """What must be known before the processes start.

    models: rows of the model table.
    devices: every device a worker may own ("cpu", "cuda:0").
    writers: a name for every process that writes; the place in the tuple is the row.
    """

    models: int
    devices: tuple[str, ...]
    writers: tuple[str, ...]

    def layout(self) -> CellLayout:
        """The cells for so many models and these devices."""
        series: dict[str, list[tuple[str, ...]]] = {
            REQUESTS.name: list(product(PROTOCOLS, CODES)),
            STAGE_DURATION.name: [(stage,) for stage in STAGES],
            BATCHES.name: [(reason,) for reason in BATCH_REASONS],
            REJECTED.name: [(code,) for code in REJECTIONS],
            WORKER_RESTARTS.name: [(device,) for device in self.devices],
            CONNECTIONS_REFUSED.name: [(reason,) for reason in CONNECTION_REFUSALS],
            BUILD_INFO.name: [build_info()],
        }
        return CellLayout(EXPOSED, series, self.models)


class Metrics:
    """Counts into this process's row; reads everybody's.

    Made by the supervising process with create(); forked processes inherit it and call write_as(); spawned
    ones attach() to the same memory. Not to be shared by two processes under one writer name.

    rows: which row of the model table a model version has, for those who know it by name; kept by whoever owns this.
    """

    def __init__(self, spec: MetricsLayoutSpec, store: Store, writer: str) -> None:
        self.spec = spec
        self.store = store
        self.rows: dict[tuple[str, str], int] = {}
        self._cell = store.layout.cell
        self.write_as(writer)

    @classmethod
    def create(cls, spec: MetricsLayoutSpec) -> "Metrics":
        """Make the memory and count as the spec's first writer."""
        layout = spec.layout()
        metrics = cls(spec, Store.create(layout, len(spec.writers), _ring_layout(layout)), spec.writers[0])
        with metrics._row.lock:
            metrics._row.set(metrics._cell(BUILD_INFO, 0, *build_info()), 1.0)
        return metrics

    @classmethod
    def attach(cls, memory: SharedMemory, spec: MetricsLayoutSpec, writer: str) -> "Metrics":
        """Map memory that create() made with the same spec."""
        layout = spec.layout()
        return cls(spec, Store(memory, layout, len(spec.writers), _ring_layout(layout)), writer)

    def write_as(self, writer: str) -> None:
        """Count into this writer's row from now on (called in a process just forked)."""
        index = self.spec.writers.index(writer)
        self._row: WriterCells = self.store.row(index)
        self._ring = self.store.rings[index]

    # -- called by the frontend

    def request_finished(
        self,
        protocol: str,
        model: str,
        version: str,
        status: int,
        duration_s: float,
        *,
        rows: int = 0,
        stages_s: Mapping[str, float] | None = None,
        error_code: str | None = None,
    ) -> None:
        """Count one answered request.

        Args:
            protocol: one of PROTOCOLS; anything else counts as "other".
            model, version: as served; "" (or unknown ones) when the request named none that is.
            status: the HTTP status; 499 for a client that went away.
            duration_s: from the request's head to the answer.
            rows: 0 when the request did not get far enough to have any.
            stages_s: seconds by stage name (STAGES), for those stages that were passed.
            error_code: the error's stable word; those that mean "refused" count in foldserve_rejected_total.
        """
        model_row = self.rows.get((model, version))
        counted_at = self.spec.models if model_row is None else model_row
        protocol = protocol if protocol in PROTOCOLS else "other"
        code = str(status) if str(status) in CODES else "other"
        row, cell = self._row, self._cell
        with row.lock:
            row.add(cell(REQUESTS, counted_at, protocol, code), 1.0)
            if error_code in REJECTIONS:
                row.add(cell(REJECTED, counted_at, error_code), 1.0)
            if model_row is None:
                return
            row.observe(cell(REQUEST_DURATION, model_row), DURATION_BUCKETS, duration_s)
            if rows:
                row.observe(cell(REQUEST_ROWS, model_row), ROW_BUCKETS, rows)
            for stage, seconds in (stages_s or {}).items():
                row.observe(cell(STAGE_DURATION, model_row, stage), STAGE_BUCKETS, seconds)

    def answered_counter(self, protocol: str, model_row: int) -> Callable[..., None]:
        """Counts answered requests (status 200) of one protocol and row of the model table; the quick way.

        Called with duration_s, rows, and the seconds of each of STAGES in order. By one thread only.
        """
        cell = float(self._cell(REQUESTS, model_row, protocol, "200"))
        return partial(self._ring.append, cell, float(model_row))

    def connection_refused(self, reason: str) -> None:
        """A connection could not be taken now, or was sent away."""
        with self._row.lock:
            self._row.add(self._cell(CONNECTIONS_REFUSED, 0, reason), 1.0)

    # Called by a worker; model_row: of the model table --------------------------------------------------

    def model_loaded(self, model_row: int, load_s: float) -> None:
        """A worker has loaded, warmed and checked a model; 0: it has it no longer."""
        with self._row.lock:
            self._row.set(self._cell(MODEL_LOAD, model_row), load_s)

    def batch_finished(self, model_row: int, rows: int, padding: int, reason: BatchReason) -> None:
        """A batch was run."""
        row, cell = self._row, self._cell
        with row.lock:
            row.observe(cell(BATCH_ROWS, model_row), ROW_BUCKETS, rows)
            row.add(cell(BATCHES, model_row, reason), 1.0)
            row.add(cell(PADDING_ROWS, model_row), padding)

    def retried(self, model_row: int, requests: int) -> None:
        """Requests are run again because the batch they were in failed."""
        with self._row.lock:
            self._row.add(self._cell(RETRIED, model_row), requests)

    def load_seconds(self, model_row: int) -> float:
        """What model_loaded was last given, by the slowest worker."""
        return float(self.store.totals()[self._cell(MODEL_LOAD, model_row)])

    # Called by the supervising process -------------------------------------------------------------------

    def restart_model(self, model_row: int) -> None:
        """A row of the model table is another model's from now on: its counters begin at 0, under a new label pair."""
        self.store.restart(self.store.layout.cells_of_row(model_row))

    def worker_restarted(self, device: str) -> None:
        """A worker that died was started again."""
        with self._row.lock:
            self._row.add(self._cell(WORKER_RESTARTS, 0, device), 1.0)

    def writer_died(self, writer: str) -> None:
        """A process has ended: nothing it held is queued, in flight or ready any more."""
        self.store.reset_gauges(self.spec.writers.index(writer))


def _ring_layout(layout: CellLayout) -> RingLayout:
    """Where a ring's record goes: by row of the model table, the histograms of duration, rows and each stage."""
    cells = [
        [
            layout.cell(REQUEST_DURATION, row),
            layout.cell(REQUEST_ROWS, row),
            *(layout.cell(STAGE_DURATION, row, stage) for stage in STAGES),
        ]
        for row in range(layout.models)
    ]
    bounds = [np.array(DURATION_BUCKETS), np.array(ROW_BUCKETS), *(np.array(STAGE_BUCKETS) for _ in STAGES)]
    return RingLayout(np.array(cells, np.int64), bounds)


def build_info() -> tuple[str, str, str]:
    """The values of foldserve_build_info's labels: foldserve's, Python's and onnxruntime's versions."""
    return (_installed("foldserve"), platform.python_version(), _installed("onnxruntime-gpu", "onnxruntime"))


def is_compiled() -> bool:
    """Whether what runs for every request is compiled (setup.py has the list), as one of its modules tells."""
    return not str(request_ring.__file__).endswith(".py")


def _installed(*distributions: str) -> str:
    for name in distributions:
        try:
            return distribution_version(name)
        except PackageNotFoundError:
            continue
    return "unknown"
