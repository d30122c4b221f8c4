"""What was counted of each model version, as numbers: the same as the text for Prometheus has."""

import os

from prometheus_client.parser import text_string_to_metric_families

from foldserve.service.metrics.catalog import STAGES
from foldserve.service.metrics.counts import read_counts
from foldserve.service.metrics.exposition import Exposition
from tests.service.repositories import metrics_of, nothing_live, table_of

VERSIONS = (("a", "1"), ("a", "2"), ("a.b", "1"))


def test_numbers_are_those_of_the_exposition_and_of_each_version_alone() -> None:
    metrics = metrics_of(*VERSIONS)
    for number, (model, version) in enumerate(VERSIONS, 1):
        stages = {stage: number * 0.001 * at for at, stage in enumerate(STAGES, 1)}
        for protocol, status in (("json", 200), ("oip", 200), ("v1", 400)):
            for _ in range(number):
                metrics.request_finished(protocol, model, version, status, 0.1, rows=3, stages_s=stages)
    metrics.request_finished("other", "", "", 404, 0.1)
    exposition = Exposition(metrics, table_of(*VERSIONS).map(), lambda: nothing_live(metrics), os.getpid())
    counted = read_counts(exposition.counts())
    assert set(counted) == set(VERSIONS)
    text, _ = exposition("")
    samples = [
        sample for family in text_string_to_metric_families(text.decode()) for sample in family.samples
    ]

    def total(name: str, **labels: str) -> float:
        return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())

    for number, (model, version) in enumerate(VERSIONS, 1):
        found, labels = counted[model, version], {"model": model, "version": version}
        assert (found.answered, found.succeeded) == (3 * number, 2 * number)
        assert found.answered == total("foldserve_requests_total", **labels)
        assert found.rows == total("foldserve_request_rows_sum", **labels)
        assert found.batches == total("foldserve_batches_total", **labels)
        for stage in STAGES:
            name = "foldserve_stage_duration_seconds"
            expected = [total(f"{name}_{part}", **labels, stage=stage) for part in ("count", "sum")]
            assert list(found.stages[stage]) == expected
