"""The ASGI side of one request: what is received, and how a response is sent."""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final, Protocol

from foldserve.service.errors import BadRequest, DeadlinePassed, ServiceError
from foldserve.service.inference.body_budget import BodyTooLarge
from foldserve.service.inference.context import BROKEN, RequestContext
from foldserve.service.inference.response import Response

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Any]

WIRE: Final = "foldserve.wire"
"""The ASGI extension that is the request's connection, a Wire."""
_LINGER_S: Final = 2.0
"""After a 413, what the client still sends is read and dropped for so long: if the connection were closed under a
client that is still sending, its system would throw the answer away unread."""


class ResponseBuffer(Protocol):
    """What the connection's client has not read of a response that lies in the arena (http1/flow/send_buffers.py)."""

    def begin_response(self, allocation_bytes: int, length: int, cancel: Callable[[], None]) -> None:
        """A response of this length is sent from so many bytes of the arena. cancel: frees them, at once."""
        ...

    def sent(self, nbytes: int) -> None:
        """So many bytes of it were given to the transport, in total."""
        ...

    def end_response(self) -> None:
        """The memory is free."""
        ...


class Wire(Protocol):
    """What can be asked of a connection that knows it (frontend/http1/connection.py)."""

    @property
    def last(self) -> bool:
        """Whether nothing has been read after the request under way."""
        ...

    @property
    def send_buffer(self) -> ResponseBuffer:
        """What its client has not read."""
        ...


class Channel:
    """Of one request. wire: None where the server is not ours. headers: of every response, besides its own."""

    def __init__(
        self, receive: Receive, send: Send, wire: Wire | None, headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.headers = headers
        self.receive = receive
        self.send = send
        self.wire = wire

    async def send_head(self, response: Response, context: RequestContext, draining: bool) -> None:
        """Send the head of a response."""
        headers = [
            (b"content-type", response.media_type.encode("latin-1")),
            (b"content-length", str(response.length).encode("ascii")),
            (b"x-request-id", context.request_id.encode("ascii")),
        ]
        headers += [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in (*response.headers, *self.headers)
        ]
        if context.stages_s:
            headers.append((b"server-timing", context.server_timing().encode("ascii")))
        if response.closes or (draining and (self.wire is None or self.wire.last)):
            headers.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": response.status, "headers": headers})

    async def send_whole(self, response: Response, context: RequestContext, draining: bool) -> None:
        """Send a response that lies in memory of its own. Where its client still sends a body, it is listened to for a
        while before the connection is closed."""
        linger = (response.closes or _unread(context)) and "expect" not in context.headers
        await self.send_head(response, context, draining)
        await self.send({"type": "http.response.body", "body": response.body, "more_body": linger})
        if linger:
            await self._drop_rest()
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def read_small_body(self, most_bytes: int) -> bytes:
        """The whole body of a call that is no inference request. Raises: BodyTooLarge, BadRequest, DeadlinePassed."""
        body = bytearray()
        more = True
        try:
            async with asyncio.timeout(_LINGER_S):
                while more:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        error: ServiceError | None = message.get(BROKEN)
                        raise error or BadRequest("the body ended before it was whole; send all of it")
                    body += message.get("body", b"")
                    if len(body) > most_bytes:
                        raise BodyTooLarge(f"the body has more than {most_bytes} bytes; expected a short one")
                    more = message.get("more_body", False)
        except TimeoutError:
            raise DeadlinePassed(
                f"the body did not come whole within {_LINGER_S:g} s; send all of it at once"
            ) from None
        return bytes(body)

    async def _drop_rest(self) -> None:
        """Read on until the body ends, the client goes, or _LINGER_S have passed. Keeps nothing."""
        until_s = time.monotonic() + _LINGER_S
        try:
            async with asyncio.timeout(_LINGER_S):
                while time.monotonic() < until_s:
                    message = await self.receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return


def _unread(context: RequestContext) -> bool:
    """Whether a body is left in a connection that the client wants closed after this answer."""
    sent = context.headers.get("content-length", "0") != "0" or "transfer-encoding" in context.headers
    closing = "close" in context.headers.get("connection", "").lower()
    return sent and closing and not context.body_bytes
