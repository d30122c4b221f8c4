"""The API server's half of the transport: queue a request's ticket, hand its answer back.

Owned by the event loop thread of one API server; nothing here blocks. A request passes reserve() or put()
(places.py) -> submit() -> its completed() -> release(); cancel() may come at any time in between. States and moves are
ipc/slots/slot_state.py's; what happens when a process dies is recovery.py's.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any, Final

from foldserve.service.engine.admission import admit, in_line, is_large
from foldserve.service.engine.model_queue import ModelQueue, View, unloaded
from foldserve.service.engine.places import Places
from foldserve.service.engine.request import PendingRequest
from foldserve.service.engine.watchdog import Watchdog
from foldserve.service.errors import (
    DeadlinePassed,
    Internal,
    ModelFailed,
    QueueFull,
    ServiceError,
    TooLarge,
    new_error_id,
)
from foldserve.service.ipc.records import DONE, DONE_STRUCT, EPOCHS, TICKET_STRUCT, Reason, pack_dims
from foldserve.service.ipc.scoreboard import MappedScoreboard
from foldserve.service.ipc.slots.arena import MappedArena
from foldserve.service.ipc.slots.slot_state import State
from foldserve.service.logs.limits import with_id

_READ_BYTES: Final = DONE.itemsize * 1024
_DOUBT_NS: Final = 1_000_000_000
"""How often a request that a forecast is against is let in, to see."""

# As plain numbers: looking up an enum's member would show in what a small request costs.
_DONE: Final = int(State.DONE)
_OUTPUT_OVERFLOW: Final = int(State.OUTPUT_OVERFLOW)

_log = logging.getLogger("foldserve.dispatch")


class Dispatcher(Places):
    """Tickets and answers of one API server.

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
        # A turn of the loop costs nothing for the models that it is not about.
        self._unsent: list[ModelQueue] = []
        self._viewed: list[ModelQueue] = []
        self._changed: set[ModelQueue] = set()
        self._overflowing: set[ModelQueue] = set()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(done_fd, self.receive)
        self.watchdog = Watchdog(
            self._loop, self.in_flight, board, run_limit_s, on_run_timeout, on_stall, self._expire
        )

    # -- which models there are

    def close_queue(self, queue: ModelQueue, drained: Callable[[], None]) -> None:
        """Take no more requests for a model version.

        Args:
            drained: called once, when nothing of its requests is in flight any more: at once where nothing is.
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
        """One of its answers is made, or not wanted any more."""
        queue.rendering -= 1
        self._check_drained(queue)

    # -- into the queue

    def submit(self, request: PendingRequest, now_ns: int, deadline_ns: int) -> None:
        """Queue a request whose inputs, rows and dims are in place; its completed() will be called, once.

        Args:
            now_ns: CLOCK_MONOTONIC, from when on it counts as queued.
            deadline_ns: the time after which no worker begins it and nobody waits for it.
        Raises: QueueFull, DeadlinePassed, NotReady: it was not queued; the caller releases it.
        """
        place, queue = request.place, request.queue
        assert place is not None
        if queue.closed:
            raise unloaded(queue)
        rows, nbytes, bounds = request.rows, len(place.inputs), queue.bounds
        view = queue.view or self._view(queue)
        budget_s = (deadline_ns - now_ns) / 1e9
        # What admit() asks, in the few operations that nearly every request gets by with.
        waiting = queue.rows + view.rows + rows
        if (
            rows > view.small_rows
            or waiting > bounds.max_rows
            or queue.nbytes + view.nbytes + nbytes > bounds.max_bytes
            or (waiting - view.begun) * view.row_s >= budget_s
            or view.full_s >= budget_s
        ):
            doubt = now_ns - queue.doubted_ns >= _DOUBT_NS
            if admit(queue.model, rows, nbytes, self.load(queue), bounds, budget_s, doubt):
                queue.doubted_ns = now_ns
        request.queued_ns, request.deadline_ns = now_ns, deadline_ns
        self.in_flight[place.slot] = request
        queue.requests += 1
        self._count(request, 1)
        self.enqueue(request)
        if deadline_ns < self.watchdog.next_ns:
            self.watchdog.schedule(deadline_ns, now_ns)

    def _view(self, queue: ModelQueue) -> View:
        """The queue's view; kept when the end of this turn, which forgets it, is planned."""
        view = self.new_view(queue)
        if self._flush_planned:
            queue.view = view
            self._viewed.append(queue)
        return view

    def enqueue(self, request: PendingRequest) -> None:
        """Put a ticket for the request into its queue: its first, or another after a death or an output overflow."""
        place, queue = request.place, request.queue
        assert place is not None
        place.begin_attempt(queue.row, queue.generation, request.rows)
        outbox = queue.outbox
        if not outbox:
            self._unsent.append(queue)
        outbox += TICKET_STRUCT.pack(
            place.slot,
            place.attempt,
            self.index,
            self._epoch,
            queue.ticket_generation,
            request.crashes > 0,
            request.rows,
            place.input_at,
            place.output_at,
            len(place.outputs),
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
        """Send the tickets of this turn of the loop, and show on the board what is queued."""
        self._flush_planned = False
        for queue in self._viewed:
            queue.view = None
        self._viewed.clear()
        for queue in self._unsent:
            queue.writer.write(queue.outbox)
            queue.outbox.clear()
            if queue.writer.overflow:
                self._await_room(queue)
        self._unsent.clear()
        self._show()

    def drop_unsent(self) -> None:
        """Forget the tickets that have not reached their pipes; the requests stay queued, for recovery.py."""
        for queue in self._unsent:
            queue.outbox.clear()
        self._unsent.clear()
        for queue in tuple(self._overflowing):
            queue.writer.drop()
            self._await_room(queue)

    def _await_room(self, queue: ModelQueue) -> None:
        """The pipe is full: go on as soon as it is not."""
        writer = queue.writer
        writer.flush()
        if writer.overflow and queue not in self._overflowing:
            self._overflowing.add(queue)
            self._loop.add_writer(writer.fd, self._await_room, queue)
        elif not writer.overflow and queue in self._overflowing:
            self._overflowing.remove(queue)
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
                if request is not None and request.place is not None and request.place.attempt == record[1]:
                    self._on_record(request, record)
            if len(data) < _READ_BYTES:
                break
        self._show()

    def complete(self, request: PendingRequest, error: ServiceError | None) -> None:
        """The request left the queue: tell its owner, or free its place if nobody waits any more."""
        place = request.place
        assert place is not None
        del self.in_flight[place.slot]
        queue = request.queue
        queue.requests -= 1
        if request.cancelled:
            place.set_cancelled(False)
            self.release(request)
        else:
            self._count(request, -1)
            self._notify_owner(request, error)
        if queue.closed:
            self._check_drained(queue)

    def _notify_owner(self, request: PendingRequest, error: ServiceError | None) -> None:
        """Tell the owner of a request that has left the queue."""
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
                told = f"the answer could not be made; the server's log tells why, under error id {error_id}"
                with contextlib.suppress(Exception):
                    request.completed(Internal(told))

    def cancel(self, request: PendingRequest) -> None:
        """Nobody waits for the answer: its rows no longer count; its memory is freed when no worker can touch it."""
        place = request.place
        if place is None:
            return
        if place.slot not in self.in_flight:
            self.release(request)
        elif not request.cancelled:
            request.cancelled = True
            place.set_cancelled(True)
            self._count(request, -1)
            self._plan_flush()  # the board tells others of the room

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
            self._run_again_with_room(request, needed)
            return
        request.batch_rows = batch_rows
        request.stages_s = (
            (taken_ns - request.queued_ns) / 1e9 if taken_ns else 0.0,
            gather_s,
            run_s,
            scatter_s,
        )
        self.complete(request, None if state == _DONE else _failure(request, reason))

    def _run_again_with_room(self, request: PendingRequest, needed: int) -> None:
        """The outputs did not fit: set aside what they need, and run once more."""
        try:
            found = self.grow_output(request, needed)
        except TooLarge as never:
            self.complete(request, never)
            return
        if found:
            self.enqueue(request)
            return
        full = QueueFull(
            f"the answer needs {needed} bytes, and other requests have that room now; try again later",
            retry_after_s=self.load(request.queue).wait_s(0),
        )
        self.complete(request, full)

    def _count(self, request: PendingRequest, sign: int) -> None:
        """Count a request that waits or runs, or count it no longer (-1)."""
        queue, rows = request.queue, request.rows
        assert request.place is not None
        nbytes = len(request.place.inputs)
        queue.held_bytes += sign * nbytes
        small = rows <= queue.small_rows and nbytes <= queue.small_bytes
        if not small and is_large(rows, nbytes, queue.max_batch_size, queue.bounds):
            queue.large += sign
            rows, nbytes = in_line(rows, nbytes, queue.max_batch_size)
        queue.rows += sign * rows
        queue.nbytes += sign * nbytes
        self._changed.add(queue)

    def _show(self) -> None:
        board, me = self.board, self.index
        for queue in self._changed:
            board.queued_rows[me, queue.row] = queue.rows
            board.queued_bytes[me, queue.row] = queue.nbytes
        self._changed.clear()


def _failure(request: PendingRequest, reason: int) -> ServiceError:
    if reason == Reason.EXPIRED:
        return DeadlinePassed.after(None)
    assert request.place is not None
    text = request.place.outputs
    length = int.from_bytes(text[:4], "little")
    return ModelFailed(bytes(text[4 : 4 + length]).decode(errors="replace"))
