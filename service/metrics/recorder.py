"""Every metric that foldserve exposes, and the calls that count them.

The names are a contract (docs/operations.md lists them; a test compares). Base units: seconds, bytes. Who
calls what: inference/observers.py calls request_finished, and a request that was answered an answered_counter; a worker
batch_finished, retried and model_loaded; the supervising process worker_restarted and writer_died. What is
queued, in flight, ready and below its ceiling is not counted but seen at the scrape (ipc/slots/slot_counts.py).
Label values come from fixed sets, made before the processes start (Plan): a client cannot make a new series.

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
    _MODEL,
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
    NO_MODEL,
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
from foldserve.service.metrics.request_ring import Columns
from foldserve.service.metrics.store import Layout, Row, Store


@dataclass(frozen=True)
class Plan:
    """What must be known before the processes start.

    versions: every (model, version) that is served.
    devices: every device a worker may own ("cpu", "cuda:0").
    writers: a name for every process that writes; the place in the tuple is the row.
    """

    versions: tuple[tuple[str, str], ...]
    devices: tuple[str, ...]
    writers: tuple[str, ...]

    def layout(self) -> Layout:
        """The cells for these models and devices."""
        served = self.versions
        any_version = (*served, NO_MODEL)

        series: dict[str, list[tuple[str, ...]]] = {
            metric.name: list(served) for metric in EXPOSED if metric.labels == _MODEL
        }
        series[REQUESTS.name] = [
            (*version, protocol, code) for version, protocol, code in product(any_version, PROTOCOLS, CODES)
        ]
        series[STAGE_DURATION.name] = [(*version, stage) for version, stage in product(served, STAGES)]
        series[BATCHES.name] = [(*version, reason) for version, reason in product(served, BATCH_REASONS)]
        series[REJECTED.name] = [(*version, code) for version, code in product(any_version, REJECTIONS)]
        series[WORKER_RESTARTS.name] = [(device,) for device in self.devices]
        series[CONNECTIONS_REFUSED.name] = [(reason,) for reason in CONNECTION_REFUSALS]
        series[BUILD_INFO.name] = [build_info()]
        return Layout(EXPOSED, series)


class Metrics:
    """Counts into this process's row; reads everybody's.

    Made by the supervising process with create(); forked processes inherit it and call write_as(); spawned
    ones attach() to the same memory. Not to be shared by two processes under one writer name.
    """

    def __init__(self, plan: Plan, store: Store, writer: str) -> None:
        self.plan = plan
        self.store = store
        self._offsets = store.layout.offsets
        self.write_as(writer)

    @classmethod
    def create(cls, plan: Plan) -> "Metrics":
        """Make the memory and count as the plan's first writer."""
        layout = plan.layout()
        metrics = cls(plan, Store.create(layout, len(plan.writers), _columns(plan, layout)), plan.writers[0])
        with metrics._row.lock:
            metrics._row.set(metrics._offsets[BUILD_INFO.name][build_info()], 1.0)
        return metrics

    @classmethod
    def attach(cls, memory: SharedMemory, plan: Plan, writer: str) -> "Metrics":
        """Map memory that create() made with the same plan."""
        layout = plan.layout()
        return cls(plan, Store(memory, layout, len(plan.writers), _columns(plan, layout)), writer)

    def write_as(self, writer: str) -> None:
        """Count into this writer's row from now on (called in a process just forked)."""
        index = self.plan.writers.index(writer)
        self._row: Row = self.store.row(index)
        self._ring = self.store.rings[index]

    # Called by the front ------------------------------------------------------------------------------

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
        served = (model, version) in self._offsets[REQUEST_DURATION.name]
        labels = (model, version) if served else NO_MODEL
        protocol = protocol if protocol in PROTOCOLS else "other"
        code = str(status) if str(status) in CODES else "other"
        row = self._row
        with row.lock:
            row.add(self._offsets[REQUESTS.name][(*labels, protocol, code)], 1.0)
            if error_code in REJECTIONS:
                row.add(self._offsets[REJECTED.name][(*labels, error_code)], 1.0)
            if not served:
                return
            row.observe(self._offsets[REQUEST_DURATION.name][labels], DURATION_BUCKETS, duration_s)
            if rows:
                row.observe(self._offsets[REQUEST_ROWS.name][labels], ROW_BUCKETS, rows)
            for stage, seconds in (stages_s or {}).items():
                row.observe(self._offsets[STAGE_DURATION.name][(*labels, stage)], STAGE_BUCKETS, seconds)

    def answered_counter(self, protocol: str, model: str, version: str) -> Callable[..., None]:
        """Counts answered requests (status 200) of one protocol and model version; the quick way.

        Called with duration_s, rows, and the seconds of each of STAGES in order. By one thread only.
        """
        cell = float(self._offsets[REQUESTS.name][(model, version, protocol, "200")])
        return partial(self._ring.append, cell, float(self.plan.versions.index((model, version))))

    def connection_refused(self, reason: str) -> None:
        """A connection could not be taken now, or was sent away."""
        with self._row.lock:
            self._row.add(self._offsets[CONNECTIONS_REFUSED.name][(reason,)], 1.0)

    # Called by a worker -------------------------------------------------------------------------------

    def model_loaded(self, model: str, version: str, load_s: float) -> None:
        """A worker has loaded, warmed and checked a model."""
        with self._row.lock:
            self._row.set(self._offsets[MODEL_LOAD.name][(model, version)], load_s)

    def batch_finished(self, model: str, version: str, rows: int, padding: int, reason: BatchReason) -> None:
        """A batch was run."""
        labels = (model, version)
        with self._row.lock:
            self._row.observe(self._offsets[BATCH_ROWS.name][labels], ROW_BUCKETS, rows)
            self._row.add(self._offsets[BATCHES.name][(*labels, reason)], 1.0)
            self._row.add(self._offsets[PADDING_ROWS.name][labels], padding)

    def retried(self, model: str, version: str, requests: int) -> None:
        """Requests are run again because the batch they were in failed."""
        with self._row.lock:
            self._row.add(self._offsets[RETRIED.name][(model, version)], requests)

    def load_seconds(self, model: str, version: str) -> float:
        """What model_loaded was last told, by the slowest worker."""
        return float(self.store.totals()[self._offsets[MODEL_LOAD.name][(model, version)]])

    # Called by the supervising process -------------------------------------------------------------------

    def worker_restarted(self, device: str) -> None:
        """A worker that died was started again."""
        with self._row.lock:
            self._row.add(self._offsets[WORKER_RESTARTS.name][(device,)], 1.0)

    def writer_died(self, writer: str) -> None:
        """A process has ended: nothing it held is queued, in flight or ready any more."""
        self.store.reset_gauges(self.plan.writers.index(writer))


def _columns(plan: Plan, layout: Layout) -> Columns:
    """Where a ring's record goes: by model version, the histograms of duration, rows and each stage."""
    offsets = layout.offsets
    cells = [
        [
            offsets[REQUEST_DURATION.name][version],
            offsets[REQUEST_ROWS.name][version],
            *(offsets[STAGE_DURATION.name][(*version, stage)] for stage in STAGES),
        ]
        for version in plan.versions
    ]
    bounds = [np.array(DURATION_BUCKETS), np.array(ROW_BUCKETS), *(np.array(STAGE_BUCKETS) for _ in STAGES)]
    return Columns(np.array(cells, np.int64).reshape(len(plan.versions), len(bounds)), bounds)


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
