"""What each call counts, under which name and labels."""

import re
import time
from pathlib import Path

import pytest

from foldserve.service.metrics.catalog import EXPOSED, REJECTIONS, STAGES
from foldserve.service.metrics.device import DEVICE_METRICS
from foldserve.service.metrics.process import PROCESS_METRICS
from foldserve.service.metrics.recorder import Metrics, MetricsLayoutSpec
from tests.service.repositories import attached, metrics_of, sample

LABELS = {"model": "linear", "version": "1"}
STAGES_S = {stage: 0.0001 * (1 + i) for i, stage in enumerate(STAGES)}


@pytest.fixture
def metrics() -> Metrics:
    return metrics_of()


def test_finished_request_counts_in_total_duration_rows_and_stages(metrics: Metrics) -> None:
    metrics.request_finished(
        "json", "linear", "1", 200, 0.004, rows=3, stages_s={"decode": 0.0002, "run": 0.002}
    )
    assert sample(metrics, "foldserve_requests_total", protocol="json", code="200", **LABELS) == 1
    assert sample(metrics, "foldserve_request_duration_seconds_sum", **LABELS) == pytest.approx(0.004)
    assert sample(metrics, "foldserve_request_duration_seconds_bucket", le="0.003", **LABELS) == 0
    assert sample(metrics, "foldserve_request_duration_seconds_bucket", le="0.005", **LABELS) == 1
    assert sample(metrics, "foldserve_request_rows_sum", **LABELS) == 3
    counts = {
        stage: sample(metrics, "foldserve_stage_duration_seconds_count", stage=stage, **LABELS)
        for stage in STAGES
    }
    assert counts == {**dict.fromkeys(STAGES, 0), "decode": 1, "run": 1}


def test_both_ways_of_counting_an_answer_count_the_same() -> None:
    one_by_one, in_bulk = metrics_of(("a", "1"), ("b", "2")), metrics_of(("a", "1"), ("b", "2"))
    quick = {version: in_bulk.answered_counter("raw", row) for version, row in in_bulk.rows.items()}
    for i in range(3000):  # the ring is folded twice on the way
        version, duration_s, rows = tuple(in_bulk.rows)[i % 2], 0.0001 * (i % 400), 1 + i % 70
        one_by_one.request_finished("raw", *version, 200, duration_s, rows=rows, stages_s=STAGES_S)
        quick[version](duration_s, rows, *STAGES_S.values())
    # Counts are whole; sums are of the same numbers in another order: 3000 roundings of 1e-16 at most.
    assert in_bulk.store.totals() == pytest.approx(one_by_one.store.totals(), rel=1e-12)
    assert (
        sample(in_bulk, "foldserve_requests_total", protocol="raw", code="200", model="b", version="2")
        == 1500
    )


def test_refusal_counts_under_its_code_and_a_mistake_does_not(metrics: Metrics) -> None:
    metrics.request_finished("json", "linear", "1", 429, 0.001, error_code="queue_full")
    metrics.request_finished("json", "linear", "1", 400, 0.001, error_code="bad_tensor")
    assert sample(metrics, "foldserve_rejected_total", reason="queue_full", **LABELS) == 1
    counts = [
        sample(metrics, "foldserve_rejected_total", reason=reason, **LABELS)
        for reason in REJECTIONS
        if reason != "queue_full"
    ]
    assert counts == [0] * (len(REJECTIONS) - 1)


@pytest.mark.parametrize(("model", "version"), [("", ""), ("unheard-of", "1"), ("linear", "7")])
def test_requests_for_what_is_not_served_make_no_series_of_their_own(
    metrics: Metrics, model: str, version: str
) -> None:
    metrics.request_finished("json", model, version, 404, 0.001)
    count = sample(metrics, "foldserve_requests_total", protocol="json", code="404", model="", version="")
    assert count == 1


def test_unforeseen_protocols_and_codes_count_as_other(metrics: Metrics) -> None:
    metrics.request_finished("smoke-signals", "linear", "1", 418, 0.001)
    assert sample(metrics, "foldserve_requests_total", protocol="other", code="other", **LABELS) == 1


def test_batch_counts_its_rows_its_padding_and_why_it_left(metrics: Metrics) -> None:
    metrics.batch_finished(0, 5, 3, "waited")
    assert sample(metrics, "foldserve_batch_rows_sum", **LABELS) == 5
    assert sample(metrics, "foldserve_batch_rows_bucket", le="4.0", **LABELS) == 0
    assert sample(metrics, "foldserve_batch_rows_bucket", le="8.0", **LABELS) == 1
    assert sample(metrics, "foldserve_padding_rows_total", **LABELS) == 3
    assert sample(metrics, "foldserve_batches_total", reason="waited", **LABELS) == 1
    assert sample(metrics, "foldserve_batches_total", reason="full", **LABELS) == 0


def test_retries_and_restarts_are_summed_over_the_processes_that_saw_them(metrics: Metrics) -> None:
    other = attached(metrics, "two")
    metrics.retried(0, 3)
    other.retried(0, 2)
    other.worker_restarted("cpu")
    assert sample(metrics, "foldserve_retried_total", **LABELS) == 5
    assert sample(metrics, "foldserve_worker_restarts_total", device="cpu") == 1


def test_load_time_is_the_slowest_workers_and_goes_with_it(metrics: Metrics) -> None:
    other = attached(metrics, "two")
    metrics.model_loaded(0, 0.5)
    other.model_loaded(0, 0.75)
    assert sample(metrics, "foldserve_model_load_seconds", **LABELS) == 0.75
    assert metrics.load_seconds(0) == 0.75
    metrics.writer_died("two")
    assert sample(metrics, "foldserve_model_load_seconds", **LABELS) == 0.5


def test_totals_do_not_fall_when_a_writer_dies_and_comes_back(metrics: Metrics) -> None:
    worker = attached(metrics, "two")
    worker.batch_finished(0, 4, 0, "full")
    worker.answered_counter("json", 0)(0.004, 1, *STAGES_S.values())
    metrics.writer_died("two")
    again = attached(metrics, "two")
    again.batch_finished(0, 4, 0, "full")
    again.answered_counter("json", 0)(0.004, 1, *STAGES_S.values())
    assert sample(metrics, "foldserve_batches_total", reason="full", **LABELS) == 2
    assert sample(metrics, "foldserve_request_duration_seconds_count", **LABELS) == 2


def test_counting_an_answer_costs_less_than_a_twentieth_of_a_small_request(metrics: Metrics) -> None:
    count = metrics.answered_counter("json", 0)
    rounds = []
    for _ in range(20):
        started_s = time.thread_time()
        for _ in range(1024):  # as many as the ring holds: one fold in each round
            count(0.004, 1, 0.001, 0.001, 0.001, 0.001, 0.001, 0.001)
        rounds.append((time.thread_time() - started_s) / 1024)
    # A small request costs the server 60 us of CPU (benchmarks/README.md); this about 0.7 us. The best round: the
    # machine does other things too.
    assert min(rounds) < 60e-6 / 20


def test_documentation_lists_every_metric_and_no_other() -> None:
    text = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    listed = set(re.findall(r"^\| `((?:foldserve|process)_\w+)", text, re.MULTILINE))
    assert listed == {metric.name for metric in EXPOSED} | set(PROCESS_METRICS) | set(DEVICE_METRICS)


def test_specs_made_alike_lay_out_alike(metrics: Metrics) -> None:
    spec = metrics.spec
    one, other = spec.layout(), MetricsLayoutSpec(spec.models, spec.devices, spec.writers).layout()
    named = [(0, ("linear", "1"))]
    assert [one.series(metric, named) for metric in EXPOSED] == [
        other.series(metric, named) for metric in EXPOSED
    ]


def test_counters_of_a_row_that_is_given_to_another_model_begin_at_zero_and_those_of_others_go_on() -> None:
    metrics = metrics_of(("old", "1"), ("other", "1"))
    api = attached(metrics, "two")
    for row in (0, 1):
        api.batch_finished(row, 4, 1, "full")
        api.answered_counter("json", row)(0.1, 1, *STAGES_S.values())
    metrics.restart_model(0)
    metrics.rows = {("new", "7"): 0, ("other", "1"): 1}
    new, other = {"model": "new", "version": "7"}, {"model": "other", "version": "1"}
    for name in ("foldserve_request_duration_seconds_count", "foldserve_request_duration_seconds_sum"):
        assert sample(metrics, name, **new) == 0
        assert sample(metrics, name, **other) != 0
    assert sample(metrics, "foldserve_batches_total", reason="full", **new) == 0
    assert sample(metrics, "foldserve_batches_total", reason="full", model="old", version="1") is None
    for _ in range(2000):  # its ring is folded meanwhile
        api.answered_counter("json", 0)(0.1, 1, *STAGES_S.values())
    api.batch_finished(0, 4, 1, "full")
    assert sample(metrics, "foldserve_request_duration_seconds_count", **new) == 2000
    assert sample(metrics, "foldserve_request_duration_seconds_sum", **new) == pytest.approx(200.0)
    assert sample(metrics, "foldserve_batches_total", reason="full", **new) == 1
    assert sample(metrics, "foldserve_requests_total", protocol="json", code="200", **other) == 1
