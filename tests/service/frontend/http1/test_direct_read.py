"""Large bodies are read into their places, and whatever becomes of one, its connection and all others go on."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldserve.service.frontend.http1.direct_read import DIRECT_READ_BYTES, DirectRead
from tests.service.frontend.http1.connection import RAW, ApiServerHarness, Connection, call

ACCEPT = "Accept: application/octet-stream"
ROOM: Any = {"data_bytes": 1 << 22, "max_rows": 1 << 20, "max_bytes": 1 << 22, "max_batch_size": 1 << 16}
LARGE_ROWS = 12_000


def body_of(number: int, rows: int = LARGE_ROWS) -> bytes:
    return np.arange(2 * rows, dtype="<f4").tobytes()[:-4] + np.float32(number).tobytes()


def message(number: int, rows: int = LARGE_ROWS) -> bytes:
    return call(body_of(number, rows), RAW, ACCEPT)


def is_right(answer: Any, number: int, rows: int = LARGE_ROWS) -> bool:
    wanted = np.frombuffer(body_of(number, rows), "<f4") + 1
    return answer.status == 200 and np.array_equal(np.frombuffer(answer.body, "<f4"), wanted)


def reads_directly(connection: Connection) -> bool:
    return isinstance(connection.socket.protocol, DirectRead)


def run(test: Callable[[ApiServerHarness], Awaitable[Any]], **rig: Any) -> None:
    async def main() -> None:
        server = ApiServerHarness(limit_bytes=1 << 22, **{**ROOM, **rig})
        await test(server)
        await server.rest()
        assert server.free

    asyncio.run(main())


async def answers(server: ApiServerHarness, connection: Connection, count: int) -> list[Any]:
    await server.turn(lambda: len(connection.answers()) == count, most=5000)
    return connection.answers()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_requests_of_all_sizes_are_answered_alike_however_their_bytes_are_cut(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.sampled_from([1, 100, 5000, 9000, LARGE_ROWS]), min_size=1, max_size=4))
    stream = b"".join(message(number, rows) for number, rows in enumerate(sizes))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))

    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            connection.send(stream[start:end])
            await server.turn(most=3)
        found = await answers(server, connection, len(sizes))
        assert all(
            is_right(one, number, rows) for one, (number, rows) in zip(found, enumerate(sizes), strict=True)
        )
        assert not reads_directly(connection)

    run(test)


def test_rest_of_a_large_body_is_read_into_its_place() -> None:
    async def test(server: ApiServerHarness) -> None:
        connection, whole = server.connect(), message(7)
        connection.send(whole[:1000])
        assert reads_directly(connection)
        allocation = connection.protocol._own._request.allocation
        buffer = connection.socket.protocol.get_buffer(-1)
        buffer[:4] = b"abcd"
        assert b"abcd" in bytes(allocation.inputs[:1000])  # the very memory
        connection.send(whole[1000:])
        assert not reads_directly(connection)
        (answer,) = await answers(server, connection, 1)
        assert is_right(answer, 7)

    run(test)


def test_body_that_loses_its_place_while_it_is_read_goes_on_in_memory_of_its_own() -> None:
    async def test(server: ApiServerHarness) -> None:
        connection, whole = server.connect(), message(3)
        connection.send(whole[:-50_000])
        assert reads_directly(connection)
        assert server.rig.dispatcher.evict(1)
        connection.send(whole[-50_000:-10])
        assert not reads_directly(connection)
        connection.send(whole[-10:] + message(4))
        found = await answers(server, connection, 2)
        assert [is_right(one, number) for one, number in zip(found, (3, 4), strict=True)] == [True, True]

    run(test)


@pytest.mark.parametrize("left", [10, DIRECT_READ_BYTES, 60_000])
def test_rest_of_a_body_that_was_refused_is_dropped_and_the_next_request_answered(left: int) -> None:
    async def test(server: ApiServerHarness) -> None:
        connection, whole = server.connect(), message(3)
        connection.send(whole[:-left])
        server.bodies.budget._evict(
            connection.protocol._own._request._partial._holding
        )  # its memory has run out
        connection.send(whole[-left:] + message(5))
        first, second = await answers(server, connection, 2)
        assert first.status == 429
        assert is_right(second, 5)

    run(test)


@pytest.mark.parametrize("goes", [Connection.leave, Connection.end])
def test_client_that_goes_in_the_middle_of_a_large_body_leaves_nothing(
    goes: Callable[[Connection], None],
) -> None:
    async def test(server: ApiServerHarness) -> None:
        connection = server.connect()
        connection.send(message(3)[:-50_000])
        assert reads_directly(connection)
        goes(connection)
        await server.rest()
        assert connection.socket.closing
        assert server.free

    run(test)


def test_body_that_does_not_come_in_time_is_refused_and_its_place_is_another_ones() -> None:
    async def test(server: ApiServerHarness) -> None:
        slow, other = server.connect(), server.connect()
        slow.send(message(3)[:-50_000])
        async with asyncio.timeout(60):
            while not slow.answers():
                await asyncio.sleep(0.01)
        assert slow.answers()[0].status == 504
        other.send(message(4))
        (answer,) = await answers(server, other, 1)
        slow.send(message(3)[-50_000:-20])  # into nobody's place
        assert is_right(answer, 4)

    async def main() -> None:
        server = ApiServerHarness(limit_bytes=1 << 22, request_timeout_s=0.2, **ROOM)
        await test(server)
        assert server.free

    asyncio.run(main())
