"""wrk's figures are read as it prints them."""

import shutil

import pytest

from benchmarks.serving import wrk
from benchmarks.serving.servers import Request
from tests.benchmarks.conftest import PostServer

OUTPUT = """\
Running 2s test @ http://127.0.0.1:8000/predict
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.21ms  310.00us   5.02ms   88.10%
    Req/Sec    13.22k   410.10    13.90k    70.00%
  26310 requests in 2.00s, 9.10MB read
  Socket errors: connect 0, read 2, write 0, timeout 1
  Non-2xx or 3xx responses: 4
Requests/sec:  13140.22
Transfer/sec:      4.55MB
FIGURES requests=26310 duration_us=2002000 p50_us=1180 p99_us=2410 status=4 socket=3
"""


def test_the_line_of_the_script_becomes_a_load_in_seconds_and_milliseconds() -> None:
    assert wrk.parse(OUTPUT) == wrk.Load(26310, 2.002, 1.18, 2.41, failed=7)


def test_output_without_figures_is_refused_with_what_was_printed() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        wrk.parse("unable to connect to 127.0.0.1:1 Connection refused\n")


def test_a_missing_wrk_is_told_with_the_package_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SystemExit, match="apt-get install wrk"):
        wrk.check_installed()


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not in PATH")
def test_wrk_sends_the_request_as_given_and_counts_refusals(posts: PostServer) -> None:
    request = Request('/a?b="c\\d"', {"Content-Type": "text/x", "X-Odd": 'a"b\\c'}, b'{"a": 1}\x00\xff')
    load = wrk.run(posts.port, request, connections=2, seconds=1)
    head, body = posts.seen[0]
    assert head.startswith('POST /a?b="c\\d" HTTP/1.1\r\n')
    assert "Content-Type: text/x" in head
    assert 'X-Odd: a"b\\c' in head
    assert body == request.body
    assert load.requests >= 1
    # Every second answer is a 429; a connection's last may be cut off by wrk's own end.
    assert load.failed == pytest.approx(load.requests / 2, abs=2)
