"""The metrics as Prometheus reads them: text, or OpenMetrics when the scraper asks for it.

    at the start     prometheus_client writes every line once; the numbers are cut off its lines
    at each scrape   the sums of all rows are put in their places

A scrape of 20 models is four thousand lines, and writing them anew from the library's objects took more of an API
server's time than some hundred requests. The library alone knows how lines look in each format; a test holds
what is written here to what it would have written.

Every API server answers a scrape with the numbers of all processes. `process_*` is summed over the supervising
process and its descendants (process.py); what devices hold and do comes from their driver (device.py).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, compress
from typing import Final, NamedTuple

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from foldserve.service.metrics.catalog import BATCH_CEILING, EXPOSED, INFLIGHT, MODEL_READY, QUEUE_ROWS
from foldserve.service.metrics.process import process_families
from foldserve.service.metrics.recorder import Metrics
from foldserve.service.metrics.store import Kind, Layout, Metric

Encoder = Callable[[Collector], bytes]

_OPENMETRICS: Final = "application/openmetrics-text"
_END: Final = "# EOF\n"
"""How OpenMetrics ends."""
_PLAIN_BELOW: Final = 1e6
"""Numbers from 0 to here are written alike by Python and by Prometheus."""


class Seen(NamedTuple):
    """What is not counted but looked at when Prometheus asks; by model version, in the plan's order.

    queued_rows: rows that wait. requests: in flight. ready: whether some worker serves it. ceiling_rows: rows that a
    batch may have in every worker.
    """

    queued_rows: Sequence[float]
    requests: Sequence[float]
    ready: Sequence[float]
    ceiling_rows: Sequence[float]


class Exposition:
    """What GET /metrics answers."""

    def __init__(
        self,
        metrics: Metrics,
        look: Callable[[], Seen],
        supervisor_pid: int,
        devices: Callable[[], Iterable[Family]] = tuple,
    ) -> None:
        """
        Args:
            metrics: attached to the server's rows.
            look: tells what is waiting, in flight, ready and below its ceiling now.
            supervisor_pid: the process whose descendants make up the server.
            devices: what is known of the devices now (device.py).
        """
        self._metrics = metrics
        self._look = look
        self._supervisor_pid = supervisor_pid
        self._devices = devices
        # By format, OpenMetrics or not. Versions and escapings that a scraper may ask for besides make no
        # difference to names like ours. Made now: a first scrape would hold the event loop for 100 ms.
        layout = metrics.store.layout
        self._lines = {
            content_type.startswith(_OPENMETRICS): Lines(encoder, layout)
            for encoder, content_type in (choose_encoder(""), choose_encoder(_OPENMETRICS))
        }

    def __call__(self, accept: str) -> tuple[bytes, str]:
        """The body and its content type for a scraper's Accept header ("" = none)."""
        encoder, content_type = choose_encoder(accept)
        ours = self._lines[content_type.startswith(_OPENMETRICS)].fill(self.totals())
        others = chain(self._devices(), process_families(self._supervisor_pid))
        return ours.encode() + encoder(_Families(others)), content_type

    def totals(self) -> np.ndarray:
        """Every cell as it is now, the gauges that are looked at among them."""
        totals = self._metrics.store.totals()
        offsets = self._metrics.store.layout.offsets
        seen = self._look()
        for lane, version in enumerate(self._metrics.plan.versions):
            totals[offsets[QUEUE_ROWS.name][version]] = seen.queued_rows[lane]
            totals[offsets[INFLIGHT.name][version]] = seen.requests[lane]
            totals[offsets[MODEL_READY.name][version]] = seen.ready[lane]
            totals[offsets[BATCH_CEILING.name][version]] = seen.ceiling_rows[lane]
        return totals


class Lines:
    """Every line of one format without its number, in order."""

    def __init__(self, encoder: Encoder, layout: Layout) -> None:
        self._blocks = [_Block(encoder, metric, layout.offsets[metric.name]) for metric in EXPOSED]

    def fill(self, totals: np.ndarray) -> str:
        """The lines with their numbers, without the format's end."""
        return "".join(chain.from_iterable(block.fill(totals) for block in self._blocks))


class _Block:
    """One metric's lines."""

    def __init__(self, encoder: Encoder, metric: Metric, offsets: dict[tuple[str, ...], int]) -> None:
        # With ones in it nothing is hidden.
        size = max(offsets.values(), default=0) + metric.cells
        written = encoder(_Families([family(metric, offsets, np.ones(size))])).decode()
        lines = written.removesuffix(_END).splitlines(keepends=True)
        self._head = [line for line in lines if line.startswith("#")]
        self._before = [line.rpartition(" ")[0] + " " for line in lines[len(self._head) :]]
        self._metric = metric
        from_zero = np.array([metric.from_zero(values) for values in offsets], bool)
        self._from_zero = None if from_zero.all() else from_zero
        # A metric's series lie one behind the other (Layout).
        self._cells = slice(min(offsets.values(), default=0), size if offsets else 0)

    def fill(self, totals: np.ndarray) -> Iterable[str]:
        cells = totals[self._cells]
        if self._metric.kind == "histogram":
            series = cells.reshape(-1, self._metric.cells)
            counts = np.cumsum(series[:, :-1], axis=1)
            cells = np.hstack([counts, counts[:, -1:], series[:, -1:]]).reshape(-1)
        lines = zip(self._before, cells.tolist(), strict=True)
        shown = lines if self._from_zero is None else compress(lines, self._from_zero | (cells != 0.0))
        return [*self._head, *[f"{before}{_number(value)}\n" for before, value in shown]]


def _number(value: float) -> str:
    # The library's own function for all of them would be a third of a scrape's time.
    if 0.0 <= value < _PLAIN_BELOW:
        return repr(value)
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


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
        elif totals[cell] != 0.0 or metric.from_zero(values):
            result.add_metric(values, float(totals[cell]))
    return result


class _Families(Collector):
    """Families as what the library's encoders take."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Family]:
        yield from self._families
