"""Reads a request's body as it arrives, and never more of it than the limit."""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from service.errors import BadRequest, TooLarge

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_LENGTH: Final = re.compile(r"\d{1,18}", re.ASCII)


class ClientGone(Exception):
    """The client closed the connection before its request was answered: nobody is left to be told."""


class BodyTooLarge(TooLarge):
    """TooLarge, found before the whole body was read: the connection holds the rest of it."""


async def read_body(receive: Receive, content_length: str | None, limit_bytes: int) -> bytes:
    """Return the whole body.

    Args:
        receive: the ASGI callable.
        content_length: the header; None for a chunked body.
        limit_bytes: the most that is taken. A longer Content-Length is refused before anything is read, a
            longer chunked body as soon as it is longer.
    Raises: BodyTooLarge; BadRequest for a Content-Length that is no number; ClientGone.
    """
    if content_length is not None:
        if not _LENGTH.fullmatch(content_length):
            raise BadRequest(f"Content-Length is {content_length[:50]!r}; expected a number of bytes")
        if int(content_length) > limit_bytes:
            raise _too_large(f"the body has {int(content_length)} bytes", limit_bytes)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > limit_bytes:
            raise _too_large("the body is larger", limit_bytes)
        more: bool = message.get("more_body", False)
        if not more and not chunks:
            return chunk
        chunks.append(chunk)
        if not more:
            return b"".join(chunks)


def _too_large(found: str, limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"{found}; expected at most {limit_bytes} bytes: send fewer rows, or raw bytes instead of JSON, or "
        "have --max-body-bytes raised"
    )
