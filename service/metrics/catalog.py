"""Every metric that foldserve exposes: name, help, labels and buckets. Docs and dashboards are compared with it."""

from itertools import product
from typing import Final, Literal

from foldserve.service.metrics.store import MODEL_LABELS, Metric

PROTOCOLS: Final = ("json", "raw", "npy", "picture", "oip", "grpc", "v1", "torchserve", "other")

CODES: Final = (
    *(
        "200",
        "400",
        "401",
        "403",
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

FAILED: Final = "failed"
CROWDED: Final = "crowded"
HANDSHAKE: Final = "handshake"
CONNECTION_REFUSALS: Final = (FAILED, CROWDED, HANDSHAKE)
"""Why a connection was not taken: the system refused it for now; there were too many, and it was answered 503; its
TLS handshake failed."""
REJECTIONS: Final = (
    *("queue_full", "rate_limited", "too_large", "not_ready", "draining", "deadline_passed"),
    *("unauthorized", "forbidden"),
)

BatchReason = Literal["full", "waited", "drained"]

NO_MODEL: Final = ("", "")
"""The model and version labels of requests that named no model we serve."""

_FROM_ZERO: Final = {
    True: frozenset(
        product(PROTOCOLS[:-1], ("200", "400", "413", "429", "500", "503", "504"))
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

_MODEL: Final = MODEL_LABELS

REQUESTS: Final = Metric(
    "foldserve_requests_total",
    "counter",
    "Requests answered, by protocol and HTTP status.",
    (*_MODEL, "protocol", "code"),
    from_zero=lambda values: tuple(values[2:]) in _FROM_ZERO[values[:2] != NO_MODEL],
    no_model=NO_MODEL,
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
    "foldserve_rejected_total",
    "counter",
    "Requests refused or cancelled, by error code.",
    (*_MODEL, "reason"),
    no_model=NO_MODEL,
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
    "Connections that could not be taken at the first try (failed), were sent away with 503 (crowded), or whose TLS "
    "handshake failed (handshake).",
    ("reason",),
)

BATCH_CEILING: Final = Metric(
    "foldserve_batch_ceiling_rows",
    "gauge",
    "Rows that a batch may have: max_batch_size, or less where a device did not have memory for more.",
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
