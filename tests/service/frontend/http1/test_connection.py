"""The fast protocol without a network: bytes in, bytes out, and what holds on to what."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foldserve.service.engine.request import ScratchRequest
from foldserve.service.frontend.http1.flow import send_buffers as unread_module
from foldserve.service.frontend.http1.flow.send_buffers import PATIENCE_S
from foldserve.service.frontend.http1.flow.throttle import CLOSE, FREE, RefusalThrottle
from foldserve.service.frontend.http1.heads.rules import MOST_HEADERS
from tests.service.frontend.http1.connection import (
    ASGI,
    JSON,
    LIMIT_BYTES,
    PATH,
    RAW,
    ApiServerHarness,
    Connection,
    call,
    rows,
)
from tests.service.repositories import sample

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n"


def run(test: Callable[[ApiServerHarness], Awaitable[Any]], **rig: Any) -> Any:
    """Run a test's body with a server on an event loop of its own."""

    async def main() -> Any:
        return await test(ApiServerHarness(**rig))

    return asyncio.run(main())


def statuses(connection: Connection) -> list[int]:
    return [answer.status for answer in connection.answers()]


# Bytes in any pieces -----------------------------------------------------------------------------------

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


# What is not an ordinary request -----------------------------------------------------------------------

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


# Refusals before the body ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [JSON, RAW])
@pytest.mark.parametrize("known", [False, True])
def test_a_model_that_is_not_ready_refuses_before_the_body_and_the_connection_serves_on(
    kind: str, known: bool
) -> None:
    body = rows(1.0) if kind == JSON else np.float32([[1, 1]]).tobytes()
    message = call(body, kind)
    head = message[: -len(body)]

    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        if known:
            connection.send(message)
            await server.turn()
        server.rig.board.ready[0, 0] = 0
        connection.send(head)
        assert connection.answers()[-1].status == 503
        assert connection.answers()[-1].code == "not_ready"
        server.rig.board.ready[0, 0] = 1
        connection.send(body[:3])
        connection.send(body[3:] + message)
        await server.turn()
        assert statuses(connection)[-2:] == [503, 200]
        assert server.free

    run(test)


def test_a_full_queue_refuses_with_the_time_to_come_back_and_the_connection_serves_on() -> None:
    async def test(server: ApiServerHarness) -> None:
        first, second = server.connect(), server.connect()
        first.send(call(rows(1.0, 2.0)))
        second.send(call(rows(3.0)))
        (refused,) = second.answers()
        assert (refused.status, refused.code) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        await server.turn(lambda: bool(first.answers()))
        second.send(call(rows(3.0)))
        await server.turn()
        assert second.answers()[1].values == [4.0]
        assert server.free

    run(test, max_rows=2)


def test_after_a_flood_of_refusals_the_refused_connection_is_not_read_from_for_a_while() -> None:
    async def test(server: ApiServerHarness) -> None:
        first, second = server.connect(), server.connect()
        first.send(call(rows(1.0, 2.0)))
        while second.socket.reading:
            second.send(call(rows(3.0)))
        assert {answer.status for answer in second.answers()} == {429}
        assert len(second.answers()) > FREE
        assert first.socket.reading
        await server.turn(lambda: bool(first.answers()))
        async with asyncio.timeout(10.0):
            while not second.socket.reading:
                await asyncio.sleep(0.001)  # between two looks
        second.send(call(rows(3.0)))
        await server.turn()
        assert second.answers()[-1].values == [4.0]

    run(test, max_rows=2)


def test_a_refused_client_that_leaves_in_its_pause_is_noticed_and_what_it_sends_waits() -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.protocol._flow.pause(0.001)
        assert connection.socket.reading  # that is how its leaving would be seen
        connection.send(call(rows(1.0)))
        assert not connection.socket.reading
        assert not server.rig.dispatcher.in_flight
        await server.turn(lambda: connection.socket.reading, most=100_000)
        await server.turn()
        assert connection.answers()[0].values == [2.0]
        assert server.free

    run(test)


def test_a_pause_that_ends_after_the_connection_touches_nothing() -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.protocol._flow.pause(0.001)
        connection.send(call(rows(1.0)))
        connection.socket.close()
        done = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.002, done.set_result, None)
        await done
        assert not connection.socket.reading
        assert not connection.socket.written
        assert server.free

    run(test)


class PastTheLongestPause(RefusalThrottle):
    """Whatever the clock says: after a flood it moves on while a test comes to its next line."""

    def delay_s(self, now_s: float) -> float:
        return CLOSE


def test_past_the_longest_pause_a_refused_connection_is_closed_with_its_answer() -> None:
    async def test(server: ApiServerHarness) -> None:
        first = server.connect()
        first.send(call(rows(1.0, 2.0)))
        server.http.throttle = PastTheLongestPause()
        refused = server.connect()
        refused.send(call(rows(3.0)))
        (answer,) = refused.answers()
        assert (answer.status, answer.headers.get("connection")) == (429, "close")
        assert refused.socket.closing

    run(test, max_rows=2)


# Bodies in parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [JSON, RAW])
def test_heads_without_bodies_hold_nothing(kind: str) -> None:
    async def test(server: ApiServerHarness) -> None:
        heads = [server.connect() for _ in range(40)]
        for connection in heads:
            connection.send(call(bytes(8 * 12_000), kind)[: -8 * 12_000])
        assert server.free
        other = server.connect()
        other.send(call(bytes(8 * 6000), RAW))
        await server.turn(lambda: bool(other.answers()), most=2000)
        assert statuses(other) == [200]

    run(test, data_bytes=150_000, max_rows=100_000)


def test_half_sent_bodies_leave_their_places_to_whole_ones_and_lose_nothing_by_it() -> None:
    async def test(server: ApiServerHarness) -> None:
        halves = [server.connect() for _ in range(4)]
        bodies = [np.full((2000, 2), number, np.float32).tobytes() for number in range(4)]
        for connection, body in zip(halves, bodies, strict=True):
            message = call(body, RAW, "Accept: application/octet-stream")
            connection.send(message[:-9000])
        assert server.rig.dispatcher.lent_bytes > 0
        whole = server.connect()
        whole.send(call(bytes(8 * 8000), RAW))
        assert server.rig.dispatcher.lent_bytes == 0
        await server.turn(lambda: bool(whole.answers()), most=2000)
        assert statuses(whole) == [200]
        for number, (connection, body) in enumerate(zip(halves, bodies, strict=True)):
            connection.send(body[-9000:-1])
            connection.send(body[-1:])
            await server.turn(lambda connection=connection: bool(connection.answers()), most=2000)
            (answer,) = connection.answers()
            assert answer.status == 200
            assert np.array_equal(np.frombuffer(answer.body, "<f4"), np.full(4000, number + 1.0))
        assert server.free

    run(test, data_bytes=150_000, max_rows=100_000)


@pytest.mark.parametrize("way", [(), (ASGI,)], ids=["short", "long"])
def test_who_sends_much_of_a_body_and_stops_gives_way_and_is_told(way: tuple[str, ...]) -> None:
    async def test(server: ApiServerHarness) -> None:
        server.bodies.budget.limit_bytes = 100_000
        hogs = [server.connect() for _ in range(2)]
        for connection in hogs:
            connection.send(call(bytes(90_000), JSON, *way)[:-45_000])
            await server.rest()
        assert server.bodies.budget.used_bytes > 85_000
        other = server.connect()
        message = call(bytes(8 * 4000), RAW)
        other.send(message[:-1])
        await server.rest()
        gone = [connection for connection in hogs if connection.answers()]
        assert [(answer.status, answer.code) for connection in gone for answer in connection.answers()] == [
            (429, "queue_full")
        ]
        other.send(message[-1:])
        await server.turn(lambda: bool(other.answers()), most=2000)
        assert statuses(other) == [200]
        for connection in hogs:
            connection.leave()
        await server.rest()
        assert server.free

    run(test, max_rows=100_000)


def test_a_body_over_the_limit_is_refused_from_its_head() -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.send(call(bytes(LIMIT_BYTES + 1), RAW)[:200])
        await server.rest()
        # The answer is there at once; the connection then lingers, so that the client can read it.
        assert b"HTTP/1.1 413" in connection.socket.written
        assert server.rig.all_free()
        connection.leave()
        await server.rest()

    run(test)


# Slow and vanished clients -----------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [0, 5, -1], ids=["the head only", "a little", "all but a byte"])
@pytest.mark.parametrize("kind", [JSON, RAW])
def test_a_body_that_does_not_come_in_time_is_answered_504_and_frees_all(sent: int, kind: str) -> None:
    body = rows(1.0) if kind == JSON else np.float32([[1, 1]]).tobytes()

    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        message = call(body, kind)
        at = len(message) - len(body)
        connection.send(message[: at + sent] if sent >= 0 else message[:sent])
        for _ in range(500):
            if connection.answers():
                break
            await asyncio.sleep(0.001)  # the time bound under test is 20 ms of the loop's clock
        (answer,) = connection.answers()
        assert (answer.status, answer.code) == (504, "deadline_passed")
        assert server.free
        # What it owes still is dropped, and the connection serves on; the next request has all the time it needs.
        server.http.server.request_timeout_s, server.http.server.request_timeout_ns = None, 10**18
        connection.send(body[sent:] + message)
        await server.turn(lambda: len(connection.answers()) == 2)
        assert connection.answers()[1].status == 200
        assert server.free

    run(test, request_timeout_s=0.02)


@pytest.mark.parametrize("way", [(), (ASGI,)], ids=["short", "long"])
@pytest.mark.parametrize("where", ["in the body", "in the queue", "in the batch"])
def test_a_client_that_leaves_frees_its_place_and_counts_once_as_499(
    monkeypatch: pytest.MonkeyPatch, way: tuple[str, ...], where: str
) -> None:
    message = call(rows(1.0), JSON, *way)

    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.send(message[:-1] if where == "in the body" else message)
        await server.rest()
        server.rig.dispatcher.flush()
        taken: list[Any] = []
        if where == "in the batch":
            batch = server.worker.batchers[0].next(8, wait=False)
            assert batch is not None
            taken = list(batch.tickets)
            assert len(taken) == 1
        connection.leave()
        await server.rest()
        assert not connection.socket.written
        labels = {"model": "m0", "version": "1", "protocol": "json", "code": "499"}
        assert sample(server.metrics, "foldserve_requests_total", **labels) == 1
        if taken:
            server.worker.loops[0]._runner.run(taken, 1)
        await server.turn(lambda: server.free)
        assert server.free
        if where == "in the queue":
            assert not server.worker.sessions[0].batches  # it never took a place in a batch
        assert sample(server.metrics, "foldserve_requests_total", **labels) == 1

    run(test)


@pytest.mark.parametrize("ends", [True, False], ids=["a whole head", "half a head"])
def test_a_head_of_very_many_lines_is_refused_and_not_kept(ends: bool) -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        lines = b"a:b\r\n" * 10_000
        connection.send(b"POST /predict/m0 HTTP/1.1\r\nHost: test\r\n" + lines + b"\r\n" * ends)
        assert len(connection.protocol.headers) <= MOST_HEADERS + 1
        await server.turn(lambda: connection.socket.closing)
        (answer,) = connection.answers()
        assert (answer.status, answer.code) == (400, "bad_request")
        assert "more than 1024 lines" in str(answer.body)
        assert server.free

    run(test)


def test_trailers_are_read_past_and_not_kept() -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        body = b"%x\r\n%b\r\n0\r\n" % (len(rows(1.0)), rows(1.0))
        head = call(b"", JSON, "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
        connection.send(head + body + b"a:b\r\n" * 10_000)
        assert len(connection.protocol.headers) < 10
        connection.send(b"\r\n" + call(rows(2.0)))
        await server.turn(lambda: len(connection.answers()) == 2)
        assert [answer.values for answer in connection.answers()] == [[2.0], [3.0]]
        assert server.free

    run(test)


def test_a_body_of_very_small_chunks_is_read_over_several_turns() -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        body = b"".join(b"1\r\n%c\r\n" % byte for byte in rows(1.0).ljust(40_000)) + b"0\r\n\r\n"
        head = call(b"", JSON, "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
        connection.send(head + body)
        turns = 0
        while server.rig.dispatcher.in_flight == {} and not connection.answers():
            assert connection.protocol._chunks < 15_000
            await asyncio.sleep(0)
            turns += 1
        assert turns > 2
        await server.turn(lambda: bool(connection.answers()))
        assert connection.answers()[0].values == [2.0]
        connection.send(call(rows(2.0)))
        await server.turn(lambda: len(connection.answers()) == 2)
        assert server.free

    run(test)


# Flow --------------------------------------------------------------------------------------------------


def test_a_client_that_reads_nothing_is_not_read_from_until_it_does() -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.send(call(rows(1.0)))
        await server.turn()
        connection.protocol.pause_writing()
        assert not connection.socket.reading
        connection.protocol.resume_writing()
        assert connection.socket.reading

    run(test)


@pytest.mark.parametrize("way", [(), (ASGI,)], ids=["short", "long"])
def test_no_more_is_read_while_requests_wait_for_their_turn(way: tuple[str, ...]) -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.send(b"".join(call(rows(float(i)), JSON, *way) for i in range(20)))
        sent = 20
        most = 0
        while len(connection.answers()) < 100:
            await server.turn(most=2)
            most = max(most, len(connection.protocol.pipeline))
            if connection.socket.reading and sent < 100:
                connection.send(b"".join(call(rows(float(i)), JSON, *way) for i in range(sent, sent + 20)))
                sent += 20
        assert [answer.values for answer in connection.answers()] == [[i + 1.0] for i in range(100)]
        assert most <= 20
        assert server.free

    run(test)


@pytest.mark.parametrize("way", [(), (ASGI,)], ids=["short", "long"])
def test_of_a_long_pipeline_one_request_is_parsed_ahead_and_the_rest_is_bounded(way: tuple[str, ...]) -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        first = call(rows(1.0), JSON, *way)
        pipeline = LIVE * 2000
        connection.send(first + pipeline)
        await server.rest()
        assert len(connection.protocol.pipeline) <= 1
        assert len(server.state.tasks) <= 1
        assert server.bodies.budget.used_bytes >= len(pipeline) - 2 * len(LIVE)  # what is kept counts
        assert not connection.socket.reading
        await server.turn(lambda: connection.socket.written.count(b"HTTP/1.1 200 ") == 2001, most=100_000)
        assert statuses(connection) == [200] * 2001
        assert connection.socket.reading
        assert server.free
        # One that finds no room is ended.
        server.bodies.budget.limit_bytes = 1000
        connection.send(first + pipeline)
        assert connection.socket.aborted
        await server.rest()
        await server.turn(lambda: server.free)
        assert server.free

    run(test)


# Keep-alive and shutdown -------------------------------------------------------------------------------


class Clock:
    """The loop's time and timers, moved by hand."""

    def __init__(self, connection: Connection) -> None:
        self.now_s = 1000.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.protocol = connection.protocol
        real = connection.protocol.loop
        clock = self

        class Loop:
            def time(self) -> float:
                return clock.now_s

            def call_later(self, seconds: float, then: Callable[[], None]) -> Any:
                entry = (clock.now_s + seconds, then)
                clock.timers.append(entry)

                class Timer:
                    def cancel(self) -> None:
                        if entry in clock.timers:
                            clock.timers.remove(entry)

                return Timer()

            def create_task(self, *args: Any, **named: Any) -> Any:
                return real.create_task(*args, **named)

        connection.protocol._unset_keepalive_if_required()
        connection.protocol.timeout_keep_alive_task.cancel()
        connection.protocol.loop = Loop()  # type: ignore[assignment]
        connection.protocol._idle_since_s = self.now_s
        connection.protocol._arm_keep_alive(connection.protocol.timeout_keep_alive)

    def pass_time(self, seconds: float) -> None:
        """Move the clock, and call what is due."""
        end_s = self.now_s + seconds
        while due := [entry for entry in self.timers if entry[0] <= end_s]:
            entry = min(due, key=lambda timer: timer[0])
            self.timers.remove(entry)
            self.now_s = max(self.now_s, entry[0])
            entry[1]()
        self.now_s = end_s


def test_a_connection_is_ended_when_it_was_idle_for_the_whole_time_and_not_before() -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        clock = Clock(connection)
        limit_s = connection.protocol.timeout_keep_alive
        for _ in range(5):
            clock.pass_time(0.7 * limit_s)
            connection.send(call(rows(1.0)))
            await server.turn()
            assert len(clock.timers) == 1
        clock.pass_time(0.99 * limit_s)
        assert not connection.socket.closing
        clock.pass_time(0.02 * limit_s)
        assert connection.socket.closing

    run(test)


@pytest.mark.parametrize("sent", [b"", b"POST /predict/m0 HTTP/1.1\r\nX-Slow: "])
def test_a_client_that_never_sends_a_whole_head_is_ended(sent: bytes) -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        clock = Clock(connection)
        if sent:
            connection.send(sent)
        clock.pass_time(connection.protocol.timeout_keep_alive)
        assert connection.socket.closing

    run(test)


def test_a_connection_that_waits_for_an_answer_is_not_idle() -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        clock = Clock(connection)
        connection.send(call(rows(1.0)))
        clock.pass_time(10 * connection.protocol.timeout_keep_alive)
        assert not connection.socket.closing
        await server.turn()
        assert statuses(connection) == [200]
        clock.pass_time(connection.protocol.timeout_keep_alive)
        assert connection.socket.closing

    run(test)


def test_a_client_that_takes_its_answer_slowly_is_waited_for_and_one_that_takes_nothing_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unread_module, "CHECK_S", 0.0)

    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        clock = Clock(connection)
        connection.send(call(rows(1.0)))
        await server.turn()
        connection.socket.unsent_bytes = 40_000
        connection.protocol.pause_writing()
        for unsent in (30_000, 20_000, 10_000):
            assert server.http.unread.used_bytes == unsent + 10_000
            connection.socket.unsent_bytes = unsent
            server.now_s += 0.9 * PATIENCE_S
            await server.rest()
            clock.pass_time(2 * connection.protocol.timeout_keep_alive)
            assert not connection.socket.closing
        server.now_s += 1.1 * PATIENCE_S
        await server.rest()
        assert connection.socket.aborted
        assert server.free

    run(test)


def test_a_connection_that_is_closed_with_its_answer_waits_no_longer_for_who_takes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unread_module, "CHECK_S", 0.0)

    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.socket.close = lambda: setattr(connection.socket, "closing", True)  # type: ignore[method-assign]
        connection.socket.unsent_bytes = 200
        connection.send(call(rows(1.0), JSON, "Connection: close"))
        await server.turn()
        assert connection.socket.closing
        server.now_s += 1.1 * PATIENCE_S
        await server.rest()
        assert connection.socket.aborted

    run(test)


def test_shutdown_waits_for_the_answer_and_ends_an_idle_connection_at_once() -> None:
    async def test(server: ApiServerHarness) -> None:
        idle, waiting = server.connect(), server.connect()
        waiting.send(call(rows(1.0)))
        for connection in (idle, waiting):
            connection.protocol.shutdown()
        assert idle.socket.closing
        assert not waiting.socket.closing
        await server.turn(lambda: waiting.socket.closing)
        (answer,) = waiting.answers()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        await server.rest()
        assert not server.state.connections

    run(test)


@pytest.mark.parametrize("way", [(), (ASGI,)], ids=["short", "long"])
@pytest.mark.parametrize("what", ["answer", "refusal", "late body", "404"])
def test_every_answer_of_a_server_that_ends_closes_its_connection(what: str, way: tuple[str, ...]) -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.send(call(rows(1.0), JSON, *way))
        await server.turn()
        assert "connection" not in connection.answers()[0].headers
        message = {
            "answer": call(rows(1.0), JSON, *way),
            "refusal": call(b"[", JSON, *way),
            "late body": call(rows(1.0), JSON, *way),
            "404": call(rows(1.0), JSON, *way, path="/nowhere"),
        }[what]
        if what == "late body":
            connection.send(message[:-5])
            await server.rest()
        server.rig.board.draining[0] = 1
        connection.send(message[-5:] if what == "late body" else message)
        await server.turn(lambda: connection.socket.closing)
        answer = connection.answers()[1]
        assert answer.headers["connection"] == "close"
        assert connection.socket.closing

    run(test)


@pytest.mark.parametrize("way", [(), (ASGI,)], ids=["short", "long"])
def test_a_server_that_ends_answers_all_that_a_client_had_sent_and_closes_with_the_last(
    way: tuple[str, ...],
) -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        server.rig.board.draining[0] = 1
        connection.send(b"".join(call(rows(float(number)), JSON, *way) for number in range(5)))
        connection.protocol.shutdown()
        await server.turn(lambda: connection.socket.closing)
        assert [answer.values for answer in connection.answers()] == [[number + 1.0] for number in range(5)]
        closes = [answer.headers.get("connection") for answer in connection.answers()]
        assert closes == [None, None, None, None, "close"]

    run(test)


# The same on both paths ---------------------------------------------------------------------------------

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
