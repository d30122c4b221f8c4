"""Pairs of one checkout's server with another's: what the ratios say, and what is refused."""

from pathlib import Path

import pytest

from benchmarks.serving.against import Row, against_table, compiled_in, of
from benchmarks.serving.servers import FOLDSERVE
from benchmarks.serving.stats import Measured
from benchmarks.serving.workloads import WORKS


def measured(req_s: float, cpu_us: float) -> Measured:
    return Measured(req_s, 1.0, 2.0, cpu_us, 0, 0.0)


def row(*pairs: tuple[float, float, float, float]) -> Row:
    return Row("mlp", [(measured(a, b), measured(c, d)) for a, b, c, d in pairs])


def test_ratio_is_the_median_of_the_pairs_ratios_not_the_ratio_of_medians() -> None:
    # A machine at half its speed in the second pair: both sides lose, and the ratio stays.
    found = row((100, 10, 100, 10), (51, 20, 50, 20), (98, 10, 100, 10))
    assert found.ratio("req_s") == 1.0
    assert (found.median("req_s", 0), found.median("req_s", 1)) == (98, 100)


@pytest.mark.parametrize(
    ("pair", "worse"),
    [
        ((96, 10, 100, 10), False),
        ((94, 10, 100, 10), True),
        ((100, 10.4, 100, 10), False),
        ((100, 10.6, 100, 10), True),
    ],
)
def test_row_is_worse_beyond_five_hundredths(pair: tuple[float, float, float, float], worse: bool) -> None:
    assert row(pair).worse is worse
    assert ("**worse**" in against_table([row(pair)])) is worse


def test_checkout_without_a_compiled_wheel_is_refused_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="make wheel"):
        compiled_in(tmp_path)


def test_other_checkout_is_started_from_its_own_wheel(tmp_path: Path) -> None:
    (tmp_path / "build" / "compiled" / "foldserve").mkdir(parents=True)
    other = of(tmp_path, FOLDSERVE[0])
    assert other.environ(WORKS[0], 1) == {"PYTHONPATH": str(tmp_path / "build" / "compiled")}
    assert other.command(WORKS[0], 1) == FOLDSERVE[0].command(WORKS[0], 1)
