"""Responses that their clients do not read: how much of them is buffered, and for how long.

What the kernel does not take of a response is buffered in this process until its client reads on. A slow client is
waited for; one that reads nothing for PATIENCE_S is not. Over all connections these bytes are bounded; which connection
is evicted when the bound is reached is decided by inference/holdings.py. One SendBuffer for each connection.
Owned by the event loop thread.

A large response is not copied: it stays in its memory of the arena until the last of it is sent. When the arena is full
and a request comes, a response that would keep its memory for long, because its client is slow, is evicted
(SendBuffers.evict_slow): a slow client does not shut out others.
"""

import asyncio
import fcntl
import socket
import struct
import termios
import time
from collections.abc import Callable
from typing import Final

from foldserve.service.inference.holdings import STALLED_S, Holding, Holdings

PATIENCE_S: Final = 10.0
"""The connection of a client that reads no byte of its response for so long is ended. Several times what TCP takes to
send lost packets again."""
CHECK_S: Final = 1.0
"""How often the progress of a client that is behind is checked: only while one is."""


class SendBuffers(Holdings):
    """All responses of an API server that wait to be read."""

    def __init__(self, limit_bytes: int, clock_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__(limit_bytes, clock_s)
        self.sending: dict[SendBuffer, None] = {}
        """Those whose responses lie in the arena, in the order in which they began."""

    def evict_slow(self, nbytes: int, arena_bytes: int) -> bool:
        """Evict a response from the arena for a request that needs so many bytes; False when there is none to evict.

        One that has stalled is evicted for any request; one that is slow and has more than an equal share of the arena,
        for a request within that share.
        """
        share = arena_bytes // (len(self.sending) + 1)
        for send_buffer in self.sending:
            if send_buffer.has_stalled() or (
                nbytes <= share < send_buffer.allocation_bytes and send_buffer.is_slow()
            ):
                send_buffer.evict()
                return True
        return False


class SendBuffer:
    """What one connection's client has not read. abort: ends the connection, at once."""

    def __init__(self, of: SendBuffers, transport: asyncio.Transport, abort: Callable[[], None]) -> None:
        self._of = of
        self._transport = transport
        self._abort = abort
        self._left_bytes = 0
        self._holding: Holding | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._gone = False
        self.allocation_bytes = 0
        """Of the arena, for the response that is being sent from there."""
        self._length = self._sent_bytes = 0
        self._began_s = 0.0
        self._cancel: Callable[[], None] | None = None

    # -- a response that lies in the arena

    def begin_response(self, allocation_bytes: int, length: int, cancel: Callable[[], None]) -> None:
        """A response of this length is sent from so many bytes of the arena. cancel: frees them, at once."""
        self._cancel = cancel
        self.allocation_bytes, self._length, self._sent_bytes = allocation_bytes, length, 0
        self._began_s = self._of.now_s()
        self._of.sending[self] = None

    def sent(self, nbytes: int) -> None:
        """So many bytes of it were given to the transport, in total."""
        self._sent_bytes = nbytes

    def end_response(self) -> None:
        """The memory is free. A second call does nothing."""
        self._of.sending.pop(self, None)
        self._cancel = None
        self.allocation_bytes = 0

    def has_stalled(self) -> bool:
        """Whether its client has read nothing for STALLED_S."""
        return self._holding is not None and self._holding.still_s() >= STALLED_S

    def is_slow(self) -> bool:
        """Whether the rest, at the speed so far, would take its client longer than PATIENCE_S."""
        age_s = self._of.now_s() - self._began_s
        taken = max(0, self._sent_bytes - self._left())
        return age_s >= STALLED_S and (self._length - taken) * age_s > taken * PATIENCE_S

    def evict(self) -> None:
        """Free the memory, and end the connection."""
        self._end()
        cancel = self._cancel
        self.end_response()
        if cancel is not None:
            cancel()
        self._abort()

    # -- what is buffered in this process

    def count(self) -> None:
        """Count what is buffered now; its client's progress is checked while anything is."""
        if not self._fits():
            self.evict()

    def _fits(self) -> bool:
        """Count what is buffered now; False, and nothing is counted, when it does not fit."""
        if self._gone:
            return True
        kept = self._transport.get_write_buffer_size()
        holding = self._holding
        if not kept:
            self._end()
            return True
        if holding is None:
            holding = self._holding = self._of.open(self._abort)
            self._left_bytes = self._left()
        more = kept - holding.nbytes
        if more <= 0:
            holding.adjust(more)
        elif not holding.reserve(more):
            if len(self._of) > 1:
                return False
            holding.adjust(more)  # the only one: one response is allowed, however large
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(CHECK_S, self._check)
        return True

    def close(self) -> None:
        """The connection is gone."""
        self._gone = True
        self.end_response()
        self._end()

    def _end(self) -> None:
        """Everything was read, or nobody will read it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._holding is not None:
            self._holding.end()
            self._holding = None

    def _check(self) -> None:
        self._timer = None
        holding, left = self._holding, self._left()
        assert holding is not None
        if left < self._left_bytes:
            holding.moved()
        elif holding.still_s() >= PATIENCE_S:
            self.evict()
            return
        self._left_bytes = left
        self.count()

    def _left(self) -> int:
        """Bytes that the client has not acknowledged: here, and in the kernel, which takes them in large steps."""
        left = self._transport.get_write_buffer_size()
        connection: socket.socket | None = self._transport.get_extra_info("socket")
        if connection is not None:
            left += struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
        return left
