"""Medians, ratios, tables and promises are what the runs say."""

import math

import pytest

from benchmarks.serving.stats import Check, Measured, best, checks_table, medians, ratio, table
from benchmarks.serving.thresholds import checks


def measured(req_s: float = 100.0, **others: float) -> Measured:
    given = {"p50_ms": 1.0, "p99_ms": 2.0, "cpu_us": 50.0, "failed": 0, "others": 0.0, **others}
    return Measured(req_s, **given)


def test_each_figure_has_its_own_median_and_no_failure_is_lost() -> None:
    runs = [
        measured(100, p50_ms=3, p99_ms=9, cpu_us=10, failed=0, others=0.5),
        measured(300, p50_ms=1, p99_ms=7, cpu_us=30, failed=2, others=0.0),
        measured(200, p50_ms=2, p99_ms=8, cpu_us=99, failed=1, others=0.1),
    ]
    assert medians(runs) == Measured(200, 2, 8, 30, 3, 0.1)


def test_a_ratio_to_nothing_is_no_number_and_reaches_nothing() -> None:
    assert ratio(3, 2) == 1.5
    assert math.isnan(ratio(3, 0))
    assert not Check("x", ratio(3, 0), 1, least=True).reached
    assert not Check("x", ratio(3, 0), 1, least=False).reached


@pytest.mark.parametrize(
    ("got", "least", "reached"), [(1.0, True, True), (0.9, True, False), (1.1, False, False)]
)
def test_a_promise_is_reached_from_the_right_side(got: float, least: bool, reached: bool) -> None:
    assert Check("x", got, 1.0, least).reached is reached


def test_the_table_marks_disturbed_cells_and_leaves_gaps_open() -> None:
    cells = {
        ("a", 1): measured(1234, others=0.2),
        ("b", 1): measured(10),
        ("b", 16): measured(5000, failed=3),
    }
    lines = table({"b": "B", "a": "A", "none": "N"}, (1, 16), cells).splitlines()
    assert lines[0] == (
        "| server | req/s c=1 | p50 ms | req/s c=16 | p50, p99 ms | CPU µs c=1 | CPU µs c=16 | failed |"
    )
    assert lines[2] == "| B | 10 | 1.00 | 5,000 | 1.00, 2.0 | 50 | 50 | 3 |"
    assert lines[3] == "| A | ~1,234 | 1.00 | - | - | 50 | - | 0 |"
    assert len(lines) == 4


def test_the_best_of_a_family_is_the_one_with_most_requests() -> None:
    cells = {("m1", 16): measured(5), ("m2", 16): measured(7), ("m2", 64): measured(9)}
    assert best(["m1", "m2"], 16, cells) == cells["m2", 16]
    assert best(["m1"], 64, cells) is None


def test_promises_compare_our_best_with_the_best_of_others_and_skip_what_was_not_run() -> None:
    small = {
        ("foldserve-1", 64): measured(900),
        ("foldserve-2", 64): measured(1000),
        ("litserve-0", 64): measured(20),
        ("litserve-2", 64): measured(40),
        ("mosec-1", 64): measured(500),
        ("mosec-2", 64): measured(800),
    }
    rows = {one.what: one for one in checks({"mlp": small}, {})}
    assert {what: one.got for what, one in rows.items()} == {
        "mlp, 64 connections: req/s / stock LitServe": 25.0,
        "mlp, 64 connections: req/s / mosec": 1.25,
    }
    assert all(one.reached for one in rows.values())


def test_large_bodies_may_cost_the_bare_server_and_the_run_together() -> None:
    light = {("foldserve-1", 16): measured(100, cpu_us=600), ("bare", 16): measured(200, cpu_us=400)}
    (row,) = checks({"light": light}, {"light": {1: (1000.0, 150.0), 8: (2000.0, 100.0)}})
    assert row.got == 600 / (400 + 100)  # the loop at its best batch size
    assert "1.2" in checks_table([row])
