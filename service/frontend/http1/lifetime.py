"""The life of one connection: how long it may be idle, how it is noticed that its client has gone, how it ends.

The first of three layers over uvicorn's httptools protocol; parsing.py and connection.py are built on it.
"""

import asyncio
import fcntl
import sys
import termios
from collections.abc import Callable
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from foldserve.service.frontend.http1.exchange import Http1Context, Http1Exchange
from foldserve.service.frontend.http1.flow.control import Flow
from foldserve.service.frontend.http1.flow.resets import was_reset
from foldserve.service.frontend.http1.flow.send_buffers import SendBuffer

UNREAD_S: Final = 0.5
"""What has come when the server ends is read and answered within this time, or not any more."""
BEGINNING: Final = b"HTTP/1.1 "
"""What every answer begins with."""
_CHECK_S: Final = 0.002


def _nobody_counts() -> None:
    """Stands where connections are not counted."""


class ConnectionLifetime(HttpToolsProtocol):
    """One connection. `http` and `left` are set once per API server, before the first connection."""

    http: Http1Context
    left: Callable[[], None] = staticmethod(_nobody_counts)
    """Called when a connection is lost."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle: Any  # None at first; an AsgiCycle, or an Http1Exchange: of the last request that has come
        self._encrypted = False
        """Whether it is TLS."""
        self._idle_since_s = 0.0
        self._ended = False
        """Whether the client sends no more, and what it has sent is still being parsed."""
        self._ahead_bytes = 0
        """Read and not parsed."""
        self._own: Http1Exchange | None = None
        """The exchange whose body is awaited or which awaits its answer."""
        self._own_begun = False
        """Whether a part of its answer was sent."""
        self._running: Any = None
        """The cycle that is being answered; others wait in the pipeline."""
        self._asked = False
        """Whether a client that sends no more was asked whether it is gone."""
        self._cut_beginning = False
        """Whether BEGINNING was sent ahead of the answer."""

    # -- what the layers above know

    def _go_on(self) -> None:
        """Parse what was kept, if its turn has come."""
        raise NotImplementedError

    def _end_of_input(self) -> bool:
        """Nothing more comes. Whether answers are due."""
        raise NotImplementedError

    def _give_up(self) -> None:
        """The client is gone, or its connection is being ended."""
        raise NotImplementedError

    # -- its beginning, and its client's end

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._encrypted = self.scheme == "https"
        send_buffer = SendBuffer(self.http.unread, transport, self.abort)
        self.flow = self._flow = Flow(transport, self.pipeline, send_buffer, self._go_on)
        # Also for the first head: who never sends it is gone after as long as one who was answered.
        self._idle_since_s = self.loop.time()
        self._arm_keep_alive(self.timeout_keep_alive)

    def eof_received(self) -> bool:  # type: ignore[override]
        """See asyncio.Protocol. The client sends no more: what came whole is answered, then the connection closed.

        TLS of asyncio and uvloop cannot send after that: there it is as if the client had gone.
        """
        if self._encrypted:
            return False
        if self._flow.kept:
            self._ended = True  # what was read is parsed first
            self._ask_whether_gone()
            return True
        return self._end_of_input()

    def _ask_whether_gone(self) -> None:
        """A client that has gone looks like one that only sends no more, until something is sent to it: its system
        resets the connection then. So what every answer begins with is sent at once, and the rest when it is there."""
        running = self._running
        if self._asked or running is None or running.response_complete:
            return
        self._asked = True
        if self._own is None:
            running.begin_answer(BEGINNING)
        elif not self._own_begun:
            self.transport.write(BEGINNING)
            self._own_begun = self._cut_beginning = True
        self._check_gone(_CHECK_S)

    def _check_gone(self, again_s: float) -> None:
        """Give up when the client's system has reset the connection, which is not told while nothing is read."""
        if self.transport.is_closing() or self.cycle.response_complete:
            return
        if was_reset(self.transport):
            self.transport.abort()
        else:
            self.loop.call_later(again_s, self._check_gone, min(2 * again_s, 1.0))

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._give_up()
        if self._running is not None and self._running is not self.cycle:
            self._running.disconnected = True
            self._running.message_event.set()
        HttpToolsProtocol._unset_keepalive_if_required(self)
        super().connection_lost(exc)
        self.left()

    def abort(self) -> None:
        """End the connection at once; nothing of it is kept any more."""
        self._give_up()
        self.transport.abort()

    # -- keep-alive: one timer per connection, moved on when it is due instead of at every request

    def on_response_complete(self) -> None:
        """Called after each answer."""
        self._idle_since_s = self.loop.time()
        if self.transport.is_closing():
            self._flow.send_buffer.count()
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            self._go_on()
            return
        self.server_state.total_requests += 1
        if self.flow.read_paused:
            self._go_on()
            self.flow.resume_reading()
        if self.timeout_keep_alive_task is None:
            self._arm_keep_alive(self.timeout_keep_alive)

    def _unset_keepalive_if_required(self) -> None:
        if self.transport.is_closing():
            super()._unset_keepalive_if_required()

    def timeout_keep_alive_handler(self) -> None:
        """End a connection on which nothing was asked for a while."""
        self.timeout_keep_alive_task = None
        if self.cycle is not None and not self.cycle.response_complete:
            return  # its answer arms the timer
        if self._flow.write_paused:
            self._idle_since_s = self.loop.time()  # it still takes an answer, or is ended for taking nothing
        left_s = self._idle_since_s + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._arm_keep_alive(left_s)
        else:
            super().timeout_keep_alive_handler()
            self._flow.send_buffer.count()

    def _arm_keep_alive(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    # -- the end of the server

    @property
    def _idle(self) -> bool:
        return (self.cycle is None or self.cycle.response_complete) and self._ahead_bytes == 0

    @property
    def last(self) -> bool:
        """Whether nothing has been read after the call under way."""
        missing = 0 if self._own is None else self._own.missing
        return not self.pipeline and self._ahead_bytes <= missing

    def shutdown(self) -> None:
        """Called when the server ends, by uvicorn: an idle connection is closed, unless a request has come that is not
        read yet; another closes with its last answer."""
        if not self._idle:
            if self.last:
                self.cycle.keep_alive = False
        elif self._unread_bytes():
            self.loop.call_later(UNREAD_S, self._close_idle)
        else:
            self._close_idle()

    def _close_idle(self) -> None:
        if self._idle:
            self.transport.close()

    def _unread_bytes(self) -> int:
        """What came and waits in the kernel."""
        connection = self.transport.get_extra_info("socket")
        if connection is None:
            return 0
        return int.from_bytes(fcntl.ioctl(connection.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)
