"""Every metric that foldserve exposes, and the calls that count them.

The names are a contract (docs/operations.md lists them; a test compares). Base units: seconds, bytes. Who
calls what: the front calls request_finished (and, on the short way, an answered_counter); a worker
batch_finished, retried and model_loaded; the supervising process worker_restarted and writer_died. What is
queued, in flight, ready and below its ceiling is not counted but seen at the scrape (transport/census.py).
Label values come from fixed sets, made before the processes start (Plan): a client cannot make a new series.

Must not know HTTP or Prometheus. Where the numbers live: metrics_store.py. How they are read:
metrics_exposition.py.
"""

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as distribution_version
from itertools import product
from typing import Final, Literal

import numpy as np

from service.connections.acceptor import REFUSALS
from service.metrics_store import Layout, Metric, Row, Store
from service.request_ring import Columns
from service.transport.handles import SharedMemory

PROTOCOLS: Final = ("json", "raw", "npy", "oip", "v1", "other")
CODES: Final = (
    *(
        "200",
        "400",
        "401",
        "404",
        "405",
        "406",
        "413",
        "415",
        "422",
        "429",
        "499",
        "500",
        "501",
        "503",
        "504",
    ),
    *("505", "other"),
)
STAGES: Final = ("decode", "queue", "gather", "run", "scatter", "encode")
BATCH_REASONS: Final = ("full", "waited", "drained")
REJECTIONS: Final = ("queue_full", "too_large", "not_ready", "draining", "deadline_passed", "unauthorized")

BatchReason = Literal["full", "waited", "drained"]

NO_MODEL: Final = ("", "")
"""The model and version labels of requests that named no model we serve."""

_FROM_ZERO: Final = {
    True: frozenset(
        product(("json", "raw", "npy"), ("200", "400", "413", "429", "500", "503", "504"))
    ),  # what alerts and error budgets are made of
    False: frozenset({("other", "404"), ("other", "405")}),
}
"""Protocols and codes whose series are there from the start, of a served model and of none. Of 100 models that makes a
tenth of the lines of a scrape."""

# From a cached JSON answer of a tiny network (a tenth of a millisecond) to a request that waited out a long queue, in
# steps of 1.5 to 2, so that a quantile is off by less than that wherever it lies.
DURATION_BUCKETS: Final = (
    *(0.00005, 0.0001, 0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05),
    *(0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0),
)
# Stages of small networks last tens of microseconds; steps of 2 to 2.5, for there are six histograms of each model.
STAGE_BUCKETS: Final = (
    *(0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0),
)
ROW_BUCKETS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0)

_MODEL: Final = ("model", "version")

REQUESTS: Final = Metric(
    "foldserve_requests_total",
    "counter",
    "Requests answered, by protocol and HTTP status.",
    (*_MODEL, "protocol", "code"),
    from_zero=lambda values: tuple(values[2:]) in _FROM_ZERO[values[:2] != NO_MODEL],
)
REQUEST_DURATION: Final = Metric(
    "foldserve_request_duration_seconds",
    "histogram",
    "Time from a request's head to its answer being handed to the socket.",
    _MODEL,
    DURATION_BUCKETS,
)
STAGE_DURATION: Final = Metric(
    "foldserve_stage_duration_seconds",
    "histogram",
    "Time a request spent in each stage.",
    (*_MODEL, "stage"),
    STAGE_BUCKETS,
)
BATCH_ROWS: Final = Metric(
    "foldserve_batch_rows", "histogram", "Rows run together, without padding.", _MODEL, ROW_BUCKETS
)
REQUEST_ROWS: Final = Metric("foldserve_request_rows", "histogram", "Rows of a request.", _MODEL, ROW_BUCKETS)
BATCHES: Final = Metric(
    "foldserve_batches_total",
    "counter",
    "Batches run, by why the batch left: full, its window passed, or it took all that waited.",
    (*_MODEL, "reason"),
)
PADDING_ROWS: Final = Metric(
    "foldserve_padding_rows_total", "counter", "Rows added to reach an allowed batch size.", _MODEL
)
QUEUE_ROWS: Final = Metric("foldserve_queue_rows", "gauge", "Rows waiting for a batch.", _MODEL)
INFLIGHT: Final = Metric(
    "foldserve_inflight_requests", "gauge", "Requests accepted and not yet answered.", _MODEL
)
REJECTED: Final = Metric(
    "foldserve_rejected_total", "counter", "Requests refused or given up, by error code.", (*_MODEL, "reason")
)
RETRIED: Final = Metric(
    "foldserve_retried_total",
    "counter",
    "Requests run again: the batch they were in failed, or their worker died.",
    _MODEL,
)
WORKER_RESTARTS: Final = Metric(
    "foldserve_worker_restarts_total", "counter", "Workers that died and are started again.", ("device",)
)
CONNECTIONS_REFUSED: Final = Metric(
    "foldserve_connections_refused_total",
    "counter",
    "Connections that could not be taken at the first try (failed), or were sent away with 503 (crowded).",
    ("reason",),
)
BATCH_CEILING: Final = Metric(
    "foldserve_batch_ceiling_rows",
    "gauge",
    "Rows that a batch may have: max_batch_size, or less where a device had no room for more.",
    _MODEL,
)
MODEL_READY: Final = Metric(
    "foldserve_model_ready",
    "gauge",
    "1 when the model is loaded, warmed and agrees with its reference.",
    _MODEL,
    combine="max",
)
MODEL_LOAD: Final = Metric(
    "foldserve_model_load_seconds",
    "gauge",
    "Time to load, warm and check the model (the slowest worker's).",
    _MODEL,
    combine="max",
)
BUILD_INFO: Final = Metric(
    "foldserve_build_info",
    "gauge",
    "Always 1; the labels say what is running.",
    ("foldserve", "python", "onnxruntime"),
    combine="max",
)
EXPOSED: Final[tuple[Metric, ...]] = (
    *(REQUESTS, REQUEST_DURATION, STAGE_DURATION, BATCH_ROWS, REQUEST_ROWS, BATCHES, PADDING_ROWS),
    *(REJECTED, RETRIED, WORKER_RESTARTS, CONNECTIONS_REFUSED, MODEL_LOAD, BUILD_INFO),
    *(QUEUE_ROWS, INFLIGHT, BATCH_CEILING, MODEL_READY),
)


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
        series[CONNECTIONS_REFUSED.name] = [(reason,) for reason in REFUSALS]
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


def _installed(*distributions: str) -> str:
    for name in distributions:
        try:
            return distribution_version(name)
        except PackageNotFoundError:
            continue
    return "unknown"
