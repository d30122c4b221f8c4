"""A request that is refused before its body, and how a refused connection is read on."""

import asyncio

import numpy as np
import pytest

from foldserve.service.frontend.http1.flow.throttle import CLOSE, FREE, RefusalThrottle
from tests.service.frontend.http1.connection import (
    JSON,
    RAW,
    ApiServerHarness,
    call,
    rows,
    run,
    statuses,
)


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
