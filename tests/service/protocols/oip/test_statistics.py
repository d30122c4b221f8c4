"""What the statistics extension makes of what was counted."""

from foldserve.service.metrics.counts import ModelCounts, nothing_counted
from foldserve.service.protocols.oip.statistics import statistics

STAGES = {
    "decode": (5.0, 0.001),
    "queue": (4.0, 0.01),
    "gather": (4.0, 0.002),
    "run": (4.0, 0.1),
    "scatter": (4.0, 0.003),
    "encode": (3.0, 0.004),
}


def test_stages_are_summed_as_nanoseconds():
    told = statistics(ModelCounts("a", "1", 5.0, 3.0, 12.0, 2.0, STAGES))
    assert (told["name"], told["version"]) == ("a", "1")
    assert (told["inference_count"], told["execution_count"]) == (12, 2)
    assert told["inference_stats"] == {
        "success": {"count": 3, "ns": 120_000_000},
        "fail": {"count": 2, "ns": 0},
        "queue": {"count": 4, "ns": 10_000_000},
        "compute_input": {"count": 4, "ns": 3_000_000},
        "compute_infer": {"count": 4, "ns": 100_000_000},
        "compute_output": {"count": 3, "ns": 7_000_000},
        "cache_hit": {"count": 0, "ns": 0},
        "cache_miss": {"count": 0, "ns": 0},
    }


def test_version_that_was_not_there_counts_nothing():
    told = statistics(nothing_counted("a", "1"))
    assert {one["count"] for one in told["inference_stats"].values()} == {0}
