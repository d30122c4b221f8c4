"""What each call counts, and how it is exposed."""

import re
import subprocess
import time
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from service.metrics import EXPOSED, REJECTIONS, STAGES, Metrics, Plan
from service.metrics_exposition import Exposition
from service.process_metrics import PROCESS_METRICS
from tests.service.repositories import metrics_at, sample

LABELS = {"model": "linear", "version": "1"}


@pytest.fixture
def metrics(tmp_path: Path) -> Metrics:
    return metrics_at(tmp_path)


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


def test_queue_is_summed_over_writers_and_empties(metrics: Metrics, tmp_path: Path) -> None:
    other = Metrics.attach(tmp_path / "metrics", metrics.plan, "two")
    metrics.queued("linear", "1", 3, 48)
    other.queued("linear", "1", 5, 80)
    assert (metrics.queue_rows("linear", "1"), other.queue_bytes("linear", "1")) == (8, 128)
    metrics.taken("linear", "1", 3, 48)
    other.taken("linear", "1", 5, 80)
    assert (metrics.queue_rows("linear", "1"), metrics.queue_bytes("linear", "1")) == (0, 0)


def test_model_is_ready_while_any_of_its_workers_is(metrics: Metrics, tmp_path: Path) -> None:
    other = Metrics.attach(tmp_path / "metrics", metrics.plan, "two")
    assert metrics.ready_versions() == (False,)
    metrics.model_loaded("linear", "1", True, 0.5)
    other.model_loaded("linear", "1", True, 0.75)
    assert sample(metrics, "foldserve_model_load_seconds", **LABELS) == 0.75
    metrics.writer_died("one")
    assert metrics.ready_versions() == (True,)
    metrics.writer_died("two")
    assert metrics.ready_versions() == (False,)
    assert sample(metrics, "foldserve_model_ready", **LABELS) == 0


def test_totals_do_not_fall_when_a_writer_dies_and_comes_back(metrics: Metrics, tmp_path: Path) -> None:
    worker = Metrics.attach(tmp_path / "metrics", metrics.plan, "two")
    worker.batch_finished("linear", "1", 4, 0, "full")
    metrics.writer_died("two")
    again = Metrics.attach(tmp_path / "metrics", metrics.plan, "two")
    again.batch_finished("linear", "1", 4, 0, "full")
    assert sample(metrics, "foldserve_batches_total", reason="full", **LABELS) == 2


def test_build_info_says_what_runs(metrics: Metrics) -> None:
    text = Exposition(metrics, 1)("")[0].decode()
    assert re.search(
        r'foldserve_build_info\{foldserve="\d[^"]*",onnxruntime="\d[^"]*",python="3[^"]*"\} 1\.0', text
    )


def test_every_metric_is_exposed_as_text_and_as_openmetrics(metrics: Metrics, tmp_path: Path) -> None:
    import os

    metrics.request_finished("json", "linear", "1", 200, 0.004)
    exposition = Exposition(metrics, os.getpid())
    text, text_type = exposition("")
    openmetrics, openmetrics_type = exposition("application/openmetrics-text; version=1.0.0")
    assert text_type.startswith("text/plain; version=0.0.4")
    assert openmetrics_type.startswith("application/openmetrics-text")
    expected = {metric.name for metric in EXPOSED} | set(PROCESS_METRICS)
    for families in (parse_text(text.decode()), parse_openmetrics(openmetrics.decode())):
        names = {family.name + "_total" * (family.type == "counter") for family in families}
        assert names == expected


def test_exposition_passes_promtool(metrics: Metrics, promtool: str) -> None:
    import os

    metrics.request_finished("json", "linear", "1", 200, 0.004, stages_s={"run": 0.001})
    text, _ = Exposition(metrics, os.getpid())("")
    check = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (check.returncode, check.stderr) == (0, b"")


def test_counting_a_request_costs_microseconds(metrics: Metrics) -> None:
    stages = dict.fromkeys(STAGES, 0.001)
    started_s = time.perf_counter()
    for _ in range(2000):
        metrics.request_finished("json", "linear", "1", 200, 0.004, rows=1, stages_s=stages)
    # About 4 us here; ten times that would be a tenth of what a small request costs in all.
    assert (time.perf_counter() - started_s) / 2000 < 100e-6


def test_documentation_lists_every_metric_and_no_other() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    listed = set(re.findall(r"^\| `((?:foldserve|process)_\w+)", text, re.MULTILINE))
    assert listed == {metric.name for metric in EXPOSED} | set(PROCESS_METRICS)


def test_plans_made_alike_lay_out_alike(metrics: Metrics) -> None:
    same = Plan(metrics.plan.versions, metrics.plan.devices, metrics.plan.writers)
    assert same.layout().offsets == metrics.plan.layout().offsets
