"""Reads a request's body as it arrives, and never more of it than the limit."""

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from service.errors import BadRequest, QueueFull, ServiceError, TooLarge
from service.frontend.holdings import Holdings
from service.inference.context import BROKEN

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
PART_BYTES: Final = 256 * 1024
_LENGTH: Final = re.compile(r"\d{1,18}", re.ASCII)


class ClientGone(Exception):
    """The client closed the connection before its request was answered: nobody is left to be told."""


class BodyTooLarge(TooLarge):
    """TooLarge, found before the whole body was read: the connection holds the rest of it."""


class BodyMemory(Holdings):
    """Bounds what all the bodies that are being received may hold together."""

    def never(self, nbytes: int) -> TooLarge:
        """For a body of so many bytes, or more, which could not be held if nobody else were there."""
        return TooLarge(
            f"a body of {nbytes} bytes that comes in parts finds no room; all that are being received may hold "
            f"{self.limit_bytes} together; send less at once, or have --receive-bytes raised"
        )

    def full(self, nbytes: int, held: int) -> ServiceError:
        """For a body that holds so many bytes and of which so many more do not fit."""
        if held + nbytes > self.limit_bytes:
            return self.never(held + nbytes)
        return QueueFull(
            f"the bodies that are being received hold {self.used_bytes} of {self.limit_bytes} bytes, and "
            f"{nbytes} more do not fit; try again later"
        )

    def gave_way(self) -> QueueFull:
        """For a body that was given up so that others have room."""
        return QueueFull(
            f"the bodies that are being received take all of their {self.limit_bytes} bytes, and this one stood still "
            "or held more than its share; send it in one go, or try again later"
        )


def append_part(parts: list[bytearray], chunk: bytes) -> None:
    """Keep what came next of a body. Not as it is: one that comes in single bytes would take forty times its size."""
    if parts and len(parts[-1]) + len(chunk) <= PART_BYTES:
        parts[-1] += chunk
    else:
        parts.append(bytearray(chunk))


async def read_body(
    receive: Receive,
    content_length: str | None,
    limit_bytes: int,
    memory: BodyMemory,
    limit_name: str = "--max-body-bytes",
) -> list[bytes | bytearray]:
    """Return the whole body, a large one in parts: to join them would hold up others.

    Args:
        receive: the ASGI callable.
        content_length: the header; None for a chunked body.
        limit_bytes: the most that is taken. A longer Content-Length is refused before anything is read, a
            longer chunked body as soon as it is longer.
        memory: what the body counts in while it is read.
        limit_name: the setting that the limit comes from.
    Raises: BodyTooLarge; QueueFull; BadRequest for a Content-Length that is no number; ClientGone.
    """
    if content_length is not None:
        content_length = content_length.strip(" \t")
        if not _LENGTH.fullmatch(content_length):
            raise BadRequest(f"Content-Length is {content_length[:50]!r}; expected a number of bytes")
        if int(content_length) > limit_bytes:
            raise _too_large(f"the body has {int(content_length)} bytes", limit_bytes, limit_name)
    parts: list[bytearray] = []
    task, gave_way = asyncio.current_task(), False

    def give_way() -> None:
        nonlocal gave_way
        assert task is not None
        gave_way = True
        parts.clear()
        task.cancel()

    holding = memory.open(give_way)
    size = 0
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise message.get(BROKEN) or ClientGone
            chunk: bytes = message.get("body", b"")
            if size + len(chunk) > limit_bytes:
                raise _too_large("the body is larger", limit_bytes, limit_name)
            more: bool = message.get("more_body", False)
            if not more and not parts:
                return [chunk]
            if not holding.take(len(chunk)):
                raise memory.full(len(chunk), size)
            size += len(chunk)
            append_part(parts, chunk)
            if not more:
                return [*parts]
    except asyncio.CancelledError:
        if gave_way and task is not None and not task.uncancel():
            raise memory.gave_way() from None
        raise
    finally:
        holding.end()


def _too_large(found: str, limit_bytes: int, limit_name: str) -> BodyTooLarge:
    return BodyTooLarge(
        f"{found}; expected at most {limit_bytes} bytes: send fewer rows, or raw bytes (application/octet-stream, "
        f"application/x-npy) instead of JSON, or have {limit_name} raised"
    )
