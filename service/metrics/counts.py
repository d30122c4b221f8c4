"""What was counted of each model version, as numbers to compute with: the same cells as /metrics has, summed up.

Written as JSON by the exporter's process, beside the text for Prometheus, so that nobody has to parse that.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import orjson

from foldserve.service.ipc.model_table import ModelKey
from foldserve.service.metrics.catalog import BATCHES, REQUEST_ROWS, REQUESTS, STAGE_DURATION, STAGES
from foldserve.service.metrics.store import CellLayout, Metric

_SUCCESS: Final = "200"


class ModelCounts(NamedTuple):
    """Of one version since the start. stages: by name, how many were timed, and the seconds of all."""

    model: str
    version: str
    answered: float
    succeeded: float
    rows: float
    batches: float
    stages: dict[str, tuple[float, float]]


def write_counts(totals: np.ndarray, layout: CellLayout, models: Sequence[ModelKey]) -> bytes:
    """Of these versions."""
    return orjson.dumps([tuple(_of(totals, layout, key)) for key in models])


def read_counts(written: bytes) -> dict[tuple[str, str], ModelCounts]:
    """By model and version, what write_counts() has written."""
    return {(values[0], values[1]): ModelCounts(*values) for values in orjson.loads(written)}


def _of(totals: np.ndarray, layout: CellLayout, key: ModelKey) -> ModelCounts:
    model = [(key.row, (key.model, key.version))]

    def cells(metric: Metric) -> dict[tuple[str, ...], int]:
        """The first cell of each series, by its own labels."""
        series = layout.series(metric, model)
        return {labels[2:]: at for labels, at in series.items() if labels[:2] == (key.model, key.version)}

    def histogram(metric: Metric, *labels: str) -> tuple[float, float]:
        at = layout.cell(metric, key.row, *labels)
        end = at + metric.cells - 1
        return float(totals[at:end].sum()), float(totals[end])

    requests = {labels: float(totals[at]) for labels, at in cells(REQUESTS).items()}
    return ModelCounts(
        *(key.model, key.version),
        answered=sum(requests.values()),
        succeeded=sum(count for labels, count in requests.items() if labels[-1] == _SUCCESS),
        rows=histogram(REQUEST_ROWS)[1],
        batches=sum(float(totals[at]) for at in cells(BATCHES).values()),
        stages={stage: histogram(STAGE_DURATION, stage) for stage in STAGES},
    )


def nothing_counted(model: str, version: str) -> ModelCounts:
    """Of a version that was not there when they were written."""
    return ModelCounts(model, version, 0.0, 0.0, 0.0, 0.0, dict.fromkeys(STAGES, (0.0, 0.0)))
