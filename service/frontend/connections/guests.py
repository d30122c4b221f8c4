"""Connections for which the process has no descriptors to spare: looked at one by one, and sent away.

A probe must be answered also while others hold all connections: else a server that is merely crowded is
restarted, and drops them all. So a few descriptors are kept for guests. One that asks for health or metrics is answered
like any other, once; any other is answered 503. When there are too many guests, the first one is ended, so that silent
ones do not keep others out.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import orjson

from foldserve.service.errors import TooManyConnections

_ANSWERED: Final = frozenset({b"/health", b"/v2/health/live", b"/v2/health/ready", b"/metrics"})
_HEAD_END: Final = b"\r\n\r\n"
_HEAD_BYTES: Final = 16_384
_STAY_S: Final = 5.0
"""A guest has so long to send its request, and to read the response."""


class Guests:
    """Those of one API server.

    Args:
        places: how many there may be at a time.
        capacity: what the text says of how many connections there is room for.
        make_protocol: makes what answers a guest that asks for health.
        sent_away: called for each that was not answered.
    """

    def __init__(
        self,
        places: int,
        capacity: int,
        make_protocol: Callable[[], asyncio.Protocol],
        sent_away: Callable[[], None],
    ) -> None:
        self._places = places
        self.make_protocol = make_protocol
        self.sent_away = sent_away
        self._present: dict[_Guest, None] = {}  # in the order of their coming
        self._closed = False
        error = TooManyConnections(
            f"the server holds {capacity} connections in this process, as many as its limit on open files leaves room "
            "for; close connections that are idle and try again, or have the limit raised (ulimit -n)"
        )
        body = orjson.dumps({"error": str(error), "code": error.code})
        more = "".join(f"{name}: {value}\r\n" for name, value in error.headers().items()).lower()
        self.refusal = (
            b"HTTP/1.1 %d Service Unavailable\r\ncontent-type: application/json\r\n%b"
            b"connection: close\r\ncontent-length: %d\r\n\r\n%b"
            % (error.status, more.encode(), len(body), body)
        )

    def arrive(self) -> asyncio.Protocol:
        """What talks to the next guest."""
        return _Guest(self)

    def enter(self, guest: "_Guest") -> None:
        """It is connected."""
        while len(self._present) >= self._places:
            next(iter(self._present)).go_now()
        self._present[guest] = None
        if self._closed:
            guest.go_now()

    def leave(self, guest: "_Guest") -> None:
        """It is gone, or no guest any more."""
        self._present.pop(guest, None)

    def close(self) -> None:
        """Send all away, and whoever is still to come."""
        self._closed = True
        for guest in list(self._present):
            guest.go_now()


class _Guest(asyncio.Protocol):
    """One connection until it is known what it wants."""

    def __init__(self, guests: Guests) -> None:
        self._guests = guests
        self._head = b""
        self._refused = False
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(_STAY_S, self.go_now)
        self._guests.enter(self)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._refused:
            return  # read all the same: closing over unread bytes would take the answer from the client
        self._head += data
        end = self._head.find(_HEAD_END)
        if end < 0 and len(self._head) < _HEAD_BYTES:
            return
        words = self._head.partition(b"\r\n")[0].split(b" ")
        if end >= 0 and len(words) == 3 and words[0] == b"GET" and words[1] in _ANSWERED:
            self._stay(self._head[:end] + b"\r\nconnection: close" + _HEAD_END)
        else:
            self._refuse()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._timer.cancel()
        self._guests.leave(self)

    def go_now(self) -> None:
        """End, for another."""
        self._refuse()
        self._guests.leave(self)
        self._transport.close()

    def _refuse(self) -> None:
        if not self._refused and not self._transport.is_closing():
            self._refused = True
            self._guests.sent_away()
            self._transport.write(self._guests.refusal)
            if self._transport.can_write_eof():
                self._transport.write_eof()

    def _stay(self, head: bytes) -> None:
        """Be answered like anybody, for this one request."""
        self._timer.cancel()
        self._guests.leave(self)
        protocol = self._guests.make_protocol()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(head)
