"""Reads a request's body as it arrives, and never more of it than the limit."""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from service.call import BROKEN
from service.errors import BadRequest, QueueFull, TooLarge

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_PART_BYTES: Final = 256 * 1024
_LENGTH: Final = re.compile(r"\d{1,18}", re.ASCII)


class ClientGone(Exception):
    """The client closed the connection before its request was answered: nobody is left to be told."""


class BodyTooLarge(TooLarge):
    """TooLarge, found before the whole body was read: the connection holds the rest of it."""


class BodyMemory:
    """Bounds what all the bodies that are being read may hold together. Owned by the event loop thread."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    def take(self, nbytes: int) -> None:
        """Count bytes that came. Raises QueueFull when they are too many, and counts nothing then."""
        if self.used_bytes + nbytes > self.limit_bytes:
            raise QueueFull(
                f"the bodies that are being received hold {self.used_bytes} of {self.limit_bytes} bytes, and "
                f"{nbytes} more do not fit; try again later"
            )
        self.used_bytes += nbytes

    def give(self, nbytes: int) -> None:
        """These are held no longer."""
        self.used_bytes -= nbytes


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
    chunks: list[bytes | bytearray] = []
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
            if not more and not chunks:
                return [chunk]
            memory.take(len(chunk))
            size += len(chunk)
            if chunks and len(chunks[-1]) + len(chunk) <= _PART_BYTES:
                chunks[-1] += chunk
            else:
                # Not as it is: a body that comes in single bytes would take forty times its size.
                chunks.append(bytearray(chunk))
            if not more:
                return chunks
    finally:
        memory.give(size)


def _too_large(found: str, limit_bytes: int, limit_name: str) -> BodyTooLarge:
    return BodyTooLarge(
        f"{found}; expected at most {limit_bytes} bytes: send fewer rows, or raw bytes (application/octet-stream, "
        f"application/x-npy) instead of JSON, or have {limit_name} raised"
    )
