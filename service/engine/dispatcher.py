"""The API server's half of the transport: sends a request's ticket to the workers, and completes the request.

Owned by the event loop thread of one API server; nothing here blocks. The calls for a request, in order: reserve() or
put() (arena_memory.py), submit(), then its completed() is called, release(). cancel() may come at any time in between.
The states of a slot are in ipc/slots/slot_state.py; what happens when a worker dies is in recovery.py.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any, Final

from foldserve.service.engine.admission import admit
from foldserve.service.engine.callers import check_quota
from foldserve.service.engine.memory.arena_memory import ArenaMemory
from foldserve.service.engine.model_queue import ModelQueue, unloaded
from foldserve.service.engine.queue_level import QueueLevel, View
from foldserve.service.engine.request import PendingRequest, failure
from foldserve.service.engine.watchdog import Watchdog
from foldserve.service.errors import DeadlinePassed, Internal, QueueFull, ServiceError, TooLarge, new_error_id
from foldserve.service.ipc.records import DONE, DONE_STRUCT, EPOCHS, TICKET_STRUCT, pack_dims
from foldserve.service.ipc.scoreboard import MappedScoreboard
from foldserve.service.ipc.slots.arena import MappedArena
from foldserve.service.ipc.slots.slot_state import State
from foldserve.service.logs.limits import with_id

_READ_BYTES: Final = DONE.itemsize * 1024
_DOUBT_NS: Final = 1_000_000_000
"""How often a request is admitted against the forecast, to measure whether that still holds."""

# As plain numbers: looking up an enum's member would show in what a small request costs.
_DONE: Final = int(State.DONE)
_OUTPUT_OVERFLOW: Final = int(State.OUTPUT_OVERFLOW)

_log = logging.getLogger("foldserve.dispatch")


class Dispatcher(ArenaMemory):
    """Sends the tickets of one API server, and receives the done records.

    Args:
        done_fd: the reading end of its pipe of done records.
        run_limit_s: how long one run of a model may take.
        on_run_timeout, on_stall: see Watchdog.
    """

    def __init__(
        self,
        index: int,
        arena: MappedArena,
        board: MappedScoreboard,
        done_fd: int,
        run_limit_s: float,
        on_run_timeout: Callable[[int], None],
        on_stall: Callable[[int], None],
    ) -> None:
        super().__init__(index, arena, board)
        self._epoch = board.epoch[index] % EPOCHS
        self._done_fd = done_fd
        self._flush_planned = False
        # Only these models cost anything in a turn of the loop.
        self._unsent: list[QueueLevel] = []
        self._viewed: list[QueueLevel] = []
        self._changed: set[ModelQueue] = set()
        self._overflowing: set[QueueLevel] = set()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(done_fd, self.receive)
        self.watchdog = Watchdog(
            self._loop, self.in_flight, board, run_limit_s, on_run_timeout, on_stall, self._expire
        )

    def __repr__(self) -> str:
        return (
            f"<Dispatcher of API server {self.index}, epoch {self._epoch}: {len(self.in_flight)} requests in flight, "
            f"{len(self._overflowing)} full pipes, {list(self.queues.values())}, {self._pool}>"
        )

    # -- which models there are

    def close_queue(self, queue: ModelQueue, drained: Callable[[], None]) -> None:
        """Take no more requests for a model version.

        Args:
            drained: called once, when no request of it is in flight any more; at once where none is.
        """
        queue.drained = drained
        self._check_drained(queue)

    def _check_drained(self, queue: ModelQueue) -> None:
        """Forget a queue that is closed, once its last request has left it."""
        drained = queue.drained
        if drained is None or queue.requests or queue.rendering or self.queues.get(queue.row) is not queue:
            return
        del self.queues[queue.row]
        self._show()
        drained()

    def rendered(self, queue: ModelQueue) -> None:
        """One of its responses is rendered, or cancelled."""
        queue.rendering -= 1
        self._check_drained(queue)

    # -- into the queue

    def submit(self, request: PendingRequest, now_ns: int, deadline_ns: int) -> None:
        """Queue a request whose inputs, rows and dims are set; its completed() will be called, once.

        Args:
            now_ns: CLOCK_MONOTONIC, since when it counts as queued.
            deadline_ns: CLOCK_MONOTONIC after which no worker begins it.
        Raises: QueueFull (RateLimited), TooLarge, DeadlinePassed, NotReady: it was not queued, the caller releases it.
        """
        allocation, queue, level = request.allocation, request.queue, request.level
        assert allocation is not None
        if queue.closed:
            raise unloaded(queue)
        rows, nbytes, bounds, quota = request.rows, len(allocation.inputs), queue.bounds, request.quota
        if quota is not None:
            check_quota(quota, queue, self.load(queue, level), rows, now_ns)
        view = level.view or self._view(queue, level)
        budget_s = (deadline_ns - now_ns) / 1e9
        # What admit() checks, in the few operations that suffice for nearly every request.
        waiting = level.rows + view.rows + rows
        if (
            rows > view.small_rows
            or waiting > bounds.max_rows
            or level.nbytes + view.nbytes + nbytes > bounds.max_bytes
            or (waiting - view.begun) * view.row_s >= budget_s
            or view.full_s >= budget_s
        ):
            doubt = now_ns - queue.doubted_ns >= _DOUBT_NS
            if admit(queue.model, rows, nbytes, self.load(queue, level), bounds, budget_s, doubt):
                queue.doubted_ns = now_ns
        request.queued_ns, request.deadline_ns = now_ns, deadline_ns
        self.in_flight[allocation.slot] = request
        queue.requests += 1
        self._count(request, 1)
        self.enqueue(request)
        if quota is not None:
            quota.take(rows, now_ns)
        if deadline_ns < self.watchdog.next_ns:
            self.watchdog.schedule(deadline_ns, now_ns)

    def _view(self, queue: ModelQueue, level: QueueLevel) -> View:
        """The level's view; cached until the flush at the end of this turn, if one is planned."""
        view = self.new_view(queue, level)
        if self._flush_planned:
            level.view = view
            self._viewed.append(level)
        return view

    def enqueue(self, request: PendingRequest) -> None:
        """Queue a ticket for the request: its first, or another after a crash or an output overflow."""
        allocation, queue = request.allocation, request.queue
        assert allocation is not None
        allocation.begin_attempt(queue.row, queue.generation, request.rows)
        outbox = request.level.outbox
        if not outbox:
            self._unsent.append(request.level)
        outbox += TICKET_STRUCT.pack(
            allocation.slot,
            allocation.attempt,
            self.index,
            self._epoch,
            queue.ticket_generation,
            request.crashes > 0,
            request.rows,
            allocation.input_at + request.input_offset,
            allocation.output_at,
            len(allocation.outputs),
            request.queued_ns,
            request.deadline_ns,
            pack_dims(request.dims),
        )
        self._plan_flush()

    def _plan_flush(self) -> None:
        if not self._flush_planned:
            # One write per turn of the event loop: all requests that arrived in it travel together.
            self._flush_planned = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send the tickets of this turn of the loop, and write to the scoreboard what is queued."""
        self._flush_planned = False
        for level in self._viewed:
            level.view = None
        self._viewed.clear()
        for level in self._unsent:
            level.writer.write(level.outbox)
            level.outbox.clear()
            if level.writer.overflow:
                self._await_writable(level)
        self._unsent.clear()
        self._show()

    def drop_unsent(self) -> None:
        """Drop the tickets that have not reached their pipes; the requests stay queued, for recovery.py."""
        for level in self._unsent:
            level.outbox.clear()
        self._unsent.clear()
        for level in tuple(self._overflowing):
            level.writer.drop()
            self._await_writable(level)

    def _await_writable(self, level: QueueLevel) -> None:
        """The pipe is full: go on as soon as it can be written."""
        writer = level.writer
        writer.flush()
        if writer.overflow and level not in self._overflowing:
            self._overflowing.add(level)
            self._loop.add_writer(writer.fd, self._await_writable, level)
        elif not writer.overflow and level in self._overflowing:
            self._overflowing.remove(level)
            self._loop.remove_writer(writer.fd)

    # -- out of the queue

    def receive(self) -> None:
        """Take every done record that waits and complete its request."""
        while True:
            try:
                data = os.read(self._done_fd, _READ_BYTES)
            except BlockingIOError:
                break
            for record in DONE_STRUCT.iter_unpack(data):
                request = self.in_flight.get(record[0])
                if (
                    request is not None
                    and request.allocation is not None
                    and request.allocation.attempt == record[1]
                ):
                    self._on_record(request, record)
            if len(data) < _READ_BYTES:
                break
        self._show()

    def complete(self, request: PendingRequest, error: ServiceError | None) -> None:
        """The request has left the queue: notify its owner, or free its memory if it was cancelled."""
        allocation = request.allocation
        assert allocation is not None
        del self.in_flight[allocation.slot]
        queue = request.queue
        queue.requests -= 1
        if request.cancelled:
            allocation.set_cancelled(False)
            self.release(request)
        else:
            self._count(request, -1)
            self._notify_owner(request, error)
        if queue.closed:
            self._check_drained(queue)

    def _notify_owner(self, request: PendingRequest, error: ServiceError | None) -> None:
        """Notify the owner of a request that has left the queue."""
        if error is not None:
            self.release(request)
        try:
            request.completed(error)
        except Exception:
            # The other records of this read must not be lost with it.
            error_id = new_error_id()
            _log.exception(
                "request %s could not be answered, error id %s",
                *(request.request_id, error_id),
                extra=with_id(error_id),
            )
            self.release(request)
            if error is None:
                told = f"the answer could not be made; the server's log says why, under error id {error_id}"
                with contextlib.suppress(Exception):
                    request.completed(Internal(told))

    def cancel(self, request: PendingRequest) -> None:
        """Nobody waits for the answer: its rows no longer count; its memory is freed when no worker can touch it."""
        allocation = request.allocation
        if allocation is None:
            return
        if allocation.slot not in self.in_flight:
            self.release(request)
        elif not request.cancelled:
            request.cancelled = True
            allocation.set_cancelled(True)
            self._count(request, -1)
            self._plan_flush()  # the scoreboard shows others that there is room again

    def _expire(self, request: PendingRequest) -> None:
        """Answer a request whose deadline has passed."""
        self.cancel(request)
        try:
            request.completed(DeadlinePassed.after(None))
        except Exception:
            _log.exception("request %s could not be answered", request.request_id)

    def _on_record(self, request: PendingRequest, record: tuple[Any, ...]) -> None:
        if request.cancelled:
            self.complete(request, None)
            return
        _, _, state, reason, _, batch_rows, taken_ns, gather_s, run_s, scatter_s, _, needed = record
        if state == _OUTPUT_OVERFLOW:
            self._rerun_with_more_memory(request, needed)
            return
        request.batch_rows = batch_rows
        queue_s = (taken_ns - request.queued_ns) / 1e9 if taken_ns else 0.0
        request.stages_s = (queue_s, gather_s, run_s, scatter_s)
        self.complete(request, None if state == _DONE else failure(request, reason))

    def _rerun_with_more_memory(self, request: PendingRequest, needed: int) -> None:
        """The outputs did not fit: allocate what they need, and run once more."""
        try:
            found = self.grow_output(request, needed)
        except TooLarge as never:
            self.complete(request, never)
            return
        if found:
            self.enqueue(request)
            return
        full = QueueFull(
            f"no memory available for an answer of {needed} bytes: other requests are using it; try again later",
            retry_after_s=self.load(request.queue, request.level).wait_s(0),
        )
        self.complete(request, full)

    def _count(self, request: PendingRequest, sign: int) -> None:
        """Count a request that waits or runs (+1), or count it no longer (-1)."""
        assert request.allocation is not None
        queue = request.queue
        rows = queue.count(request.level.index, request.rows, len(request.allocation.inputs), sign)
        if request.quota is not None:
            request.quota.count(queue.row, rows)
        self._changed.add(queue)

    def _show(self) -> None:
        board, me = self.board, self.index
        for queue in self._changed:
            for level in queue.levels:
                board.queued_rows[me, queue.row, level.index] = level.rows
                board.queued_bytes[me, queue.row, level.index] = level.nbytes
        self._changed.clear()
