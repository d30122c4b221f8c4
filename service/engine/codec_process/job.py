"""One body or answer on its way through the codec process, as its API server sees it."""

import asyncio
import logging
import time
from collections.abc import Callable

from foldserve.service.engine.codec_process.orders import Sized
from foldserve.service.engine.request import PendingRequest, ScratchPlace

_log = logging.getLogger("foldserve.codecs")


class CodecsFailed(Exception):
    """The process could not do a job, for a reason that is not the client's: its log tells, or its death."""


class Job:
    """One body or answer on its way through the process.

    late, unwanted: called when its time is over, and when it was given up. then: called once with None when the
    request's place is the made one, else with the error; not after give_up().
    """

    def __init__(
        self,
        request: PendingRequest,
        order: bytes,
        output_bytes: Callable[[Sized], int],
        deadline_ns: int,
        late: Callable[["Job"], None],
        unwanted: Callable[["Job"], None],
        then: Callable[[Exception | None], None],
    ) -> None:
        self.request = request
        self.order = order
        self.output_bytes = output_bytes
        self.deadline_ns = deadline_ns
        self.deaths = 0
        self.nbytes = 0
        self.sized = Sized(0)
        self.source, self.made = ScratchPlace(request.queue), ScratchPlace(request.queue)
        self.source.place, request.place = request.place, None
        self._unwanted = unwanted
        self._then: Callable[[Exception | None], None] | None = then
        left_s = max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9)
        self.timer = asyncio.get_running_loop().call_later(left_s, late, self)

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for it."""
        return self._then is not None

    def give_up(self) -> None:
        """Nobody waits for it any more; its places are freed as soon as the process cannot touch them."""
        self._then = None
        self._unwanted(self)

    def over(self, error: Exception | None) -> None:
        """Tell the owner, if it waits. The places are settled already."""
        then, self._then = self._then, None
        if then is not None:
            try:
                then(error)
            except Exception:
                # The jobs that wait must not be lost with it.
                _log.exception("request %s could not go on", self.request.request_id)
