"""Large answers that clients take slowly or not at all, beside requests that need the room they lie in."""

import asyncio
from collections.abc import Callable, Coroutine

import numpy as np
import pytest

from foldserve.service.frontend.http1.flow import send_buffers as unread_module
from foldserve.service.frontend.http1.flow.send_buffers import PATIENCE_S
from foldserve.service.inference.holdings import STALLED_S
from tests.service.frontend.http1.connection import (
    ASGI,
    JSON,
    RAW,
    Answer,
    ApiServerHarness,
    Connection,
    call,
    rows,
)

MIB = 2**20
LARGE = np.ones((800_000, 2), "f4")
FILL = 4
"""So many such requests with their answers fill the arena up to 8 MiB."""
MODEST, GREEDY = LARGE[:600_000], np.ones((1_000_000, 2), "f4")
"""Both need more than is left: less than an equal share, and more."""


@pytest.fixture(autouse=True)
def look_in_every_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread_module, "CHECK_S", 0.0)


def run(test: Callable[[ApiServerHarness], Coroutine[None, None, None]]) -> None:
    async def opened() -> None:
        server = ApiServerHarness(
            limit_bytes=1 << 25, data_bytes=64 * MIB, max_rows=1 << 30, max_bytes=1 << 30, max_batch_size=MIB
        )
        await test(server)

    asyncio.run(opened())


@pytest.fixture(autouse=True, params=[(), (ASGI,)], ids=["fast", "asgi"])
def headers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test for both paths."""
    monkeypatch.setitem(globals(), "HEADERS", request.param)


HEADERS: tuple[str, ...] = ()


async def begin(server: ApiServerHarness, x: np.ndarray) -> Connection:
    """A client that takes nothing of its answer beyond what the kernel keeps, for now."""
    connection = server.connect()
    socket, write = connection.socket, connection.socket.write

    def behind(data: bytes) -> None:
        write(data)
        socket.unsent_bytes += len(data)
        connection.protocol.pause_writing()

    socket.write = behind  # type: ignore[method-assign]
    whole = call(x.tobytes(), RAW, *HEADERS)
    for at in range(0, len(whole), 200_000):
        connection.send(whole[at : at + 200_000])
    await server.turn(lambda: bool(socket.written))
    return connection


async def take(server: ApiServerHarness, connection: Connection, nbytes: int) -> None:
    """The client takes so much more, or what there is."""
    socket = connection.socket
    while nbytes > 0 and socket.unsent_bytes and not socket.closing:
        taken = min(nbytes, socket.unsent_bytes)
        socket.unsent_bytes -= taken
        nbytes -= taken
        if not socket.unsent_bytes:
            connection.protocol.resume_writing()
            await server.rest()
    await server.rest()


async def ask(server: ApiServerHarness, x: np.ndarray) -> Answer:
    """What a client who takes its answer at once gets."""
    connection = server.connect()
    whole = call(x.tobytes(), RAW, *HEADERS)
    for at in range(0, len(whole), 200_000):
        connection.send(whole[at : at + 200_000])

    def there() -> bool:
        head, end, body = bytes(connection.socket.written).partition(b"\r\n\r\n")
        lengths = [line for line in head.split(b"\r\n") if line.startswith(b"content-length")]
        return bool(end) and len(body) == int(lengths[0].split(b":")[1])

    await server.turn(there, most=1000)
    (answer,) = connection.answers()
    return answer


def ended(connections: list[Connection]) -> int:
    return sum(connection.socket.aborted for connection in connections)


async def filled(server: ApiServerHarness, each_s: int, nbytes: int) -> list[Connection]:
    """Clients that fill the arena with answers, and have taken so many bytes of it in each of so many seconds."""
    slow = [await begin(server, LARGE) for _ in range(FILL)]
    for _ in range(each_s):
        server.now_s += 1.0
        for connection in slow:
            await take(server, connection, nbytes)
    return slow


def test_clients_that_take_large_answers_by_drops_do_not_keep_others_out() -> None:
    async def test(server: ApiServerHarness) -> None:
        slow = await filled(server, 4, 10_000)
        answer = await ask(server, MODEST)
        assert answer.status == 200
        np.testing.assert_array_equal(np.frombuffer(answer.body, "f4"), 2.0)
        assert ended(slow) == 1

    run(test)


def test_who_asks_for_more_than_a_share_ends_nobody_who_goes_on() -> None:
    async def test(server: ApiServerHarness) -> None:
        slow = await filled(server, 4, 10_000)
        assert (await ask(server, GREEDY)).status == 429
        assert ended(slow) == 0

    run(test)


def test_who_takes_its_answer_steadily_keeps_its_place() -> None:
    async def test(server: ApiServerHarness) -> None:
        quick = await filled(server, 3, LARGE.nbytes // int(PATIENCE_S))
        assert (await ask(server, MODEST)).status == 429
        assert ended(quick) == 0

    run(test)


def test_who_has_stalled_gives_its_place_to_anybody_and_only_who_has_one() -> None:
    async def test(server: ApiServerHarness) -> None:
        small = server.connect()
        small.socket.unsent_bytes = 40_000
        small.send(call(rows(1.0), JSON, *HEADERS))
        await server.turn()
        small.protocol.pause_writing()  # behind with an answer that lies nowhere in the arena
        still = await filled(server, 0, 0)
        server.now_s += STALLED_S
        assert (await ask(server, LARGE)).status == 200
        assert ended(still) == 1
        assert not small.socket.aborted

    run(test)
