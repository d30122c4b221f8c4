"""Answers that their clients do not take: how much of them is kept, and for how long.

What the kernel does not take of an answer is kept in this process until its client reads on. A client that reads slowly
is waited for, one that takes nothing for PATIENCE_S is not. Over all connections these bytes are bounded, and who gives
way when the bound is reached is holdings.py's. One Owing for each connection; owned by the event loop thread.
"""

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Callable
from typing import Final

from service.holdings import Holding, Holdings

PATIENCE_S: Final = 10.0
"""A client that takes no byte of its answer for so long is given up. Several times what TCP takes to send again what a
network lost."""
LOOK_S: Final = 1.0
"""How often it is seen whether a client that is behind went on: only while one is."""


class Unread(Holdings):
    """All answers that wait to be taken, of an API server."""


class Owing:
    """What one connection's client has not taken. give_up: ends the connection, at once."""

    def __init__(self, of: Unread, transport: asyncio.Transport, give_up: Callable[[], None]) -> None:
        self._of = of
        self._transport = transport
        self._give_up = give_up
        self._more_bytes = 0
        self._left_bytes = 0
        self._holding: Holding | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._gone = False

    def more(self, nbytes: int) -> None:
        """So many bytes of the answer, or less if negative, are kept besides those given to the transport."""
        self._more_bytes += nbytes
        self.count()

    def count(self) -> None:
        """Count what is kept now; from now on its client is watched, as long as it is anything."""
        if self._gone:
            return
        kept = self._transport.get_write_buffer_size() + self._more_bytes
        holding = self._holding
        if not kept:
            self._end()
            return
        if holding is None:
            holding = self._holding = self._of.open(self._give_up)
            self._left_bytes = self._left()
        more = kept - holding.nbytes
        if more <= 0:
            holding.take_anyway(more)
        elif not holding.take(more):
            if len(self._of) > 1:
                self._end()
                self._give_up()
                return
            holding.take_anyway(more)  # nobody else has any: one answer is let through, however large
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def close(self) -> None:
        """The connection is gone."""
        self._gone = True
        self._end()

    def _end(self) -> None:
        """Everything was taken, or nobody will take it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._holding is not None:
            self._holding.end()
            self._holding = None

    def _look(self) -> None:
        self._timer = None
        holding, left = self._holding, self._left()
        assert holding is not None
        if left < self._left_bytes:
            holding.moved()
        elif holding.still_s() >= PATIENCE_S:
            self._end()
            self._give_up()
            return
        self._left_bytes = left
        self.count()

    def _left(self) -> int:
        """Bytes that the client has not acknowledged: here, and in the kernel, which takes them in large steps."""
        left = self._transport.get_write_buffer_size() + self._more_bytes
        connection: socket.socket | None = self._transport.get_extra_info("socket")
        if connection is not None:
            left += struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
        return left
