"""Flow control of one connection: when its bytes may be read.

uvicorn's FlowControl, with three more reasons not to read, so that what a client sends too early stays in its own
machine: answers that it does not take, requests that wait for their turn, and a pause after a refusal (pace.py).
"""

import asyncio
from collections.abc import Sized

from uvicorn.protocols.http.flow_control import FlowControl


class Flow(FlowControl):
    """One connection's. waiting: the requests that were read and wait for an earlier one's answer."""

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting
        self._held = False

    def resume_reading(self) -> None:
        """Read on, unless there is a reason not to."""
        if self.read_paused and not self.write_paused and not self._waiting and not self._held:
            super().resume_reading()

    def pause_writing(self) -> None:
        """Called when the client takes no more answers for now."""
        super().pause_writing()
        self.pause_reading()

    def resume_writing(self) -> None:
        """Called when it takes them again."""
        super().resume_writing()
        self.resume_reading()

    def hold(self) -> None:
        """Read nothing until release()."""
        self._held = True
        self.pause_reading()

    def release(self) -> None:
        """Read on after hold()."""
        self._held = False
        if not self._transport.is_closing():
            self.resume_reading()
