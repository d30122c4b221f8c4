"""What a scraper reads: the same as prometheus_client would write, in a fraction of its time."""

import os
import re
import subprocess
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from foldserve.service.metrics.catalog import DURATION_BUCKETS, EXPOSED, STAGE_BUCKETS, STAGES
from foldserve.service.metrics.device import DEVICE_METRICS
from foldserve.service.metrics.exposition import Exposition, LiveGauges, family
from foldserve.service.metrics.process import PROCESS_METRICS
from foldserve.service.metrics.recorder import Metrics
from tests.service.repositories import metrics_of, nothing_live, table_of

ACCEPTS = [
    "",
    "*/*",
    "text/plain",
    "application/openmetrics-text",
    # What Prometheus 2 and 3 send.
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=1.0.0;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.2",
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.5,*/*;q=0.1",
]


class Families:
    """A registry's face to the library's encoders."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Family]:
        yield from self._families


def devices() -> Iterator[Family]:
    """One of each family of metrics/device.py."""
    for name, text in DEVICE_METRICS.items():
        found = GaugeMetricFamily(name, text, labels=("device",))
        found.add_metric(("cuda:0",), 0.5)
        yield found


@pytest.fixture
def metrics() -> Metrics:
    """Every metric counts something; large, small and long numbers among them."""
    metrics = metrics_of(("res.net-50_a", "1"), ("linear", "12"))
    for i in range(3):
        metrics.request_finished(
            "json", "linear", "12", 200, 0.1 * 7**i, rows=3, stages_s=dict.fromkeys(STAGES, 1e-5 / 3)
        )
    metrics.request_finished("oip", "", "", 404, 1e-7, error_code="unknown_model")
    metrics.request_finished("npy", "linear", "12", 429, 0.001, error_code="queue_full")
    metrics.answered_counter("raw", 0)(2.5e9, 1, *[1e-4] * 6)
    metrics.batch_finished(1, 4_000_000, 123_456_789, "full")
    metrics.model_loaded(1, 1 / 3)
    metrics.retried(1, 1_000_000)
    metrics.worker_restarted("cpu")
    return metrics


def test_every_format_is_byte_for_byte_what_the_library_writes(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foldserve.service.metrics.exposition.process_families", lambda pid: [])
    exposition = Exposition(
        metrics,
        table_of(*metrics.rows).map(),
        lambda: LiveGauges([3.0, 0.0], [4.0, 0.0], [1.0, 0.0], [16.0, 32.0]),
        os.getpid(),
    )
    layout, totals = metrics.store.layout, exposition.totals()
    named = [(row, version) for version, row in metrics.rows.items()]
    for accept in ACCEPTS:
        encoder, content_type = choose_encoder(accept)
        expected = encoder(
            Families(family(metric, layout.series(metric, named), totals) for metric in EXPOSED)
        )
        assert exposition(accept) == (expected, content_type), accept


def test_every_metric_is_exposed_as_text_and_as_openmetrics(metrics: Metrics) -> None:
    exposition = Exposition(
        metrics, table_of(*metrics.rows).map(), lambda: nothing_live(metrics), os.getpid(), devices
    )
    text, text_type = exposition("")
    openmetrics, openmetrics_type = exposition("application/openmetrics-text; version=1.0.0")
    assert text_type.startswith("text/plain; version=0.0.4")
    assert openmetrics_type.startswith("application/openmetrics-text")
    expected = {metric.name for metric in EXPOSED} | set(PROCESS_METRICS) | set(DEVICE_METRICS)
    for families in (parse_text(text.decode()), parse_openmetrics(openmetrics.decode())):
        names = {family.name + "_total" * (family.type == "counter") for family in families}
        assert names == expected


def test_what_waits_and_who_is_ready_is_what_is_seen_at_the_scrape(metrics: Metrics) -> None:
    seen = LiveGauges([3.0, 0.0], [4.0, 0.0], [1.0, 0.0], [16.0, 32.0])
    exposition = Exposition(metrics, table_of(*metrics.rows).map(), lambda: seen, os.getpid())
    for name, values in zip(
        ("queue_rows", "inflight_requests", "model_ready", "batch_ceiling_rows"), seen, strict=True
    ):
        for (model, version), value in zip(metrics.rows, values, strict=True):
            line = f'\nfoldserve_{name}{{model="{model}",version="{version}"}} {value}\n'
            assert line in exposition("")[0].decode()


def test_series_of_what_never_occurred_are_left_out_and_come_when_it_does(metrics: Metrics) -> None:
    exposition = Exposition(
        metrics, table_of(*metrics.rows).map(), lambda: nothing_live(metrics), os.getpid()
    )
    line = b'foldserve_requests_total{code="401",model="linear",protocol="v1",version="12"} 1.0\n'
    assert line[:-5] not in exposition("")[0]
    metrics.request_finished("v1", "linear", "12", 401, 30.0)
    assert line in exposition("")[0]


@pytest.mark.parametrize("code", ["200", "400", "413", "429", "500", "503", "504"])
@pytest.mark.parametrize("protocol", ["json", "raw", "npy", "oip", "grpc", "v1", "torchserve"])
def test_what_alerts_count_is_there_from_zero_so_that_a_first_burst_is_an_increase(
    protocol: str, code: str
) -> None:
    metrics = metrics_of(("a", "1"), ("b", "2"))
    exposition = Exposition(
        metrics, table_of(*metrics.rows).map(), lambda: nothing_live(metrics), os.getpid()
    )
    for model, version in (("a", "1"), ("b", "2")):
        labels = f'code="{code}",model="{model}",protocol="{protocol}",version="{version}"'
        assert f"foldserve_requests_total{{{labels}}} 0.0\n" in exposition("")[0].decode()


@pytest.mark.parametrize("code", ["404", "405"])
def test_what_asks_for_nothing_that_there_is_is_counted_from_zero(code: str) -> None:
    metrics = metrics_of(("a", "1"))
    exposition = Exposition(
        metrics, table_of(*metrics.rows).map(), lambda: nothing_live(metrics), os.getpid()
    )
    line = f'foldserve_requests_total{{code="{code}",model="",protocol="other",version=""}}'
    assert f"{line} 0.0\n" in exposition("")[0].decode()
    metrics.request_finished("other", "", "", int(code), 0.001)
    assert f"{line} 1.0\n" in exposition("")[0].decode()


@pytest.mark.parametrize("bounds", [DURATION_BUCKETS, STAGE_BUCKETS])
def test_bounds_go_from_below_the_quickest_to_the_slowest_in_even_steps(bounds: tuple[float, ...]) -> None:
    assert bounds[0] <= 0.00005
    assert bounds[-1] == 30.0
    steps = [after / before for before, after in pairwise(bounds)]
    assert min(steps) >= 1.45
    assert max(steps) <= 2.5 + 1e-9 if bounds is STAGE_BUCKETS else max(steps) <= 2 + 1e-9


def test_series_of_a_hundred_models_stay_within_what_a_scrape_can_carry() -> None:
    metrics = metrics_of(*((f"model-{i}", "1") for i in range(100)))
    text, _ = Exposition(metrics, table_of(*metrics.rows).map(), lambda: nothing_live(metrics), os.getpid())(
        ""
    )
    assert text.count(b"\n") < 28_000


def test_build_info_says_what_runs(metrics: Metrics) -> None:
    text = Exposition(metrics, table_of(*metrics.rows).map(), lambda: nothing_live(metrics), os.getpid())("")[
        0
    ].decode()
    assert re.search(
        r'foldserve_build_info\{foldserve="\d[^"]*",onnxruntime="\d[^"]*",python="3[^"]*"\} 1\.0', text
    )


def test_exposition_passes_promtool(metrics: Metrics, promtool: str) -> None:
    text, _ = Exposition(
        metrics, table_of(*metrics.rows).map(), lambda: nothing_live(metrics), os.getpid(), devices
    )("")
    check = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (check.returncode, check.stderr) == (0, b"")


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"])
def test_scrape_of_twenty_models_costs_less_than_20_ms(accept: str) -> None:
    writers = ("supervisor", "api-0", "api-1", "worker-0", "worker-1")
    metrics = metrics_of(*((f"model-{i}", "1") for i in range(20)), writers=writers)
    for writer in writers:
        metrics.write_as(writer)
        for i in range(1000):
            metrics.answered_counter("json", i % 20)(0.001 * i, 1 + i % 9, *[0.0001 * i] * 6)
    exposition = Exposition(
        metrics, table_of(*metrics.rows).map(), lambda: nothing_live(metrics), os.getpid()
    )
    rounds = []
    for _ in range(10):
        started_s = time.thread_time()
        exposition(accept)
        rounds.append(time.thread_time() - started_s)
    # About 2 ms; prometheus_client's own encoder took 21 ms on the same machine. The best: the machine does other
    # things too.
    assert min(rounds) < 0.020
