"""The fast protocol without a network: bytes in, bytes out."""

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foldserve.service.engine.request import ScratchRequest
from tests.service.frontend.http1.connection import (
    ASGI,
    JSON,
    LIVE,
    PATH,
    RAW,
    ApiServerHarness,
    call,
    rows,
    run,
    statuses,
)

CALLS: dict[str, tuple[bytes, int]] = {
    "short": (call(rows(1.0)), 200),
    "short again": (call(rows(1.0)), 200),
    "three rows": (call(rows(1.0, 2.0, 3.0)), 200),
    "raw": (call(np.float32([[7, 7]]).tobytes(), RAW), 200),
    "bad": (call(b'{"inputs": 1}'), 400),
    "long": (call(rows(5.0), JSON, ASGI), 200),
    "live": (LIVE, 200),
    "chunked": (
        b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
        % (PATH.encode(), len(rows(8.0)), rows(8.0)),
        200,
    ),
    "a body like a request": (call(call(rows(1.0))), 400),
    "get": (call(b"", method="GET"), 405),
    "blank lines first": (b"\r\n\r\n" + call(rows(9.0)), 200),
}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(names=st.lists(st.sampled_from(sorted(CALLS)), min_size=1, max_size=8), data=st.data())
def test_however_the_bytes_are_cut_each_request_gets_its_own_answer_in_order(
    names: list[str], data: st.DataObject
) -> None:
    stream = b"".join(CALLS[name][0] for name in names)
    cuts = data.draw(st.lists(st.integers(1, len(stream) - 1), max_size=12, unique=True).map(sorted))
    waits = data.draw(st.sets(st.integers(0, len(cuts))))

    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        for i, (begin, end) in enumerate(zip([0, *cuts], [*cuts, len(stream)], strict=True)):
            await server.turn(lambda: connection.socket.reading)
            connection.send(stream[begin:end])
            if i in waits:
                await server.turn()
        await server.turn(lambda: len(connection.answers()) == len(names), most=500)
        alone = []
        for name in names:
            other = server.connect()
            other.send(CALLS[name][0])
            await server.turn(lambda other=other: bool(other.answers()))
            alone += other.answers()
        assert statuses(connection) == [CALLS[name][1] for name in names]
        assert [a.body for a in connection.answers()] == [a.body for a in alone]
        assert server.free

    run(test)


class NoParser:
    """In the parser's place where nothing must be given to it."""

    def feed_data(self, data: bytes) -> None:
        raise AssertionError(f"parsed: {data!r}")


@pytest.mark.parametrize("line", ["traceparent: 00-%032x-01", "X-Request-Id: %d", "Accept: */*"])
def test_an_ordinary_head_is_not_parsed_and_frames_its_own_body(line: str) -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.protocol.parser = NoParser()
        for number in range(3):
            connection.send(call(rows(number), JSON, line % number if "%" in line else line))
            await server.turn()
        assert [answer.values for answer in connection.answers()] == [[1.0], [2.0], [3.0]]

    run(test)


@pytest.mark.parametrize("way", [(), (ASGI,)], ids=["short", "long"])
@pytest.mark.parametrize("line", ["X-Timeout-Ms: 9000", "X-Priority: 1", "X-Request-Id: mine"])
def test_white_space_after_a_headers_value_is_none_of_it(line: str, way: tuple[str, ...]) -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.send(call(rows(1.0), JSON, f"{line} \t ", *way))
        await server.turn(lambda: bool(connection.answers()))
        (answer,) = connection.answers()
        assert answer.values == [2.0]
        assert "mine" not in line or answer.headers["x-request-id"] == "mine"

    run(test)


BROKEN = [
    b"\x16\x03\x01",
    b"POST /predict/m0 HTTP/1.1\nContent-Length: 2\n\n{}",
    b"POST /predict/m0 HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    b"POST /predict/m0 HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /predict/m0 HTTP/1.1\r\nX: a\r\n folded\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /predict/m0 HTTP/1.1\r\nX : a\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /predict/m0 HTTP/1.1\r\nContent-Length: +2\r\n\r\n{}",
    b"POST /predict/m0 HTTP/1.1\r\nX: " + b"x" * 70_000,
]


@pytest.mark.parametrize("broken", BROKEN, ids=range(len(BROKEN)))
@pytest.mark.parametrize(
    "before", [b"", call(rows(1.0)), call(rows(1.0), JSON, ASGI)], ids=["", "short", "long"]
)
@pytest.mark.parametrize("wait", [False, True])
def test_what_is_no_request_ends_the_connection_after_the_answers_that_are_due(
    broken: bytes, before: bytes, wait: bool
) -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        if wait:
            connection.send(before)
            await server.turn(lambda: bool(connection.answers()))
            connection.send(broken)
        else:
            connection.send(before + broken[:1000])
            connection.send(broken[1000:])
        connection.send(call(rows(2.0)))  # whatever follows is not a request any more
        await server.turn(lambda: connection.socket.closing)
        answers = connection.answers()
        assert connection.socket.closing
        assert [answer.status for answer in answers] == ([200, 400] if before else [400])
        assert answers[-1].code == "bad_request"
        assert len(answers[-1].headers["x-request-id"]) == 32
        assert answers[-1].headers["connection"] == "close"
        assert server.free

    run(test)


def test_chunks_that_are_no_chunks_end_the_request() -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.send(
            b"POST /predict/m0 HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
        )
        await server.turn(lambda: connection.socket.closing)
        (answer,) = connection.answers()
        assert (answer.status, answer.code) == (400, "bad_request")

    run(test)


def test_a_broken_body_behind_a_request_that_waits_does_not_keep_its_answer_back() -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.send(call(rows(1.0)))
        connection.send(
            b"POST /predict/m0 HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
        )
        await server.turn(lambda: connection.socket.closing)
        assert statuses(connection) == [200, 400]
        assert connection.answers()[1].headers["connection"] == "close"
        assert server.free

    run(test)


def test_only_the_first_request_after_which_the_client_wants_to_close_is_answered() -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.send(call(rows(1.0), JSON, "Connection: close") + call(rows(2.0)))
        await server.turn(lambda: connection.socket.closing)
        assert [answer.values for answer in connection.answers()] == [[2.0]]
        assert connection.answers()[0].headers["connection"] == "close"

    run(test)


BODIES = {
    "good": (rows(1.0, 2.0), JSON, 200),
    "bad JSON": (b"{", JSON, 400),
    "bad tensor": (b'{"inputs": [[1]]}', JSON, 400),
    "raw": (np.float32([[1, 2]]).tobytes(), RAW, 200),
    "infinite": (rows(float(np.finfo(np.float32).max)), JSON, 500),
    "fails": (rows(13.0), JSON, 500),
}


@pytest.mark.parametrize("name", BODIES)
def test_log_metrics_and_answer_are_the_same_on_both_paths(name: str) -> None:
    body, kind, status = BODIES[name]

    def on_run(x: np.ndarray) -> np.ndarray | None:
        if 13.0 in x:
            raise ValueError("no luck")
        with np.errstate(over="ignore"):
            return np.where(x > 1e38, np.float32("inf"), x + 1).astype(np.float32)

    async def test(server: ApiServerHarness, *way: str) -> tuple[Any, ...]:
        server.worker = server.rig.new_worker(on_run=on_run)
        connection = server.connect()
        connection.send(call(body, kind, "X-Request-Id: mine", *way))
        await server.turn(lambda: bool(connection.answers()))
        await server.rest()
        (answer,) = connection.answers()
        totals = server.metrics.store.totals()
        counted = {}
        for metric in server.metrics.store.layout.metrics:
            for labels, at in server.metrics.store.layout.series(metric, [(0, ("m0", "1"))]).items():
                # Of a histogram the count; its buckets and sum hold seconds, which differ from run to run.
                cells = len(metric.buckets) + 1 if metric.kind == "histogram" else 1
                counted[metric.name, labels] = totals[at : at + cells].sum()
        ((line, line_status),) = server.lines
        fields = ("request_id", "method", "path", "route", "protocol", "model", "version", "rows")
        noted = [getattr(line, field) for field in (*fields, "batch_rows", "body_bytes", "error_code")]
        timing = [part.split(";")[0] for part in answer.headers.get("server-timing", "").split(", ")]
        kept = {key: value for key, value in answer.headers.items() if key not in ("server-timing", "date")}
        assert "date" in answer.headers
        return (
            answer.status,
            json.dumps(kept, sort_keys=True),
            re.sub(rb"error id \w+", b"error id X", answer.body),
            timing,
            counted,
            noted,
            line_status,
        )

    short, long = run(test), run(lambda server: test(server, ASGI))
    assert short[0] == status
    for of_short, of_long in zip(short, long, strict=True):
        assert of_short == of_long


def test_an_error_of_ours_is_answered_500_and_the_others_of_its_batch_are_not_touched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(server: ApiServerHarness) -> None:
        connections = [server.connect() for _ in range(3)]
        for value, connection in enumerate(connections):
            connection.send(call(rows(float(value))))
        real = server.rig.dispatcher.outputs
        broken = next(iter(server.rig.dispatcher.in_flight.values()))

        def outputs(request: Any) -> Any:
            if request is broken:
                raise RuntimeError("a fault of ours")
            return real(request)

        monkeypatch.setattr(server.rig.dispatcher, "outputs", outputs)
        await server.turn()
        assert [statuses(connection) for connection in connections] == [[500], [200], [200]]
        assert connections[0].answers()[0].code == "internal"
        assert server.free

    run(test)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(("body", "kind"), [(rows(1.0), JSON), (np.float32([[7, 7]]).tobytes(), RAW)])
def test_request_whose_own_connection_ends_to_make_room_for_it_is_over_once(
    body: bytes, kind: str, parts: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(server: ApiServerHarness) -> None:
        dispatcher, connection = server.rig.dispatcher, server.connect()
        held = []
        while dispatcher.lend(one := ScratchRequest(server.rig.dispatcher.queues[0]), 8, 8):
            held.append(one)

        def evict(nbytes: int) -> bool:
            connection.protocol.abort()  # as a client that takes nothing of an earlier answer is ended
            dispatcher.release(held.pop())
            return True

        dispatcher.evict = evict
        whole = call(body, kind)
        at = len(whole) - 3 if parts == 2 else len(whole)
        connection.send(whole[:at])
        connection.send(whole[at:])
        await server.turn()
        connection.leave()
        for one in held:
            dispatcher.release(one)
        assert server.free
        assert [status for _, status in server.lines] == [499]
        assert caplog.records == []

    run(test)
