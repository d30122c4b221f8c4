"""The metrics as Prometheus reads them: text, or OpenMetrics when the scraper asks for it.

A collector of prometheus_client over the shared rows: every API server answers a scrape with the numbers of
all processes. `process_*` is summed over the supervising process and its descendants (process_metrics.py).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from service.metrics import EXPOSED, INFLIGHT, MODEL_READY, QUEUE_ROWS, Metrics
from service.metrics_store import Kind, Metric
from service.process_metrics import process_families


class Seen(NamedTuple):
    """What is not counted but looked at when Prometheus asks; by model version, in the plan's order.

    queued_rows: rows that wait. requests: in flight. ready: whether some worker serves it.
    """

    queued_rows: Sequence[float]
    requests: Sequence[float]
    ready: Sequence[float]


class MetricsCollector(Collector):
    """Turns the sums of all rows into metric families; holds no numbers of its own."""

    def __init__(self, metrics: Metrics, look: Callable[[], Seen]) -> None:
        self._metrics = metrics
        self._look = look

    def describe(self) -> list[Family]:
        """Nothing is promised before a scrape; without this, registering would run one."""
        return []

    def collect(self) -> Iterator[Family]:
        """One family per metric, from one reading of the rows."""
        totals = self._metrics.store.totals()
        offsets = self._metrics.store.layout.offsets
        seen = self._look()
        for lane, version in enumerate(self._metrics.plan.versions):
            totals[offsets[QUEUE_ROWS.name][version]] = seen.queued_rows[lane]
            totals[offsets[INFLIGHT.name][version]] = seen.requests[lane]
            totals[offsets[MODEL_READY.name][version]] = seen.ready[lane]
        for metric in EXPOSED:
            yield family(metric, offsets[metric.name], totals)


def family(metric: Metric, offsets: dict[tuple[str, ...], int], totals: np.ndarray) -> Family:
    """One metric with all its series, as prometheus_client's family."""
    kinds: dict[Kind, type[CounterMetricFamily] | type[GaugeMetricFamily] | type[HistogramMetricFamily]] = {
        "counter": CounterMetricFamily,
        "gauge": GaugeMetricFamily,
        "histogram": HistogramMetricFamily,
    }
    result = kinds[metric.kind](metric.name, metric.help, labels=metric.labels)
    bounds = [*map(floatToGoString, metric.buckets), "+Inf"]
    for values, cell in offsets.items():
        if isinstance(result, HistogramMetricFamily):
            cumulative = np.cumsum(totals[cell : cell + len(bounds)]).tolist()
            total = float(totals[cell + len(bounds)])
            result.add_metric(values, list(zip(bounds, cumulative, strict=True)), total)
        elif totals[cell] != 0.0 or not metric.hide_zero:
            result.add_metric(values, float(totals[cell]))
    return result


class Exposition:
    """What GET /metrics answers."""

    def __init__(self, metrics: Metrics, look: Callable[[], Seen], supervisor_pid: int) -> None:
        """
        Args:
            metrics: attached to the server's rows.
            look: tells what is waiting, in flight and ready now.
            supervisor_pid: the process whose descendants make up the server.
        """
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(MetricsCollector(metrics, look))
        self._registry.register(_ProcessCollector(supervisor_pid))

    def __call__(self, accept: str) -> tuple[bytes, str]:
        """The body and its content type for a scraper's Accept header ("" = none)."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self._registry), content_type


class _ProcessCollector(Collector):
    def __init__(self, supervisor_pid: int) -> None:
        self._supervisor_pid = supervisor_pid

    def describe(self) -> list[Family]:
        return []

    def collect(self) -> Iterator[Family]:
        yield from process_families(self._supervisor_pid)
