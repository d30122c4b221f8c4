"""Bodies that arrive in parts: where they wait, and what they hold."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from foldserve.service.engine.request import ScratchRequest
from foldserve.service.errors import QueueFull, TooLarge
from foldserve.service.inference.body_budget import BodyBudget
from foldserve.service.inference.partial_body import LENT_BYTES, PartialBodies, PartialBody
from tests.service.engine_rig import Rig

ROOM = (10_000, 10_000)


class BodiesHarness:
    """A PartialBodies over a real arena. Make it on a running event loop."""

    def __init__(self, limit_bytes: int = 1 << 20, **rig: Any) -> None:
        self.rig = Rig(**rig)
        self.dispatcher = self.rig.dispatcher
        self.receiving = PartialBodies(BodyBudget(limit_bytes), self.dispatcher)
        self.dispatcher.evict = lambda nbytes: self.receiving.evict()

    def begin(self, length: int = 10_000, room: tuple[int, int] = ROOM) -> tuple[ScratchRequest, PartialBody]:
        request = ScratchRequest(self.rig.dispatcher.queues[0])
        return request, self.receiving.begin(request, length, room, lambda: pytest.fail("nobody is in need"))


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await test()

    asyncio.run(main())


def test_what_came_counts_and_not_what_was_declared() -> None:
    async def test() -> None:
        harness = BodiesHarness(limit_bytes=10_000)
        request, half = harness.begin()
        half.add(b"x" * 60)
        assert harness.receiving.budget.used_bytes == 60
        refused, other = harness.begin()
        with pytest.raises(QueueFull, match="hold 60 of 10000 bytes, and 9941 more do not fit"):
            other.add(b"x" * 9941)
        other.end()
        harness.dispatcher.release(refused)
        half.end()
        harness.dispatcher.release(request)
        assert (harness.receiving.budget.used_bytes, harness.dispatcher.lent_bytes) == (0, 0)
        assert harness.rig.all_free()

    run(test)


def test_a_body_that_could_never_be_held_is_refused_before_it_is_sent() -> None:
    async def test() -> None:
        harness = BodiesHarness(limit_bytes=1000)
        with pytest.raises(
            TooLarge, match=r"a body of 1001 bytes .* may hold 1000 bytes together; .* --receive-bytes"
        ):
            harness.begin(1001)

    run(test)


def test_an_ordinary_body_is_received_where_it_will_be_read() -> None:
    async def test() -> None:
        harness = BodiesHarness(data_bytes=100_000)
        request, half = harness.begin()
        half.add(b"a" * 6000)
        half.add(b"b" * 4000)
        half.end()
        assert request.allocation is not None
        assert bytes(request.allocation.inputs) == b"a" * 6000 + b"b" * 4000
        assert harness.dispatcher.lent_bytes == 0

    run(test)


@pytest.mark.parametrize("where", ["large", "no more is lent"])
def test_other_bodies_wait_in_memory_of_their_own(where: str) -> None:
    async def test() -> None:
        harness = BodiesHarness(limit_bytes=1 << 30, data_bytes=100_000)
        if where == "large":
            request, half = harness.begin(LENT_BYTES + 1, (100, 0))
        else:
            for _ in range(2):
                assert harness.begin()[0].allocation is not None
            request, half = harness.begin()
        assert request.allocation is None
        for number in range(0, 10_000, 100):
            half.add(number.to_bytes(4, "little") * 25)
        memory = memoryview(bytearray(10_000))
        assert half.copy_some(memory, 0) == 0
        assert bytes(memory) == b"".join(
            number.to_bytes(4, "little") * 25 for number in range(0, 10_000, 100)
        )
        half.end()

    run(test)


def test_a_place_that_is_needed_is_left_with_what_came_the_oldest_first() -> None:
    async def test() -> None:
        harness = BodiesHarness(data_bytes=100_000)
        (first, first_half), (second, _) = harness.begin(), harness.begin()
        first_half.add(b"abc")
        whole = ScratchRequest(harness.rig.dispatcher.queues[0])
        harness.dispatcher.reserve(whole, 50_000, 30_000)
        assert first.allocation is None
        first_half.add(b"def")
        memory = memoryview(bytearray(6))
        first_half.copy_some(memory, 0)
        assert bytes(memory) == b"abcdef"
        harness.dispatcher.release(whole)
        assert harness.receiving.evict() == (second.allocation is not None)
        assert not harness.receiving.evict()
        assert second.allocation is None
        assert harness.dispatcher.lent_bytes == 0
        held = ScratchRequest(harness.rig.dispatcher.queues[0])
        harness.dispatcher.reserve(held, 50_000, 10_000)
        with pytest.raises(QueueFull, match="no memory available"):
            harness.dispatcher.reserve(whole, 50_000, 10_000)
        harness.dispatcher.release(held)

    run(test)


def test_a_large_body_is_copied_in_pieces() -> None:
    async def test() -> None:
        harness = BodiesHarness(limit_bytes=1 << 30)
        length = 5 << 20
        _, half = harness.begin(length, (length, 0))
        for number in range(20):
            half.add(bytes([number]) * (1 << 18))
        memory, at, copies = memoryview(bytearray(length)), 0, 1
        while at := half.copy_some(memory, at):
            copies += 1
        assert copies == 5
        assert bytes(memory) == b"".join(bytes([number]) * (1 << 18) for number in range(20))

    run(test)


def test_a_body_of_single_bytes_holds_hardly_more_than_itself() -> None:
    async def test() -> None:
        harness = BodiesHarness(limit_bytes=1 << 30)
        _, half = harness.begin(LENT_BYTES + 1, (100, 0))
        for _ in range(5000):
            half.add(b"x")
        assert len(half._parts) == 1

    run(test)
