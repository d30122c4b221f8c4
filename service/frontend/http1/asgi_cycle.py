"""A request that goes through ASGI: uvicorn's cycle, with what it lacks.

A body that cannot be read to its end is passed to the application as the error that it is, and not as a client that
left; a client of HTTP/1.0 is told that its connection is kept; a client refused with 429 is throttled as on the
fast path.
"""

import asyncio
from collections.abc import Callable, MutableMapping
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from foldserve.service.errors import ServiceError
from foldserve.service.frontend.http1.heads.rules import RequestTarget
from foldserve.service.inference.context import BROKEN, REFUSAL

_QUEUE_FULL: Final = 429


class Rest:
    """In a cycle's transport's place when the first bytes of its answer were sent already: leaves those out."""

    def __init__(self, transport: asyncio.Transport, sent: int) -> None:
        self._transport = transport
        self._sent = sent

    def write(self, data: bytes) -> None:
        """See asyncio.Transport."""
        self._transport.write(data[self._sent :])
        self._sent = 0

    def is_closing(self) -> bool:
        """See asyncio.Transport."""
        return self._transport.is_closing()

    def close(self) -> None:
        """See asyncio.Transport."""
        self._transport.close()


def scope_of(
    method: str,
    version: str,
    target: RequestTarget,
    headers: list[tuple[bytes, bytes]],
    error: ServiceError | None,
) -> Any:
    """The ASGI scope of a request, without what its connection says. error: the answer, where that is settled."""
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": version,
        "root_path": "",
        "headers": headers,
        "method": method,
        "path": target.path,
        "raw_path": target.raw_path,
        "query_string": target.query,
    }
    if error is not None:
        scope[REFUSAL] = error
    return scope


class AsgiCycle(RequestResponseCycle):
    """One request. refused: called when it is answered 429 and its body has come; True closes its connection."""

    def __init__(self, *, refused: Callable[[], bool], **named: Any) -> None:
        super().__init__(**named)
        self._broken: ServiceError | None = None
        self._refused = refused

    def break_off(self, error: ServiceError) -> None:
        """No more of the body can be understood; error says why."""
        self.keep_alive = False
        self._broken = error
        self.message_event.set()

    def begin_answer(self, beginning: bytes) -> None:
        """Send what every answer begins with, now, unless the answer has begun."""
        if self.response_started:
            return
        self.waiting_for_100_continue = False  # its body has come whole
        self.transport.write(beginning)
        self.transport = Rest(self.transport, len(beginning))  # type: ignore[assignment]

    async def receive(self) -> Any:
        """See ASGI."""
        message = None if self._broken is not None else await super().receive()
        if self._broken is None or self.disconnected or self.response_complete:
            return message or {"type": "http.disconnect"}
        return {"type": "http.disconnect", BROKEN: self._broken}

    async def send(self, message: Any) -> None:
        """See ASGI."""
        if message["type"] == "http.response.start":
            if message["status"] == _QUEUE_FULL and not self.more_body and self._refused():
                self.keep_alive = False
            if self.keep_alive and self.scope["http_version"] == "1.0":
                message = _kept(message)
        await super().send(message)


def _kept(message: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The message with the header that keeps a connection of HTTP/1.0, unless it is to be closed."""
    headers = list(message["headers"])
    if any(name == b"connection" for name, _ in headers):
        return message
    return {**message, "headers": [*headers, (b"connection", b"keep-alive")]}
