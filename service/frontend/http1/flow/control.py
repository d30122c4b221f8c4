"""Flow control of one connection: when its bytes may be read, and what was read and must wait.

uvicorn's FlowControl, with more reasons not to read, so that what a client sends too early stays in its own machine:
answers that it does not take, requests that wait for their turn, and a pause after a refusal (throttle.py). What had
been read by then is kept here as it came: no more than one request is parsed ahead of the one that is being answered.
In a pause reading goes on until something comes, for that is how a client that has gone is noticed.
"""

import asyncio
from collections.abc import Callable, Sized
from typing import Final

from uvicorn.protocols.http.flow_control import FlowControl

from foldserve.service.frontend.http1.flow.send_buffers import SendBuffer

UNTAKEN_BYTES: Final = 16_384
"""Buffered bytes of a response from which on its client is behind."""


class Flow(FlowControl):
    """One connection's.

    Args:
        waiting: the requests that were parsed and wait for an earlier one's answer.
        send_buffer: what its client does not read.
        go_on: called when what is kept may be parsed.
    """

    def __init__(
        self, transport: asyncio.Transport, waiting: Sized, send_buffer: SendBuffer, go_on: Callable[[], None]
    ) -> None:
        super().__init__(transport)
        transport.set_write_buffer_limits(high=UNTAKEN_BYTES)
        self.send_buffer = send_buffer
        self.kept = b""
        """Read, and to be parsed when its turn comes."""
        self._waiting = waiting
        self._go_on = go_on
        self.pauses = 0
        """While there are any, nothing more may be parsed."""
        self._then: Callable[[], None] | None = None

    def keep(self, data: bytes) -> None:
        """Parse this later, and read nothing more before."""
        self.kept += data
        self.pause_reading()

    def resume_reading(self) -> None:
        """Read on, unless there is a reason not to."""
        if self.write_paused or self._waiting or self.kept or self._transport.is_closing():
            return
        super().resume_reading()

    def pause_writing(self) -> None:
        """Called when the client reads no more of its responses for now."""
        super().pause_writing()
        self.pause_reading()
        self.send_buffer.count()

    def resume_writing(self) -> None:
        """Called when it reads them again."""
        super().resume_writing()
        self.send_buffer.count()
        then, self._then = self._then, None
        if then is not None:
            then()
        self.resume_reading()

    def when_taken(self, then: Callable[[], None]) -> bool:
        """Call `then` when the client reads its response again; False, and nothing is called, when it is not behind."""
        if self.write_paused:
            self._then = then
        return self.write_paused

    def pause(self, seconds: float) -> None:
        """Parse nothing for so many seconds."""
        self.pauses += 1
        asyncio.get_running_loop().call_later(seconds, self._end_pause)

    def _end_pause(self) -> None:
        self.pauses -= 1
        if not self._transport.is_closing():
            self._go_on()
            self.resume_reading()

    def end(self) -> None:
        """The connection is gone."""
        self.send_buffer.close()
        self.kept = b""
        self._then = None
