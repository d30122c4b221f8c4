"""An acceptor on real sockets: its share, its turn, its guests, its end."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvloop

from foldserve.service.frontend.connections import acceptor as module
from foldserve.service.frontend.connections.acceptor import Acceptor
from foldserve.service.frontend.connections.descriptors import ConnectionLimits
from foldserve.service.frontend.connections.shares import Shares
from foldserve.service.ipc.scoreboard import Dimensions, Scoreboard
from foldserve.service.metrics.catalog import CROWDED, FAILED

LONG_S = 30.0
HEALTH = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
PREDICT = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
PLENTY = ConnectionLimits(connections=1000, guests=4)


class Echo(asyncio.Protocol):
    """Says what it was sent; stands for the protocol of the server."""

    def __init__(self, left: Callable[[], None]) -> None:
        self._left = left

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(b"echo " + data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._left()


class Door:
    """The acceptor of API server 0 of two, and what it did."""

    def __init__(self, listener: socket.socket, room: ConnectionLimits) -> None:
        board = Scoreboard(Dimensions(api_servers=2, workers=1, models=1, instances=1))
        self.mine, self.other = Shares(board.map(), 0), Shares(board.map(), 1)
        self.address = listener.getsockname()
        self.refused: list[str] = []
        self._writers: list[asyncio.StreamWriter] = []
        self.acceptor = Acceptor(
            [listener], lambda: Echo(self.acceptor.left), self.mine, room, self.refused.append
        )

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self.address)
        self._writers.append(writer)
        return reader, writer

    async def close(self) -> None:
        """End the acceptor and all its clients."""
        self.acceptor.close()
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(LONG_S):
            while not condition():
                await asyncio.sleep(0.001)  # between two looks


@contextlib.contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        listener.setblocking(False)
        yield listener


@contextlib.asynccontextmanager
async def opened(room: ConnectionLimits = PLENTY) -> AsyncIterator[Door]:
    with listening() as listener:
        door = Door(listener, room)
        try:
            yield door
        finally:
            await door.close()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(LONG_S):
            await scenario()

    uvloop.run(limited())


async def said(reader: asyncio.StreamReader) -> bytes:
    """All until the other side ends."""
    return await asyncio.wait_for(reader.read(), LONG_S)


def test_connections_are_taken_talked_to_and_counted_until_they_end() -> None:
    async def scenario() -> None:
        async with opened() as door:
            pairs = [await door.connect() for _ in range(20)]
            for reader, writer in pairs:
                writer.write(b"x")
                assert await reader.readexactly(6) == b"echo x"
            assert door.mine.mine == 20
            for _, writer in pairs:
                writer.close()
            await door.until(lambda: door.mine.mine == 0)

    run(scenario)


def test_connection_that_is_anothers_is_left_to_it() -> None:
    async def scenario() -> None:
        async with opened() as door:
            await door.connect()
            await door.until(lambda: door.mine.mine == 1)
            door.other.begin()  # it has none: the next is its
            with socket.fromfd(
                door.acceptor._listeners[0].fileno(), socket.AF_INET, socket.SOCK_STREAM
            ) as its:
                await door.connect()
                assert its.accept()[0].close() is None
            assert door.mine.mine == 1

    run(scenario)


def test_connection_waits_for_one_that_does_not_come_no_longer_than_a_bounded_time() -> None:
    async def scenario() -> None:
        async with opened() as door:
            door.other.begin()  # and never comes
            for number in range(30):
                reader, writer = await door.connect()
                writer.write(b"x")
                assert await reader.readexactly(6) == b"echo x", number
            assert door.mine.mine == 30

    run(scenario)


def test_connection_that_waits_for_another_is_taken_as_soon_as_one_of_ours_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_CHECK_S", 1000.0)  # no look would come in time

    async def scenario() -> None:
        async with opened() as door:
            _, writer = await door.connect()
            await door.until(lambda: door.mine.mine == 1)
            door.other.begin()
            second, asking = await door.connect()
            asking.write(b"x")
            await door.until(lambda: door.acceptor._timer is not None)
            writer.close()
            assert await second.readexactly(6) == b"echo x"

    run(scenario)


def test_nothing_is_polled_while_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(Acceptor, "_waiting", lambda self: bool(looks.append(1)))

    async def scenario() -> None:
        async with opened() as door:
            door.other.begin()
            await door.connect()
            await door.until(lambda: door.mine.mine == 1)
            assert door.acceptor._timer is None
            before = len(looks)
            await asyncio.sleep(10 * module._CHECK_S)  # so long that a poll would have been seen
            assert len(looks) == before

    run(scenario)


def test_beyond_its_capacity_health_is_answered_and_anything_else_is_told_503(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        async with opened(ConnectionLimits(connections=2, guests=4)) as door:
            held = [await door.connect() for _ in range(2)]
            await door.until(lambda: door.mine.mine == 2)
            reader, writer = await door.connect()
            writer.write(HEALTH[:10])
            await asyncio.sleep(0)
            writer.write(HEALTH[10:])
            closing = HEALTH[:-2] + b"connection: close\r\n\r\n"
            assert await reader.readexactly(5 + len(closing)) == b"echo " + closing
            writer.close()
            await door.until(lambda: door.mine.mine == 2)
            for bad in (PREDICT, b"GET\r\n\r\n", b"x" * 20_000, HEALTH.replace(b"live", b"other")):
                reader, writer = await door.connect()
                writer.write(bad)
                answer = await said(reader)
                assert answer.startswith(b"HTTP/1.1 503 ")
                assert b'"code":"too_many_connections"' in answer
                assert b"connection: close" in answer
                writer.close()
            assert door.refused == [CROWDED] * 4
            (line,) = [r.getMessage() for r in caplog.records if r.name == "foldserve.connections"]
            assert "2 connections are open, and there is room for 2: " in line
            assert "ulimit -n" in line
            for _, writer in held:
                writer.close()
            await door.until(lambda: door.mine.mine == 0)
            reader, writer = await door.connect()
            writer.write(PREDICT)
            assert await reader.readexactly(5 + len(PREDICT)) == b"echo " + PREDICT

    run(scenario)


def test_guests_that_say_nothing_give_way_to_those_who_come_after_them() -> None:
    async def scenario() -> None:
        async with opened(ConnectionLimits(connections=1, guests=3)) as door:
            await door.connect()
            silent = [await door.connect() for _ in range(10)]
            reader, writer = await door.connect()
            writer.write(HEALTH)
            assert (await reader.readexactly(8)).startswith(b"echo GET")
            for reader, _ in silent[:7]:
                assert (await said(reader)).startswith(b"HTTP/1.1 503 ")

    run(scenario)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_accept_that_fails_is_counted_told_and_tried_again_without_spinning(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing:
        """A listener whose first accepts fail."""

        def __init__(self, listener: socket.socket) -> None:
            self._listener, self.failures, self.tries = listener, 2, 0

        def accept(self) -> tuple[socket.socket, Any]:
            self.tries += 1
            if self.failures:
                self.failures -= 1
                raise OSError(number, os.strerror(number))
            return self._listener.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._listener, name)

    async def scenario() -> None:
        with listening() as listener:
            failing: Any = Failing(listener)
            door = Door(failing, PLENTY)
            reader, writer = await door.connect()
            writer.write(b"x")
            assert await reader.readexactly(6) == b"echo x"
            assert door.refused == [FAILED] * 2
            assert failing.tries <= 4
            await door.close()

    run(scenario)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "foldserve.connections"]
    assert os.strerror(number) in line


def test_at_the_end_what_waits_is_taken_first_and_later_comers_are_refused() -> None:
    async def scenario() -> None:
        async with opened() as door:
            door.other.begin()
            door.mine.came()  # it has more than the other: what comes now waits for the other
            pairs = [await door.connect() for _ in range(5)]
            door.acceptor.close()
            await door.acceptor.wait_connected()
            for reader, writer in pairs:
                writer.write(b"x")
                assert await reader.readexactly(6) == b"echo x"
            with pytest.raises(ConnectionRefusedError):
                await door.connect()
            door.acceptor.close()  # once more: nothing

    run(scenario)


def test_guests_are_sent_away_at_the_end() -> None:
    async def scenario() -> None:
        async with opened(ConnectionLimits(connections=1, guests=4)) as door:
            await door.connect()
            await door.until(lambda: door.mine.mine == 1)
            present, _ = await door.connect()
            await door.until(lambda: len(door.acceptor._guests._present) == 1)
            waiting, _ = await door.connect()
            door.acceptor.close()
            for reader in (present, waiting):
                assert (await said(reader)).startswith(b"HTTP/1.1 503 ")

    run(scenario)
