import asyncio

import pytest

from service.errors import BadRequest, QueueFull
from service.frontend.body import BodyMemory, BodyTooLarge, ClientGone, read_body

LIMIT = 10


def read(*chunks, length=None, gone=False):
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    if not gone:
        messages[-1]["more_body"] = False
    messages.append({"type": "http.disconnect"})
    taken = []

    async def receive():
        taken.append(messages[0])
        return messages.pop(0)

    try:
        parts = asyncio.run(read_body(receive, length, LIMIT, BodyMemory(10 * LIMIT)))
        return b"".join(parts), len(taken)
    except Exception as error:
        error.taken = len(taken)
        raise


@pytest.mark.parametrize(
    ("chunks", "body"),
    [
        ([b""], b""),
        ([b"abc"], b"abc"),
        ([b"ab", b"c"], b"abc"),
        ([b"abc", b""], b"abc"),
        ([b"", b"abc"], b"abc"),
    ],
)
def test_the_whole_body_is_read(chunks, body):
    assert read(*chunks)[0] == body
    assert read(*chunks, length=str(len(body)))[0] == body


def test_a_body_of_exactly_the_limit_is_read():
    assert read(b"x" * LIMIT, length=str(LIMIT))[0] == b"x" * LIMIT


def test_a_declared_length_beyond_the_limit_is_refused_before_anything_is_read():
    with pytest.raises(BodyTooLarge, match="the body has 11 bytes; expected at most 10 bytes") as caught:
        read(b"x" * 11, length="11")
    assert caught.value.taken == 0


def test_a_chunked_body_is_refused_as_soon_as_it_is_too_long():
    with pytest.raises(BodyTooLarge, match="is larger; expected at most 10") as caught:
        read(b"x" * 6, b"x" * 6, b"x" * 6, b"x" * 6)
    assert caught.value.taken == 2


def test_a_body_longer_than_it_said_is_refused():
    with pytest.raises(BodyTooLarge):
        read(b"x" * 6, b"x" * 6, length="5")


@pytest.mark.parametrize("length", ["", "-1", "1.0", "0x5", "ten", "9" * 30])
def test_a_length_that_is_no_number_is_refused(length):
    with pytest.raises(BadRequest, match="Content-Length"):
        read(b"x", length=length)


def test_a_client_that_leaves_in_the_middle_ends_the_reading():
    with pytest.raises(ClientGone):
        read(b"x", gone=True)


def test_bodies_that_hold_too_much_together_are_refused_and_what_they_held_is_given_back():
    memory = BodyMemory(6)
    other = memory.open(lambda: pytest.fail("it is within its share"))
    assert other.take(3)

    async def receive():
        return {"type": "http.request", "body": b"ab", "more_body": True}

    with pytest.raises(QueueFull, match="hold 5 of 6 bytes, and 2 more do not fit; try again later"):
        asyncio.run(read_body(receive, None, LIMIT, memory))
    assert memory.used_bytes == 3


def test_a_body_that_must_give_way_is_refused_at_once_and_holds_nothing_any_more():
    async def test():
        memory = BodyMemory(100)
        came = asyncio.Event()

        async def receive():
            if came.is_set():
                await asyncio.Event().wait()  # nothing more ever comes
            came.set()
            return {"type": "http.request", "body": b"x" * 90, "more_body": True}

        reading = asyncio.create_task(read_body(receive, None, 1000, memory))
        await came.wait()
        await asyncio.sleep(0)
        assert memory.used_bytes == 90
        other = memory.open(lambda: pytest.fail("it is within its share"))
        assert other.take(20)
        assert memory.used_bytes == 20
        with pytest.raises(QueueFull, match="this one stood still or held more than its share"):
            await reading

    asyncio.run(test())
