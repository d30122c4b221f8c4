"""Bodies that come in parts, late or never: what holds on to what, and for how long."""

import asyncio
from typing import Any

import numpy as np
import pytest

from foldserve.service.frontend.http1.heads.rules import MOST_HEADERS
from tests.service.frontend.http1.connection import (
    ASGI,
    JSON,
    LIMIT_BYTES,
    RAW,
    ApiServerHarness,
    call,
    rows,
    run,
    statuses,
)
from tests.service.repositories import sample


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
            computed = server.worker.loops[0]._runner.run(taken, 1)
            assert computed is not None
            server.worker.loops[0]._runner.give(computed)
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
