"""The API server's side of its codec process: the orders that wait, their memory, and what happens when it dies.

Owned by the event loop thread; nothing here blocks. The process is started with the first order and works on one at a
time. A job owns the memory that it reads and the memory that is written until the process can touch neither any more,
even if the request was cancelled meanwhile: so no memory is given to another request too early, or freed twice. Short
work does not wait behind long work: orders are sorted by the time at which they came plus a part of their size.
"""

import asyncio
import heapq
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from foldserve.service.codecs.compression import MOST_INFLATED
from foldserve.service.codecs.protocol import InferenceProtocol
from foldserve.service.engine.codec_process import messages
from foldserve.service.engine.codec_process.child import Helper
from foldserve.service.engine.codec_process.job import CodecsFailed, Job
from foldserve.service.engine.codec_process.messages import Body, CodecPlan, MessageType, Sized
from foldserve.service.engine.dispatcher import Dispatcher
from foldserve.service.engine.request import PendingRequest
from foldserve.service.errors import DeadlinePassed, NotReady, QueueFull, ServiceError
from foldserve.service.ipc.model_table import ModelTable
from foldserve.service.ipc.region_table import RegionTable
from foldserve.service.logs.lines import LogStyle

_log = logging.getLogger("foldserve.codecs")

MOST_WAITING: Final = 1024
"""Bodies that wait to be decoded; more are refused."""
MARGIN_S: Final = 5.0
"""The process is ended when it works so much longer than its request had time: it hangs, and others wait behind it."""
MAX_CRASHES: Final = 2
"""A job at whose work the process died so often is not tried again."""
_NS_A_BYTE: Final = 50
"""About what decoding takes, for the order in which jobs have their turn."""
_MOST_NS_A_BYTE: Final = 1000
"""More than it takes on a busy machine."""


class CodecProcess:
    """The process of one API server, and the jobs for it.

    Args:
        dispatcher: allocates memory.
        models: where the process reads what their tensors are.
        protocols: what it parses and renders.
        arena_fd, arena_bytes: the arena's memory, as the process maps it.
        work_limit_s: how long the process may work on a job beyond what its size may need, however much time the
            request has; then it hangs.
        regions, region_limit_bytes: see CodecPlan.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        models: ModelTable,
        protocols: Sequence[InferenceProtocol],
        arena_fd: int,
        arena_bytes: int,
        log_style: LogStyle,
        work_limit_s: float,
        regions: RegionTable | None = None,
        region_limit_bytes: int = 0,
    ) -> None:
        self._dispatcher = dispatcher
        keyed = {protocol.key: protocol for protocol in protocols}
        plan = CodecPlan(models, keyed, arena_bytes, log_style, regions, region_limit_bytes)
        self._loop = asyncio.get_running_loop()
        self._helper = Helper(self._loop, plan, arena_fd, self._receive, self._on_exit)
        self._waiting: list[tuple[int, int, Job]] = []
        self._numbers = itertools.count()
        self._job: Job | None = None
        """What the process works on."""
        self._work_limit_s = work_limit_s
        self._limit: asyncio.TimerHandle | None = None
        """When it has worked on that for too long."""

    @property
    def pid(self) -> int | None:
        """The process, when there is one."""
        return self._helper.pid

    def __repr__(self) -> str:
        working = "idle" if self._job is None else f"working on {self._job!r}"
        return f"<CodecProcess {self.pid}: {working}, {len(self._waiting)} waiting>"

    # -- jobs

    def parse(
        self,
        request: PendingRequest,
        protocol: InferenceProtocol,
        body: Body,
        deadline_ns: int,
        then: Callable[[Exception | None], None],
    ) -> Job:
        """Parse the body that lies in the request's memory: its inputs are there instead, with rows and dims, when
        `then` is called without an error. Until then the request has no memory.

        Raises: QueueFull when too many wait; the request keeps its memory then.
        """
        if len(self._waiting) >= MOST_WAITING:
            # Cancelled ones are skipped when it is their turn; until then they must not keep others out.
            self._waiting = [one for one in self._waiting if one[2].wanted]
            heapq.heapify(self._waiting)
        if len(self._waiting) >= MOST_WAITING:
            raise QueueFull(
                f"{len(self._waiting)} large bodies wait to be decoded, which is the most at a time; try again "
                "later, or send raw bytes, which need no decoding"
            )
        dispatcher, queue, allocation = self._dispatcher, request.queue, request.allocation
        assert allocation is not None

        def output_bytes(sized: Sized) -> int:
            return dispatcher.output_capacity(queue, sized.rows, sized.dims, sized.nbytes)

        at = allocation.input_at + request.input_offset
        order = messages.parse_order(queue.key, protocol.key, at, body)
        job = Job(request, order, output_bytes, deadline_ns, self._on_deadline, self._on_cancel, then)
        request.input_offset = 0  # of the memory that it will have
        most = min(body.nbytes * MOST_INFLATED, body.limit_bytes) if body.encoding else body.nbytes
        return self._add(job, most)

    def render(
        self,
        request: PendingRequest,
        protocol: InferenceProtocol,
        names: Sequence[str],
        reply: Any,
        deadline_ns: int,
        then: Callable[[Exception | None], None],
    ) -> Job:
        """Render the response with these outputs: it fills the input bytes of the request's memory when `then` is
        called without an error. Until then the request has no memory."""
        allocation = request.allocation
        assert allocation is not None
        nbytes = len(allocation.outputs)
        key, rows, at = request.queue.key, request.rows, allocation.output_at
        order = messages.render_order(key, protocol.key, rows, at, nbytes, names, reply)
        return self._add(
            Job(request, order, lambda sized: 0, deadline_ns, self._on_deadline, self._on_cancel, then),
            nbytes,
        )

    def _add(self, job: Job, nbytes: int) -> Job:
        job.nbytes = nbytes
        turn = time.monotonic_ns() + nbytes * _NS_A_BYTE
        heapq.heappush(self._waiting, (turn, next(self._numbers), job))
        # Not at once: the caller is to have its Job before `then` can be called.
        self._loop.call_soon(self._next)
        return job

    def _on_cancel(self, job: Job) -> None:
        """A job was cancelled: free what it holds, unless the process works on it."""
        if job is not self._job:
            self._free(job)

    def _on_deadline(self, job: Job) -> None:
        """The deadline of a job's request has passed."""
        if job is self._job:
            job.timer = self._loop.call_later(MARGIN_S, self._on_timeout, job)
        else:
            self._free(job)
        job.finish(DeadlinePassed.after(None))

    def _on_timeout(self, job: Job) -> None:
        if job is self._job and self.pid is not None:
            _log.error("the codec process %d hangs: it is ended and started again", self.pid)
            self._helper.kill()  # what it held is freed when it is gone

    def _free(self, job: Job) -> None:
        """The process cannot touch the job's memory any more."""
        job.timer.cancel()
        self._dispatcher.release(job.source)
        self._dispatcher.release(job.result)

    def _rests(self) -> None:
        """The process works on nothing any more."""
        self._job = None
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _next(self) -> None:
        """Give the process the next order, when it has none."""
        while self._job is None and self._waiting:
            _, _, job = heapq.heappop(self._waiting)
            if not job.wanted:
                continue
            try:
                self._helper.order(job.order)
            except OSError as error:
                if self.pid is None:
                    _log.error("the codec process cannot be started: %s", error)
                    self._free(job)
                    job.finish(
                        NotReady(
                            "the process that reads large bodies cannot be started at this moment; try again shortly"
                        )
                    )
                    continue
                # It died this moment: its end is read next, and goes on with this job.
            self._job = job
            limit_s = self._work_limit_s + job.nbytes * _MOST_NS_A_BYTE / 1e9
            self._limit = self._loop.call_later(limit_s, self._on_timeout, job)

    # -- what the process says

    def _receive(self, packet: bytes) -> None:
        message_type, values = messages.unpack(packet)
        job = self._job
        assert job is not None
        if message_type == MessageType.SIZED:
            job.sized = messages.sized_of(values)
            self._give_memory(job)
        elif message_type == MessageType.DONE:
            self._on_done(job)
        elif message_type == MessageType.REFUSED:
            self._end(job, messages.refused(*values))
        else:
            self._end(job, CodecsFailed("the codec process failed on it; its log says why"))

    def _give_memory(self, job: Job) -> None:
        error: ServiceError | None = None
        if job.wanted:
            try:
                self._reserve(job)
            except ServiceError as refused:
                error = refused
        allocation = job.result.allocation
        self._helper.tell(
            messages.pack(MessageType.DROP)
            if allocation is None
            else messages.pack(MessageType.PUT, allocation.input_at)
        )
        if allocation is None:
            self._end(job, error)

    def _reserve(self, job: Job) -> None:
        """Allocate memory for the result. Raises: QueueFull; TooLarge when an empty arena would not have it."""
        dispatcher, source, nbytes = self._dispatcher, job.source.allocation, job.sized.nbytes
        assert source is not None
        output_bytes = job.output_bytes(job.sized)
        job.result.rows = job.sized.rows or job.request.rows
        try:
            dispatcher.reserve(job.result, nbytes, output_bytes)
        except QueueFull:
            # Its source takes memory too.
            held = len(source.inputs) + len(source.outputs)
            dispatcher.check_fits(job.result, held + nbytes, output_bytes)
            raise

    def _on_done(self, job: Job) -> None:
        request = job.request
        if job.wanted:
            request.allocation, job.result.allocation = job.result.allocation, None
            if job.sized.rows:
                request.rows, request.dims = job.sized.rows, job.sized.dims
        self._end(job, None)

    def _end(self, job: Job, error: Exception | None) -> None:
        self._rests()
        self._free(job)
        job.finish(error)
        self._next()

    def _on_exit(self) -> None:
        """The process is gone, and touches nothing of the arena any more: its job is done again by the next one."""
        job = self._job
        self._rests()
        if job is not None:
            job.crashes += 1
            if job.wanted and job.crashes < MAX_CRASHES:
                self._dispatcher.release(job.result)
                heapq.heappush(self._waiting, (0, next(self._numbers), job))
            else:
                self._free(job)
                job.finish(CodecsFailed(f"the codec process died {job.crashes} times while it worked on it"))
        self._next()
