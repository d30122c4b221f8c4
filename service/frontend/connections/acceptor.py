"""Takes connections off the listening sockets, in one API server's process.

In place of the event loop's own accepting, which takes all that wait, whoever else waits for them, and which closes
without a word what it has no descriptor for. Here: its share only (shares.py), a bounded number in each turn of the
loop, and beyond what the process can hold as guests (guests.py). Nothing is polled but while a connection waits that
is another's to take, and then for milliseconds.
"""

import asyncio
import errno
import logging
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

from foldserve.service.frontend.connections.descriptors import FIX, ConnectionLimits
from foldserve.service.frontend.connections.guests import Guests
from foldserve.service.frontend.connections.handshakes import Handshakes
from foldserve.service.frontend.connections.shares import Shares
from foldserve.service.frontend.connections.tls import Tls
from foldserve.service.metrics.catalog import CROWDED, FAILED

_log = logging.getLogger("foldserve.connections")

_CHECK_S: Final = 0.001
"""How often it is seen whether those whose turn it is have come."""
_CHECKS: Final = 20
"""That often, then the connection is taken out of turn: it must not wait for a process that is stopped."""
_BURST: Final = 64
"""Taken in one turn of the event loop at most, so that the connections that are there go on."""
_LAST: Final = 4096
"""Taken at the end at most: more cannot wait at a time, and a flood must not hold up the end."""
_PAUSE_S: Final = 0.1
"""After an accept that failed for lack of descriptors or memory: it would fail again at once."""
_TELL_EVERY_S: Final = 10.0
"""The log has a line of the same trouble no more often than this."""

_GONE: Final = frozenset(
    {errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.ENETUNREACH, errno.ENOPROTOOPT}
    | {errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EOPNOTSUPP}
)
"""Errors of the one connection, by accept(2): the next may be sound."""


class Acceptor:
    """Owned by the event loop's thread; made on it, and serving at once.

    Args:
        listeners: bound, listening, not blocking.
        make_protocol: makes what talks on a connection; it calls left() when its connection is lost.
        room: how many connections, and guests beside them, the process can hold.
        refused: called for each connection that could not be taken now (FAILED), was sent away (CROWDED), or whose TLS
            failed (HANDSHAKE).
        tls: None where no connection is encrypted; those of sockets in the file system never are.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        make_protocol: Callable[[], asyncio.Protocol],
        shares: Shares,
        room: ConnectionLimits,
        refused: Callable[[str], None],
        tls: Tls | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._handshakes = None if tls is None else Handshakes(tls, refused)
        self._listeners = list(listeners)
        self._make_protocol = make_protocol
        self._shares = shares
        self._capacity = room.connections
        self._guests = Guests(room.guests, room.connections, self._one_more, self._sent_away)
        self._refused = refused
        self._checks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._connecting: set[asyncio.Task[None]] = set()
        self._told_s: dict[str, float] = {}
        shares.begin()
        self._listen()

    def close(self) -> None:
        """Take what waits, so that nobody is cut off who was connected already; then listen no more."""
        if not self._listeners:
            return
        self._listen_no_more()
        self._shares.end()
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            for _ in range(_LAST):
                if not self._take(listener):
                    break
            listener.close()
        self._guests.close()

    def left(self) -> None:
        """One of the connections has ended."""
        self._shares.left()
        if self._timer is not None and self._shares.my_turn():
            self._timer.cancel()
            self._check()

    async def wait_connected(self) -> None:
        """Wait until every connection that was taken talks its protocol."""
        await asyncio.gather(*self._connecting)

    async def wait_closed(self) -> None:
        """As asyncio's servers have it; uvicorn asks for it."""

    # -- whose turn it is

    def _listen(self) -> None:
        for listener in self._listeners:
            self._loop.add_reader(listener, self._on_waiting, listener)

    def _listen_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        else:
            for listener in self._listeners:
                self._loop.remove_reader(listener)

    def _on_waiting(self, listener: socket.socket) -> None:
        if not self._shares.my_turn():
            self._stand_back(_CHECK_S)
            return
        for _ in range(_BURST):
            if not self._take(listener) or not self._shares.my_turn():
                return

    def _stand_back(self, seconds: float) -> None:
        """Leave what waits to the others for a moment; readable listeners would wake this process on and on."""
        if self._timer is None:
            self._listen_no_more()
            self._timer = self._loop.call_later(seconds, self._check)

    def _check(self) -> None:
        self._timer = None
        waiting = self._waiting()
        if waiting and not self._shares.my_turn():
            self._checks += 1
            if self._checks < _CHECKS:
                self._timer = self._loop.call_later(_CHECK_S, self._check)
                return
            self._shares.wait_no_longer()
        self._checks = 0
        self._listen()

    def _waiting(self) -> bool:
        poll = select.poll()
        for listener in self._listeners:
            poll.register(listener, select.POLLIN)
        return bool(poll.poll(0))

    # -- one connection

    def _take(self, listener: socket.socket) -> bool:
        """Take one; False when none more is to be had in this turn."""
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _GONE:
                return True
            self._failed(error)
            return False
        connection.setblocking(False)
        if self._shares.mine < self._capacity:
            self._connect(connection, self._one_more(), self.left)
            return True
        self._connect(connection, self._guests.arrive(), lambda: None)
        return (
            not self._listeners
        )  # those it makes leave must have closed their descriptors before the next one comes

    def _one_more(self) -> asyncio.Protocol:
        self._shares.came()
        return self._make_protocol()

    def _connect(
        self, connection: socket.socket, protocol: asyncio.Protocol, failed: Callable[[], None]
    ) -> None:
        task = self._loop.create_task(self._connected(connection, protocol, failed))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connected(
        self, connection: socket.socket, protocol: asyncio.Protocol, failed: Callable[[], None]
    ) -> None:
        try:
            if self._handshakes is None or connection.family == socket.AF_UNIX:
                await self._loop.connect_accepted_socket(lambda: protocol, connection)
            elif not await self._handshakes.connect(protocol, connection):
                failed()
        except OSError as error:  # it has gone already
            connection.close()
            failed()
            _log.debug("a connection was lost while it was accepted: %s", error)

    # -- when there is no room

    def _failed(self, error: OSError) -> None:
        self._refused(FAILED)
        self._report(FAILED, f"a connection cannot be accepted: {error.strerror}; it waits")
        if self._listeners:
            self._stand_back(_PAUSE_S)

    def _sent_away(self) -> None:
        self._refused(CROWDED)
        self._report(CROWDED, "further connections are answered 503")

    def _report(self, what: str, text: str) -> None:
        now_s = time.monotonic()
        if now_s >= self._told_s.get(what, 0.0):
            self._told_s[what] = now_s + _TELL_EVERY_S
            _log.warning(
                "%d connections are open, and there is room for %d: %s; %s",
                self._shares.mine,
                self._capacity,
                text,
                FIX,
            )
