"""TLS handshakes of connections that were just accepted: bounded in time and number, and told of in few lines."""

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, Final

from foldserve.service.frontend.connections.tls import Tls
from foldserve.service.metrics.catalog import HANDSHAKE

_log = logging.getLogger("foldserve.connections")

HANDSHAKE_S: Final = 10.0
"""A handshake has so long."""
SHUTDOWN_S: Final = 2.0
"""And the end of a connection, until its client has said that it agrees."""
MOST: Final = 256
"""Handshakes under way at a time: the oldest gives way to the next, so that silent clients keep nobody out."""
_TELL_EVERY_S: Final = 10.0


class Handshakes:
    """Of one API server. refused: called with HANDSHAKE for each that fails."""

    def __init__(self, tls: Tls, refused: Callable[[str], None]) -> None:
        self._tls = tls
        self._refused = refused
        self._loop = asyncio.get_running_loop()
        self._under_way: dict[socket.socket, None] = {}  # in the order of their coming
        self._failed = 0
        self._tell_at_s = 0.0

    async def connect(self, protocol: asyncio.Protocol, connection: socket.socket) -> bool:
        """Have the protocol talk on an accepted connection; False when its handshake failed."""
        peer = _peer(connection)
        while len(self._under_way) >= MOST:
            oldest = next(iter(self._under_way))
            del self._under_way[oldest]
            _end(oldest)
        self._under_way[connection] = None
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self._tls.context,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        except OSError as error:  # ssl.SSLError and timeouts are too
            self._tell(peer, error)
            return False
        finally:
            self._under_way.pop(connection, None)
        return True

    def _tell(self, peer: str, error: OSError) -> None:
        self._refused(HANDSHAKE)
        self._failed += 1
        now_s = time.monotonic()
        if now_s >= self._tell_at_s:
            times = "a TLS handshake" if self._failed == 1 else f"{self._failed} TLS handshakes"
            _log.warning("%s failed, the last one with %s: %s", times, peer, _why(error))
            self._failed, self._tell_at_s = 0, now_s + _TELL_EVERY_S


def _end(connection: socket.socket) -> None:
    """End a handshake: its own task hears of it as of any connection that is lost."""
    with contextlib.suppress(OSError):  # it is gone
        connection.shutdown(socket.SHUT_RDWR)


def _peer(connection: socket.socket) -> str:
    try:
        found: Any = connection.getpeername()
    except OSError:
        return "a client that has left"
    return f"{found[0]}:{found[1]}"


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        if error.reason == "HTTP_REQUEST":
            return "it speaks HTTP without TLS; the URL begins with https://"
        return (error.reason or str(error)).replace("_", " ").lower()
    return "it left, or was too slow" if not str(error) else str(error)
