"""The API server's half of the transport: queue a request's ticket, hand its answer back, free its place.

Owned by the event loop thread of one API server; nothing here blocks. A request passes reserve() or place() ->
submit() -> its settled() -> release(); cancel() may come at any time in between. States and moves are
lifecycle.py's; what happens when a process dies is recovery.py's.
"""

import asyncio
import os
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from service.admission import Bounds, Load, admit
from service.errors import DeadlinePassed, ModelFailed, QueueFull, ServiceError
from service.lifecycle import State
from service.transport.arena import MappedArena
from service.transport.board import ROW_FRACTION, MappedBoard
from service.transport.layout import Layout
from service.transport.queues import TicketWriter
from service.transport.records import DONE, DONE_STRUCT, TICKET_STRUCT, Reason, pack_dims
from service.transport.slots import Place, SlotPool

_READ_BYTES: Final = DONE.itemsize * 1024
_FIRST_ROOM_FACTOR: Final = 4
"""Room for outputs of unknown shape at first, as a multiple of the inputs' bytes; grown when it is too little."""
_WATCH_S: Final = 0.1
"""How often deadlines are looked at while requests are in flight; nearer ones are timed by themselves."""


@dataclass(frozen=True, eq=False)
class Lane:
    """One model version, as dispatching needs it; `index` is its place in every shared table.

    timeout_s: the longest that a request may take. instances: how many take from its queue, over all workers.
    """

    index: int
    model: str
    version: str
    layout: Layout
    bounds: Bounds
    timeout_s: float
    instances: int


class Ticketed:
    """A request with a place in the arena. Owned by the event loop thread; the fields are the Dispatcher's to set.

    stages_s: seconds of queue, gather, run, scatter.
    """

    __slots__ = (
        "batch_rows",
        "deadline_ns",
        "deaths",
        "dims",
        "given_up",
        "lane",
        "place",
        "queued_ns",
        "rows",
        "stages_s",
    )

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.place: Place | None = None
        self.rows = 0
        self.dims: Sequence[int] = ()
        self.queued_ns = self.deadline_ns = 0
        self.deaths = 0
        self.given_up = False
        self.stages_s = (0.0, 0.0, 0.0, 0.0)
        self.batch_rows = 0

    @property
    @abstractmethod
    def request_id(self) -> str:
        """For logs."""

    @abstractmethod
    def settled(self, error: ServiceError | None) -> None:
        """The request is over. Without an error its outputs stand in its place until the owner release()s it;
        with one the place is no longer the owner's."""


class Dispatcher:
    """Tickets and answers of one API server."""

    def __init__(
        self,
        index: int,
        lanes: Sequence[Lane],
        arena: MappedArena,
        board: MappedBoard,
        writers: Sequence[TicketWriter],
        done_fd: int,
    ) -> None:
        self.index = index
        self.lanes = lanes
        self.arena = arena
        self.board = board
        self.writers = writers
        self.in_flight: dict[int, Ticketed] = {}
        self._epoch = board.epoch[index]
        self._pool = SlotPool(arena)
        self._done_fd = done_fd
        self._outbox = [bytearray() for _ in lanes]
        self._flush_planned = False
        self._watching = False
        self._room: dict[tuple[int, tuple[int, ...]], int] = {}
        self._rows = [0] * len(lanes)
        self._bytes = [0] * len(lanes)
        self._api_servers = range(board.dimensions.api_servers)
        self._workers = range(board.dimensions.workers)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(done_fd, self.receive)

    # -- before the queue

    def ready(self, lane: Lane) -> bool:
        """Whether some worker serves the lane's model."""
        ready, m = self.board.ready, lane.index
        return any(ready[worker, m] for worker in self._workers)

    def load(self, lane: Lane) -> Load:
        """What the lane's queue holds, over all API servers, and how quickly it is served."""
        board, m = self.board, lane.index
        rows, nbytes = self._rows[m], self._bytes[m]
        for api in self._api_servers:
            if api != self.index:
                rows += board.queued_rows[api, m]
                nbytes += board.queued_bytes[api, m]
        batch_ns = batch_rows = measured = 0
        for worker in self._workers:
            if board.batch_rows[worker, m]:
                measured += 1
                batch_rows += board.batch_rows[worker, m]
                batch_ns += board.batch_ns[worker, m]
        if not measured:
            return Load(rows, nbytes, 0.0, 0.0, lane.instances)
        return Load(
            rows, nbytes, batch_ns / measured / 1e9, batch_rows / measured / ROW_FRACTION, lane.instances
        )

    def output_room(self, lane: Lane, rows: int, dims: Sequence[int], input_bytes: int) -> int:
        """Bytes to set aside for the outputs: exact when the signature tells, else what was needed last time."""
        exact = lane.layout.output_room(rows)
        if exact is not None:
            return exact
        per_row = self._room.get((lane.index, tuple(dims)))
        return input_bytes * _FIRST_ROOM_FACTOR if per_row is None else per_row * rows

    def reserve(self, request: Ticketed, input_bytes: int, output_bytes: int) -> memoryview:
        """Give the request a place with this room; return the bytes of its inputs, to be filled.

        Raises: QueueFull when the arena has no slot or no such room left.
        """
        place = self._pool.take(input_bytes, output_bytes)
        if place is None:
            raise QueueFull(
                f"a request of {input_bytes} bytes finds no room: {len(self.in_flight)} requests are in flight and "
                f"{self._pool.used_bytes} of {self.arena.data_bytes} bytes in use; try again later",
                retry_after_s=self.load(request.lane).wait_s(0),
            )
        request.place = place
        return place.inputs

    def put(self, request: Ticketed, inputs: Mapping[str, np.ndarray], rows: int) -> None:
        """Give the request a place that holds these inputs, checked against the signature and C-contiguous.

        Raises: QueueFull.
        """
        layout = request.lane.layout
        arrays = [inputs[spec.name] for spec in layout.signature.inputs]
        dims = layout.dims_of([array.shape for array in arrays]) if layout.dynamic_dims else ()
        nbytes = layout.input_bytes(rows, dims)
        memory = self.reserve(request, nbytes, self.output_room(request.lane, rows, dims, nbytes))
        request.rows, request.dims = rows, dims
        for (offset, _), array in zip(layout.input_places(rows, dims), arrays, strict=True):
            memory[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8).data

    # -- into the queue

    def submit(self, request: Ticketed, deadline_ns: int) -> None:
        """Queue a request whose inputs, rows and dims are in place; its settled() will be called, once.

        Args:
            deadline_ns: CLOCK_MONOTONIC after which no worker begins it and nobody waits for it.
        Raises: QueueFull, DeadlinePassed: it was not queued; the caller releases it.
        """
        place, lane = request.place, request.lane
        assert place is not None
        now_ns = time.monotonic_ns()
        nbytes = len(place.inputs)
        admit(lane.model, request.rows, nbytes, self.load(lane), lane.bounds, (deadline_ns - now_ns) / 1e9)
        request.queued_ns, request.deadline_ns = now_ns, deadline_ns
        self.in_flight[place.slot] = request
        self._count(lane.index, request.rows, nbytes)
        self.enqueue(request)
        if not self._watching:
            self._watching = True
            self._loop.call_later(_WATCH_S, self._watch)
        if deadline_ns - now_ns < 2 * _WATCH_S * 1e9:
            self._loop.call_later((deadline_ns - now_ns) / 1e9, self.expire)

    def enqueue(self, request: Ticketed) -> None:
        """Put a ticket for the request into its queue: its first, or another after a death or an outgrown place."""
        place, dims = request.place, request.dims
        assert place is not None
        place.begin_attempt(request.lane.index, request.rows)
        self._outbox[request.lane.index] += TICKET_STRUCT.pack(
            place.slot,
            place.attempt,
            self.index,
            self._epoch,
            request.rows,
            place.input_at,
            place.output_at,
            len(place.outputs),
            request.queued_ns,
            request.deadline_ns,
            pack_dims(dims),
        )
        if not self._flush_planned:
            # One write per turn of the event loop: all requests that arrived in it travel together.
            self._flush_planned = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send the tickets of this turn of the loop, and show on the board what is queued."""
        self._flush_planned = False
        for lane, tickets in enumerate(self._outbox):
            if tickets:
                self.writers[lane].write(tickets)
                tickets.clear()
        self._show()

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
        for writer in self.writers:
            if writer.overflow:
                writer.flush()
        self._show()

    def settle(self, request: Ticketed, error: ServiceError | None) -> None:
        """The request left the queue: tell its owner, or free its place if nobody waits any more."""
        place = request.place
        assert place is not None
        del self.in_flight[place.slot]
        if request.given_up:
            place.set_given_up(False)
            self.release(request)
            return
        self._count(request.lane.index, -request.rows, -len(place.inputs))
        if error is not None:
            self.release(request)
        request.settled(error)

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
            self._count(request.lane.index, -request.rows, -len(place.inputs))

    def expire(self) -> None:
        """Answer the requests whose deadline has passed."""
        now_ns = time.monotonic_ns()
        for request in [r for r in self.in_flight.values() if r.deadline_ns <= now_ns and not r.given_up]:
            self.cancel(request)
            request.settled(late())

    def release(self, request: Ticketed) -> None:
        """Free the request's place: it never was queued, or is settled, so that no worker can touch it."""
        if request.place is not None:
            self._pool.give(request.place)
            request.place = None

    def outputs(self, request: Ticketed) -> dict[str, np.ndarray]:
        """The request's outputs, as views that are valid until release()."""
        assert request.place is not None
        return request.lane.layout.read_outputs(request.place.outputs, request.rows)

    def _on_record(self, request: Ticketed, record: tuple[Any, ...]) -> None:
        _, _, state, reason, _, batch_rows, taken_ns, gather_s, run_s, scatter_s, _, needed = record
        if state == State.OUTGROWN and not request.given_up:
            self._run_again_with_room(request, needed)
            return
        request.batch_rows = batch_rows
        request.stages_s = (
            (taken_ns - request.queued_ns) / 1e9 if taken_ns else 0.0,
            gather_s,
            run_s,
            scatter_s,
        )
        self.settle(request, None if state == State.DONE else _failure(request, reason))

    def _run_again_with_room(self, request: Ticketed, needed: int) -> None:
        """The outputs did not fit: set aside what they need, remember it for such inputs, run once more."""
        self._room[request.lane.index, tuple(request.dims)] = -(-needed // request.rows)
        assert request.place is not None
        if self._pool.widen(request.place, needed):
            self.enqueue(request)
        else:
            self.settle(
                request, QueueFull(f"the answer needs {needed} bytes and there is no such room; try again")
            )

    def _watch(self) -> None:
        """Look at deadlines while there is something in flight; an idle server has no timer."""
        self.expire()
        self._watching = bool(self.in_flight)
        if self._watching:
            self._loop.call_later(_WATCH_S, self._watch)

    def _count(self, lane: int, rows: int, nbytes: int) -> None:
        self._rows[lane] += rows
        self._bytes[lane] += nbytes

    def _show(self) -> None:
        board, me = self.board, self.index
        for m, rows in enumerate(self._rows):
            board.queued_rows[me, m] = rows
            board.queued_bytes[me, m] = self._bytes[m]


def late() -> DeadlinePassed:
    """The error for a request whose time is over."""
    return DeadlinePassed(
        "the request's time was over before its answer was there; allow more (X-Timeout-Ms), or send less at once"
    )


def _failure(request: Ticketed, reason: int) -> ServiceError:
    if reason == Reason.LATE:
        return late()
    assert request.place is not None
    text = request.place.outputs
    length = int.from_bytes(text[:4], "little")
    return ModelFailed(bytes(text[4 : 4 + length]).decode(errors="replace"))
