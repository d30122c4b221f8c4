"""The open-loop generator offers what it is asked to offer, and tells answers apart."""

import shutil
from pathlib import Path

import pytest

from benchmarks.serving import open_loop
from benchmarks.serving.servers import Request
from tests.benchmarks.conftest import PostServer

LINE = (
    "FIGURES arrived=100 ok=60 ok_in_time=55 refused=38 failed=1 unanswered=1 seconds=2.000 p50_ms=1.250 p99_ms=9.000 "
    "refused_p99_ms=0.500 late_ms=0.125\n"
)


def test_the_generators_line_is_read() -> None:
    assert open_loop.parse(LINE) == open_loop.OpenLoad(100, 60, 55, 38, 1, 1, 2.0, 1.25, 9.0, 0.5, 0.125)


def test_output_without_figures_is_refused() -> None:
    with pytest.raises(ValueError, match="no figures"):
        open_loop.parse("connect: Connection refused")


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_it_sends_whole_requests_at_the_rate_given_and_counts_200_and_429(
    posts: PostServer, tmp_path: Path
) -> None:
    program = open_loop.build(tmp_path)
    request = Request("/x", {"Content-Type": "a/b"}, bytes(200_000))
    load = open_loop.run(program, posts.port, request, rate=50, seconds=2.0, connections=4)
    # Poisson: 100 expected, and five standard deviations of sqrt(100) around it.
    assert load.arrived == pytest.approx(100, abs=50)
    assert load.ok + load.refused == load.arrived == len(posts.seen)
    assert abs(load.ok - load.refused) <= 1
    assert 0 < load.ok_in_time <= load.ok
    assert (load.failed, load.unanswered) == (0, 0)
    assert {len(body) for _, body in posts.seen} == {200_000}
    assert 0 < load.p50_ms <= load.p99_ms
