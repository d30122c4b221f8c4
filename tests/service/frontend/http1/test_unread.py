"""Large answers that clients take slowly or not at all, beside requests that need the room they lie in."""

import asyncio
from collections.abc import Callable, Coroutine

import numpy as np
import pytest

from service.frontend.holdings import STALLED_S
from service.frontend.http1 import unread as unread_module
from service.frontend.http1.unread import PATIENCE_S
from tests.service.frontend.http1.connection import JSON, RAW, Answer, Connection, House, call, rows

MIB = 2**20
LARGE = np.ones((800_000, 2), "f4")
FILL = 4
"""So many such requests with their answers fill the arena up to 8 MiB."""
MODEST, GREEDY = LARGE[:600_000], np.ones((1_000_000, 2), "f4")
"""Both need more than is left: less than an equal share, and more."""


@pytest.fixture(autouse=True)
def look_in_every_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread_module, "LOOK_S", 0.0)


def run(test: Callable[[House], Coroutine[None, None, None]]) -> None:
    async def opened() -> None:
        house = House(
            limit_bytes=1 << 25, data_bytes=64 * MIB, max_rows=1 << 30, max_bytes=1 << 30, max_batch_size=MIB
        )
        await test(house)

    asyncio.run(opened())


async def begin(house: House, x: np.ndarray, *headers: str) -> Connection:
    """A client that takes nothing of its answer beyond what the kernel keeps, for now."""
    connection = house.connect()
    socket, write = connection.socket, connection.socket.write

    def behind(data: bytes) -> None:
        write(data)
        socket.unsent_bytes += len(data)
        connection.protocol.pause_writing()

    socket.write = behind  # type: ignore[method-assign]
    whole = call(x.tobytes(), RAW, *headers)
    for at in range(0, len(whole), 200_000):
        connection.send(whole[at : at + 200_000])
    await house.turn(lambda: bool(socket.written))
    return connection


async def take(house: House, connection: Connection, nbytes: int) -> None:
    """The client takes so much more, or what there is."""
    socket = connection.socket
    while nbytes > 0 and socket.unsent_bytes and not socket.closing:
        taken = min(nbytes, socket.unsent_bytes)
        socket.unsent_bytes -= taken
        nbytes -= taken
        if not socket.unsent_bytes:
            connection.protocol.resume_writing()
    await house.rest()


async def ask(house: House, x: np.ndarray) -> Answer:
    """What a client who takes its answer at once gets."""
    connection = house.connect()
    whole = call(x.tobytes(), RAW)
    for at in range(0, len(whole), 200_000):
        connection.send(whole[at : at + 200_000])

    def there() -> bool:
        head, end, body = bytes(connection.socket.written).partition(b"\r\n\r\n")
        lengths = [line for line in head.split(b"\r\n") if line.startswith(b"content-length")]
        return bool(end) and len(body) == int(lengths[0].split(b":")[1])

    await house.turn(there, most=1000)
    (answer,) = connection.answers()
    return answer


def ended(connections: list[Connection]) -> int:
    return sum(connection.socket.aborted for connection in connections)


async def filled(house: House, each_s: int, nbytes: int) -> list[Connection]:
    """Clients that fill the arena with answers, and have taken so many bytes of it in each of so many seconds."""
    slow = [await begin(house, LARGE) for _ in range(FILL)]
    for _ in range(each_s):
        house.now_s += 1.0
        for connection in slow:
            await take(house, connection, nbytes)
    return slow


def test_clients_that_take_large_answers_by_drops_do_not_keep_others_out() -> None:
    async def test(house: House) -> None:
        slow = await filled(house, 4, 10_000)
        answer = await ask(house, MODEST)
        assert answer.status == 200
        np.testing.assert_array_equal(np.frombuffer(answer.body, "f4"), 2.0)
        assert ended(slow) == 1

    run(test)


def test_who_asks_for_more_than_a_share_ends_nobody_who_goes_on() -> None:
    async def test(house: House) -> None:
        slow = await filled(house, 4, 10_000)
        assert (await ask(house, GREEDY)).status == 429
        assert ended(slow) == 0

    run(test)


def test_who_takes_its_answer_steadily_keeps_its_place() -> None:
    async def test(house: House) -> None:
        quick = await filled(house, 3, LARGE.nbytes // int(PATIENCE_S))
        assert (await ask(house, MODEST)).status == 429
        assert ended(quick) == 0

    run(test)


def test_who_stands_still_gives_its_place_to_anybody_and_only_who_has_one() -> None:
    async def test(house: House) -> None:
        small = house.connect()
        small.socket.unsent_bytes = 40_000
        small.send(call(rows(1.0), JSON))
        await house.turn()
        small.protocol.pause_writing()  # behind with an answer that lies nowhere in the arena
        still = await filled(house, 0, 0)
        house.now_s += STALLED_S
        assert (await ask(house, LARGE)).status == 200
        assert ended(still) == 1
        assert not small.socket.aborted

    run(test)
