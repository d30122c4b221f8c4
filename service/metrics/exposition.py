"""The metrics as Prometheus reads them: text, or OpenMetrics when the scraper asks for it.

    at the start     prometheus_client writes every line once, and again when other models are held; the numbers are
                     cut off its lines
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

from foldserve.service.ipc.model_table import MappedModelTable, ModelKey
from foldserve.service.metrics.catalog import BATCH_CEILING, EXPOSED, INFLIGHT, MODEL_READY, QUEUE_ROWS
from foldserve.service.metrics.counts import write_counts
from foldserve.service.metrics.process import process_families
from foldserve.service.metrics.recorder import Metrics
from foldserve.service.metrics.store import CellLayout, Kind, Metric

Encoder = Callable[[Collector], bytes]

_OPENMETRICS: Final = "application/openmetrics-text"
_END: Final = "# EOF\n"
"""How OpenMetrics ends."""
_PLAIN_BELOW: Final = 1e6
"""Numbers from 0 to here are written alike by Python and by Prometheus."""


class LiveGauges(NamedTuple):
    """What is not counted but looked at when Prometheus asks; by row of the model table.

    queued_rows: rows that wait. requests: in flight. ready: whether some worker serves it. batch_limit_rows: rows
    that a batch may have in every worker.
    """

    queued_rows: Sequence[float]
    requests: Sequence[float]
    ready: Sequence[float]
    batch_limit_rows: Sequence[float]


class Exposition:
    """What GET /metrics answers."""

    def __init__(
        self,
        metrics: Metrics,
        models: MappedModelTable,
        snapshot: Callable[[], LiveGauges],
        supervisor_pid: int,
        devices: Callable[[], Iterable[Family]] = tuple,
    ) -> None:
        """
        Args:
            metrics: attached to the server's rows.
            models: whose metrics there are, and what they are called.
            snapshot: returns what is waiting, in flight, ready and below its batch limit now.
            supervisor_pid: the process whose descendants make up the server.
            devices: what is known of the devices now (device.py).
        """
        self._metrics = metrics
        self._models = models
        self._snapshot = snapshot
        self._supervisor_pid = supervisor_pid
        self._devices = devices
        self._of: list[ModelKey] = []
        # By format, OpenMetrics or not. Versions and escapings that a scraper may ask for besides make no
        # difference to names like ours. Made now: a first scrape would wait 100 ms for it.
        self._lines: dict[bool, Lines] = {}
        self._lines_for(models.find_all())

    def _lines_for(self, models: list[ModelKey]) -> dict[bool, "Lines"]:
        """The lines of these models by format, made anew only when they are others than before."""
        if models != self._of or not self._lines:
            layout = self._metrics.store.layout
            named = [(key.row, (key.model, key.version)) for key in models]
            self._of = models
            self._lines = {
                content_type.startswith(_OPENMETRICS): Lines(encoder, layout, named)
                for encoder, content_type in (choose_encoder(""), choose_encoder(_OPENMETRICS))
            }
        return self._lines

    def __call__(self, accept: str) -> tuple[bytes, str]:
        """The body and its content type for a scraper's Accept header ("" = none)."""
        encoder, content_type = choose_encoder(accept)
        lines = self._lines_for(self._models.find_all())
        ours = lines[content_type.startswith(_OPENMETRICS)].fill(self.totals())
        others = chain(self._devices(), process_families(self._supervisor_pid))
        return ours.encode() + encoder(_Families(others)), content_type

    def counts(self) -> bytes:
        """What was counted of each model version: counts.py."""
        return write_counts(self._metrics.store.totals(), self._metrics.store.layout, self._models.find_all())

    def totals(self) -> np.ndarray:
        """Every cell as it is now, the gauges that are looked at among them."""
        totals = self._metrics.store.totals()
        cell = self._metrics.store.layout.cell
        now = self._snapshot()
        for key in self._of:
            totals[cell(QUEUE_ROWS, key.row)] = now.queued_rows[key.row]
            totals[cell(INFLIGHT, key.row)] = now.requests[key.row]
            totals[cell(MODEL_READY, key.row)] = now.ready[key.row]
            totals[cell(BATCH_CEILING, key.row)] = now.batch_limit_rows[key.row]
        return totals


class Lines:
    """Every line of one format without its number, in order."""

    def __init__(
        self, encoder: Encoder, layout: CellLayout, models: Sequence[tuple[int, tuple[str, str]]]
    ) -> None:
        """models: rows of the model table, and the values of the labels."""
        self._blocks = [_Block(encoder, metric, layout.series(metric, models)) for metric in EXPOSED]

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
        self._cells = np.array([cell + i for cell in offsets.values() for i in range(metric.cells)], np.int64)

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
