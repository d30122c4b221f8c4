"""The API server's half of the transport: queue a request's ticket, hand its answer back, free its place.

Owned by the event loop thread of one API server; nothing here blocks. A request passes reserve() or put() ->
submit() -> its settled() -> release(); cancel() may come at any time in between. States and moves are
ipc/slots/slot_state.py's; what happens when a process dies is recovery.py's.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from foldserve.service.engine.admission import Bounds, Load, admit, in_line, is_large
from foldserve.service.engine.request import Lane, Ticketed
from foldserve.service.engine.room import Rooms
from foldserve.service.engine.watchdog import Watch
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
from foldserve.service.ipc.run_time import UNKNOWN, RunTime, combined
from foldserve.service.ipc.scoreboard import READY, MappedBoard
from foldserve.service.ipc.slots.arena import MappedArena
from foldserve.service.ipc.slots.slot_pool import SlotPool
from foldserve.service.ipc.slots.slot_state import State
from foldserve.service.ipc.ticket_queue import TicketWriter
from foldserve.service.logs.limits import with_id

_READ_BYTES: Final = DONE.itemsize * 1024
_FORECAST_NS: Final = 1_000_000
"""How long a view's forecast is used before it is looked up again: it is made from the quickest batches of seconds."""
_DOUBT_NS: Final = 1_000_000_000
"""How often a request that a forecast is against is let in, to see."""
_SCARCE: Final = 7 / 8
"""From this share of an arena's use on, each model is held to its own share of it."""

# As plain numbers: looking up an enum's member would show in what a small request costs.
_DONE: Final = int(State.DONE)
_OUTGROWN: Final = int(State.OUTGROWN)

_log = logging.getLogger("foldserve.dispatch")


class _View:
    """What the board says of a lane; good for one turn of the event loop.

    rows, nbytes: queued by the other API servers. row_s, full_s: seconds per row in the line, and for a full batch.
    begun: rows that may be about to be answered. small_rows: requests of so many rows at most need no closer look.
    """

    __slots__ = ("begun", "full_s", "nbytes", "ready", "row_s", "rows", "small_rows")

    def __init__(self, ready: bool, load: Load, own_rows: int, own_bytes: int, bounds: Bounds) -> None:
        self.ready = ready
        self.rows, self.nbytes = load.rows - own_rows, load.nbytes - own_bytes
        self.full_s = load.run_time.of(load.max_batch_size) / 1e9
        self.row_s = load.row_s()
        self.begun = load.begun
        most = bounds.max_request_rows
        self.small_rows = load.max_batch_size if most is None else min(load.max_batch_size, most)


class Dispatcher:
    """Tickets and answers of one API server.

    Args:
        done_fd: the reading end of its pipe of done records.
        run_limit_s: how long one run of a model may take.
        hangs: called with the index of a worker whose run takes longer; again and again until it ends.
        stalls: called with the index of a lane whose tickets nobody takes; again and again until somebody does.
    """

    def __init__(
        self,
        index: int,
        lanes: Sequence[Lane],
        arena: MappedArena,
        board: MappedBoard,
        writers: Sequence[TicketWriter],
        done_fd: int,
        run_limit_s: float,
        hangs: Callable[[int], None],
        stalls: Callable[[int], None],
    ) -> None:
        self.index = index
        self.lanes = lanes
        self.arena = arena
        self.board = board
        self.writers = writers
        self.in_flight: dict[int, Ticketed] = {}
        self.make_room: Callable[[int], bool] = lambda nbytes: False
        """Has somebody give back a place that is held for a request that is not whole, or for an answer that is not
        read, because so many bytes are needed; False when nobody has any that must."""
        self.lent_bytes = 0
        """In the places that make_room() would have given back for half-sent bodies."""
        self._epoch = board.epoch[index] % EPOCHS
        self._pool = SlotPool(arena)
        self._rooms = Rooms(self._pool, arena.data_bytes)
        self._done_fd = done_fd
        self._outbox = [bytearray() for _ in lanes]
        self._flush_planned = False
        # A turn of the loop costs nothing for the models that it is not about.
        self._unsent: list[int] = []
        self._viewed: list[int] = []
        self._changed: set[int] = set()
        self._views: list[_View | None] = [None] * len(lanes)
        self._awaiting_room: set[int] = set()
        self._requests = [0] * len(lanes)
        self._rows = [0] * len(lanes)
        self._bytes = [0] * len(lanes)
        self._large = [0] * len(lanes)
        # All of what is there; _rows and _bytes are what stands in the line.
        self._held_bytes = [0] * len(lanes)
        self._doubted_ns = [0] * len(lanes)
        self._forecasts = [UNKNOWN] * len(lanes)
        self._forecast_ns = [0] * len(lanes)
        # Who has no more than these is not large: most need no closer look.
        self._small_rows = [min(lane.max_batch_size, lane.bounds.max_rows // 2) for lane in lanes]
        self._small_bytes = [lane.bounds.max_bytes // 2 for lane in lanes]
        self._api_servers = range(board.dimensions.api_servers)
        self._workers = range(board.dimensions.workers)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(done_fd, self.receive)
        self.watch = Watch(self._loop, self.in_flight, board, run_limit_s, hangs, stalls, self._expire)

    # -- before the queue

    def loaded(self, lane: Lane) -> bool:
        """Whether some worker serves the lane's model at this moment."""
        ready, m = self.board.ready, lane.index
        return any(ready[worker, m] == READY for worker in self._workers)

    def ready(self, lane: Lane) -> bool:
        """Whether requests are taken: some worker serves the lane's model, or died and is being started again."""
        ready, m = self.board.ready, lane.index
        view = self._views[m]
        if view is not None:
            return view.ready
        return any(ready[worker, m] for worker in self._workers)

    def load(self, lane: Lane) -> Load:
        """What the lane's queue holds, over all API servers, and how quickly it is served."""
        return self._load(lane, self._forecast(lane.index, time.monotonic_ns()))

    def _load(self, lane: Lane, run_time: RunTime) -> Load:
        board, m = self.board, lane.index
        rows, nbytes = self._rows[m], self._bytes[m]
        for api in self._api_servers:
            if api != self.index:
                rows += board.queued_rows[api, m]
                nbytes += board.queued_bytes[api, m]
        return Load(rows, nbytes, lane.max_batch_size, lane.instances, run_time, self._large[m] > 0)

    def _forecast(self, m: int, now_ns: int) -> RunTime:
        """What a batch of the lane takes."""
        board = self.board
        of_workers = [
            (RunTime(*board.run_time(worker, m)), board.run_measured_ns[worker, m])
            for worker in self._workers
        ]
        self._forecasts[m], self._forecast_ns[m] = combined(of_workers, now_ns), now_ns
        return self._forecasts[m]

    def output_room(self, lane: Lane, rows: int, dims: Sequence[int], input_bytes: int) -> int:
        """Bytes to set aside for the outputs: exact when the signature tells, else what was needed last time."""
        return self._rooms.of_outputs(lane, rows, dims, input_bytes)

    def reserve(self, request: Ticketed, input_bytes: int, output_bytes: int) -> memoryview:
        """Give the request a place with this room; return the bytes of its inputs, to be filled.

        Raises: TooLarge when there would be no such room if nobody else were there; QueueFull when the arena has no
            slot or no such room left.
        """
        modest = not self._over_its_share(request.lane)
        place = self._pool.take(input_bytes, output_bytes) if modest else None
        if place is None:
            self.check_fits(
                request, input_bytes, output_bytes
            )  # before others give up their places for nothing
            while modest and place is None and self.make_room(input_bytes + output_bytes):
                place = self._pool.take(input_bytes, output_bytes)
        if place is None:
            raise QueueFull(
                f"a request of {input_bytes} bytes finds no room: {len(self.in_flight)} requests are in flight and "
                f"{self._pool.used_bytes} of {self.arena.data_bytes} bytes in use; try again later",
                retry_after_s=self.load(request.lane).wait_s(0),
            )
        request.place = place
        return place.inputs

    def check_fits(self, request: Ticketed, input_bytes: int, output_bytes: int) -> None:
        """Raise TooLarge unless an empty arena has such room: who can never be served is not told to try again."""
        self._rooms.check(request, input_bytes, output_bytes)

    def lend(self, request: Ticketed, input_bytes: int, output_bytes: int) -> bool:
        """Give the request a place with this room for as long as nobody else needs it; False when there is none.

        Who lends it counts it in lent_bytes, and frees it when make_room() is called.
        """
        request.place = self._pool.take(input_bytes, output_bytes)
        return request.place is not None

    def _over_its_share(self, lane: Lane) -> bool:
        """Whether the arena is scarce and this model has its part of it: one busy model must not shut out another."""
        m, lanes = lane.index, len(self.lanes)
        if lanes == 1:
            return False
        arena = self.arena
        slots = len(arena.state)
        return (len(self.in_flight) > slots * _SCARCE and self._requests[m] * lanes > slots) or (
            self._pool.lent_bytes - self.lent_bytes > arena.data_bytes * _SCARCE
            and self._held_bytes[m] * lanes > arena.data_bytes
        )

    def put(self, request: Ticketed, inputs: Mapping[str, np.ndarray], rows: int) -> None:
        """Give the request a place that holds these inputs, checked against the signature and C-contiguous.

        Raises: QueueFull.
        """
        layout = request.lane.layout
        arrays = [inputs[spec.name] for spec in layout.signature.inputs]
        dims = layout.dims_of([array.shape for array in arrays]) if layout.dynamic_dims else ()
        nbytes = layout.input_bytes(rows, dims)
        request.rows, request.dims = rows, dims
        memory = self.reserve(request, nbytes, self.output_room(request.lane, rows, dims, nbytes))
        for (offset, _), array in zip(layout.input_places(rows, dims), arrays, strict=True):
            memory[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8).data

    # -- into the queue

    def submit(self, request: Ticketed, now_ns: int, deadline_ns: int) -> None:
        """Queue a request whose inputs, rows and dims are in place; its settled() will be called, once.

        Args:
            now_ns: CLOCK_MONOTONIC, from when on it counts as queued.
            deadline_ns: the time after which no worker begins it and nobody waits for it.
        Raises: QueueFull, DeadlinePassed: it was not queued; the caller releases it.
        """
        place, lane = request.place, request.lane
        assert place is not None
        m, rows, nbytes, bounds = lane.index, request.rows, len(place.inputs), lane.bounds
        view = self._views[m] or self._view(lane)
        budget_s = (deadline_ns - now_ns) / 1e9
        # What admit() asks, in the few operations that nearly every request gets by with.
        waiting = self._rows[m] + view.rows + rows
        if (
            rows > view.small_rows
            or waiting > bounds.max_rows
            or self._bytes[m] + view.nbytes + nbytes > bounds.max_bytes
            or (waiting - view.begun) * view.row_s >= budget_s
            or view.full_s >= budget_s
        ):
            doubt = now_ns - self._doubted_ns[m] >= _DOUBT_NS
            if admit(lane.model, rows, nbytes, self.load(lane), bounds, budget_s, doubt):
                self._doubted_ns[m] = now_ns
        request.queued_ns, request.deadline_ns = now_ns, deadline_ns
        self.in_flight[place.slot] = request
        self._requests[m] += 1
        self._count(request, 1)
        self.enqueue(request)
        if deadline_ns < self.watch.next_ns:
            self.watch.by(deadline_ns, now_ns)

    def _view(self, lane: Lane) -> _View:
        """The lane's view; kept when the end of this turn, which forgets it, is planned."""
        m, now_ns = lane.index, time.monotonic_ns()
        forecast = self._forecasts[m]
        if now_ns - self._forecast_ns[m] >= _FORECAST_NS:
            forecast = self._forecast(m, now_ns)
        load = self._load(lane, forecast)
        view = _View(self.ready(lane), load, self._rows[m], self._bytes[m], lane.bounds)
        if self._flush_planned:
            self._views[m] = view
            self._viewed.append(m)
        return view

    def enqueue(self, request: Ticketed) -> None:
        """Put a ticket for the request into its queue: its first, or another after a death or an outgrown place."""
        place, dims, m = request.place, request.dims, request.lane.index
        assert place is not None
        place.begin_attempt(m, request.rows)
        outbox = self._outbox[m]
        if not outbox:
            self._unsent.append(m)
        outbox += TICKET_STRUCT.pack(
            place.slot,
            place.attempt,
            self.index,
            self._epoch,
            request.deaths > 0,
            request.rows,
            place.input_at,
            place.output_at,
            len(place.outputs),
            request.queued_ns,
            request.deadline_ns,
            pack_dims(dims),
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
        for lane in self._viewed:
            self._views[lane] = None
        self._viewed.clear()
        for lane in self._unsent:
            self.writers[lane].write(self._outbox[lane])
            self._outbox[lane].clear()
            if self.writers[lane].overflow:
                self._await_room(lane)
        self._unsent.clear()
        self._show()

    def drop_unsent(self) -> None:
        """Forget the tickets that have not reached their pipes; the requests stay queued, for recovery.py."""
        for lane in self._unsent:
            self._outbox[lane].clear()
        self._unsent.clear()
        for lane in tuple(self._awaiting_room):
            self.writers[lane].drop()
            self._await_room(lane)

    def _await_room(self, lane: int) -> None:
        """The pipe is full: go on as soon as it is not."""
        writer = self.writers[lane]
        writer.flush()
        if writer.overflow and lane not in self._awaiting_room:
            self._awaiting_room.add(lane)
            self._loop.add_writer(writer.fd, self._await_room, lane)
        elif not writer.overflow and lane in self._awaiting_room:
            self._awaiting_room.remove(lane)
            self._loop.remove_writer(writer.fd)

    # -- out of the queue

    def receive(self) -> None:
        """Take every done record that waits and settle its request."""
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

    def settle(self, request: Ticketed, error: ServiceError | None) -> None:
        """The request left the queue: tell its owner, or free its place if nobody waits any more."""
        place = request.place
        assert place is not None
        del self.in_flight[place.slot]
        self._requests[request.lane.index] -= 1
        if request.given_up:
            place.set_given_up(False)
            self.release(request)
            return
        self._count(request, -1)
        if error is not None:
            self.release(request)
        try:
            request.settled(error)
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
                    request.settled(Internal(told))

    def cancel(self, request: Ticketed) -> None:
        """Nobody waits for the answer any more: its rows count no longer, its place follows when no worker can
        touch it."""
        place = request.place
        if place is None:
            return
        if place.slot not in self.in_flight:
            self.release(request)
        elif not request.given_up:
            request.given_up = True
            place.set_given_up(True)
            self._count(request, -1)
            self._plan_flush()  # the board tells others of the room

    def _expire(self, request: Ticketed) -> None:
        """Answer a request whose deadline has passed."""
        self.cancel(request)
        try:
            request.settled(DeadlinePassed.after(None))
        except Exception:
            _log.exception("request %s could not be answered", request.request_id)

    def release(self, request: Ticketed) -> None:
        """Free the request's place: it never was queued, or is settled, so that no worker can touch it."""
        if request.place is not None:
            self._pool.give(request.place)
            request.place = None

    def outputs(self, request: Ticketed) -> dict[str, np.ndarray]:
        """The request's outputs, as views that are valid until release()."""
        place, layout, rows = request.place, request.lane.layout, request.rows
        assert place is not None
        kept = place.views
        if kept is not None and kept[0] is layout and kept[1] == rows:
            return kept[2]
        outputs = layout.read_outputs(place.outputs, rows)
        if layout.fixed_outputs:
            # The place comes back for the next request of these sizes, and its outputs lie where they did.
            place.views = (layout, rows, outputs)
        return outputs

    def _on_record(self, request: Ticketed, record: tuple[Any, ...]) -> None:
        if request.given_up:
            self.settle(request, None)
            return
        _, _, state, reason, _, batch_rows, taken_ns, gather_s, run_s, scatter_s, _, needed = record
        if state == _OUTGROWN:
            self._run_again_with_room(request, needed)
            return
        request.batch_rows = batch_rows
        request.stages_s = (
            (taken_ns - request.queued_ns) / 1e9 if taken_ns else 0.0,
            gather_s,
            run_s,
            scatter_s,
        )
        self.settle(request, None if state == _DONE else _failure(request, reason))

    def _run_again_with_room(self, request: Ticketed, needed: int) -> None:
        """The outputs did not fit: set aside what they need, remember it for such inputs, run once more."""
        place = request.place
        assert place is not None
        try:
            self.check_fits(request, len(place.inputs), needed)
        except TooLarge as never:
            # Not remembered: the next request of such inputs may have a smaller answer, and nobody would find out.
            self.settle(request, never)
            return
        self._rooms.remember(request, needed)
        found = self._pool.widen(place, needed)
        while not found and self.make_room(needed):
            found = self._pool.widen(place, needed)
        if found:
            self.enqueue(request)
            return
        full = QueueFull(
            f"the answer needs {needed} bytes, and other requests have that room now; try again later",
            retry_after_s=self.load(request.lane).wait_s(0),
        )
        self.settle(request, full)

    def _count(self, request: Ticketed, sign: int) -> None:
        """Count a request that waits or runs, or count it no longer (-1)."""
        lane, rows = request.lane, request.rows
        assert request.place is not None
        m, nbytes = lane.index, len(request.place.inputs)
        self._held_bytes[m] += sign * nbytes
        small = rows <= self._small_rows[m] and nbytes <= self._small_bytes[m]
        if not small and is_large(rows, nbytes, lane.max_batch_size, lane.bounds):
            self._large[m] += sign
            rows, nbytes = in_line(rows, nbytes, lane.max_batch_size)
        self._rows[m] += sign * rows
        self._bytes[m] += sign * nbytes
        self._changed.add(m)

    def _show(self) -> None:
        board, me = self.board, self.index
        for m in self._changed:
            board.queued_rows[me, m] = self._rows[m]
            board.queued_bytes[me, m] = self._bytes[m]
        self._changed.clear()


def _failure(request: Ticketed, reason: int) -> ServiceError:
    if reason == Reason.LATE:
        return DeadlinePassed.after(None)
    assert request.place is not None
    text = request.place.outputs
    length = int.from_bytes(text[:4], "little")
    return ModelFailed(bytes(text[4 : 4 + length]).decode(errors="replace"))
