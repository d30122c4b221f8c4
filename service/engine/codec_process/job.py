"""One body or answer on its way through the codec process, as its API server sees it."""

import asyncio
import logging
import time
from collections.abc import Callable

from foldserve.service.engine.codec_process.messages import Sized
from foldserve.service.engine.request import PendingRequest, ScratchRequest

_log = logging.getLogger("foldserve.codecs")


class CodecsFailed(Exception):
    """The process could not do a job, for a reason that is not the client's: its log tells, or its death."""


class Job:
    """One body or answer on its way through the process.

    on_deadline, on_cancel: called when its deadline has passed, and when it was cancelled. then: called once, with None
    when the result is the request's memory, else with the error; not after cancel().
    """

    def __init__(
        self,
        request: PendingRequest,
        order: bytes,
        output_bytes: Callable[[Sized], int],
        deadline_ns: int,
        on_deadline: Callable[["Job"], None],
        on_cancel: Callable[["Job"], None],
        then: Callable[[Exception | None], None],
    ) -> None:
        self.request = request
        self.order = order
        self.output_bytes = output_bytes
        self.deadline_ns = deadline_ns
        self.crashes = 0
        self.nbytes = 0
        self.sized = Sized(0)
        self.source, self.result = ScratchRequest(request.queue), ScratchRequest(request.queue)
        self.source.allocation, request.allocation = request.allocation, None
        self._on_cancel = on_cancel
        self._then: Callable[[Exception | None], None] | None = then
        left_s = max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9)
        self.timer = asyncio.get_running_loop().call_later(left_s, on_deadline, self)

    def __repr__(self) -> str:
        cancelled = "" if self.wanted else ", cancelled"
        return f"<Job of request {self.request.request_id}: {self.nbytes} bytes, {self.crashes} crashes{cancelled}>"

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for it."""
        return self._then is not None

    def cancel(self) -> None:
        """Nobody waits for it any more; its memory is freed as soon as the process cannot touch it."""
        self._then = None
        self._on_cancel(self)

    def finish(self, error: Exception | None) -> None:
        """Call `then`, unless it was cancelled. The memory is freed or handed over already."""
        then, self._then = self._then, None
        if then is not None:
            try:
                then(error)
            except Exception:
                # The jobs that wait must not be lost with it.
                _log.exception("request %s could not be continued", self.request.request_id)
