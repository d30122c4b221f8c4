"""An instance marks the slots of its tickets as TAKEN, and completes them.

Expired and cancelled requests are dropped here, before they could take a place in a batch; tickets of an API
server's earlier life, of a model that was unloaded, or of an earlier attempt, are void.

No lock: a ticket is in one reader's hands, and a slot whose ticket is there is nobody else's to mark. When an API
server has to know who holds what (engine/recovery.py, ipc/fence.py), it makes old tickets void, and waits until each
instance has been seen outside of mark().

Plain loops over plain tuples: batches are small, and for them numpy's fixed cost per call is the larger.
"""

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from foldserve.service.ipc.model_table import MappedModelTable, ModelState
from foldserve.service.ipc.records import (
    DONE_STRUCT,
    DONES_PER_WRITE,
    EPOCHS,
    GENERATIONS,
    WHOSE_STRUCT,
    Reason,
)
from foldserve.service.ipc.scoreboard import MappedScoreboard
from foldserve.service.ipc.slots import slot_state
from foldserve.service.ipc.slots.arena import HEADER, HEADER_STRUCT, WAITING_AT, WORKER_AT, WORKER_STRUCT
from foldserve.service.ipc.slots.slot_state import State

_HEADER_BYTES: Final = HEADER.itemsize
# As plain numbers: looking up an enum's member would show in what a small request costs.
_QUEUED: Final = int(State.QUEUED)
_TAKEN: Final = int(State.TAKEN)
_FAILED: Final = int(State.FAILED)
_UNLOADING: Final = int(ModelState.UNLOADING)


class Ticket(NamedTuple):
    """A request to be run, as its record in the queue says; see records.TICKET. dims: as pack_dims makes them."""

    slot: int
    attempt: int
    api: int
    epoch: int
    generation: int
    suspect: int
    rows: int
    input_at: int
    output_at: int
    output_bytes: int
    queued_ns: int
    deadline_ns: int
    dims: bytes


@dataclass(frozen=True)
class WorkerMemory:
    """What every instance of a worker shares: the mapped memory, and the pipes of done records.

    incarnation: this worker process's number, never used again; the headers of the slots it takes carry it.
    arenas: the bytes of each API server's arena.
    """

    incarnation: int
    worker: int
    arenas: Sequence[memoryview]
    board: MappedScoreboard
    models: MappedModelTable
    done_fds: Sequence[int]


class Timing(NamedTuple):
    """What each request learns of its batch: rows without padding, CLOCK_MONOTONIC, seconds."""

    batch_rows: int = 0
    taken_ns: int = 0
    gather_s: float = 0.0
    run_s: float = 0.0
    scatter_s: float = 0.0


NO_TIMING: Final = Timing()


class TicketConsumer:
    """The tickets that one instance holds. Used by its thread alone.

    Args:
        model, generation: of the model table.
    """

    def __init__(self, shared: WorkerMemory, model: int, generation: int, instance: int) -> None:
        self._shared = shared
        board = shared.board
        self._busy = board.busy_since_ns
        self._marking = board.marking_since_ns
        self._step = board.step_since_ns
        self._taken = board.taken_ns
        self._place = (shared.worker, instance)
        self._taken_place = (shared.worker, model)
        self._incarnation = WORKER_STRUCT.pack(shared.incarnation)
        self._generation = generation % GENERATIONS
        self._model_state = shared.models.state
        self._row = model
        self._holds = 0

    def __repr__(self) -> str:
        worker, instance = self._place
        row = f"row {self._row}.{self._generation}"
        return f"<TicketConsumer of instance {instance} of worker {worker}, {row}: {self._holds} tickets>"

    def is_unloaded(self) -> bool:
        """Whether the instance is to end: no more tickets will come that are not void."""
        return not self._holds and self._model_state[self._row] == _UNLOADING

    def mark(self, tickets: Sequence[Ticket]) -> list[Ticket]:
        """Mark the slots of these tickets, but for those that are void, expired or cancelled.

        Leaves the instance busy on the scoreboard when any is left.
        """
        place = self._place
        now_ns = time.monotonic_ns()
        taken: list[Ticket] = []
        dropped: list[tuple[Ticket, Reason]] = []
        # Before the first header is read: a process that sees this instance not marking, or since later than an event,
        # and not busy since before it, knows that it holds no ticket whose header it read before that event.
        self._step[place] = now_ns
        self._marking[place] = now_ns
        if not self._holds:
            self._busy[place] = now_ns
        for ticket in tickets:
            if self._mark(ticket, now_ns, dropped):
                taken.append(ticket)
        self._marking[place] = 0
        self._taken[self._taken_place] = now_ns
        self._holds += len(taken)
        for ticket, reason in dropped:
            send_done(self._shared, (ticket,), State.FAILED, NO_TIMING, reason)
        if not self._holds:
            self._busy[place] = 0
        return taken

    def still_wanted(self, tickets: Sequence[Ticket]) -> Sequence[Ticket]:
        """Of tickets marked a while ago, those that have not expired and were not cancelled. The others are dropped, as
        are those of an API server that has died since."""
        now_ns = time.monotonic_ns()
        shared = self._shared
        wanted = []
        for ticket in tickets:
            if ticket.epoch != shared.board.epoch[ticket.api] % EPOCHS:
                self._holds -= 1  # its slot is not ours any more
            elif shared.arenas[ticket.api][ticket.slot * _HEADER_BYTES + 1]:
                self.drop(ticket, Reason.CANCELLED)
            elif ticket.deadline_ns < now_ns:
                self.drop(ticket, Reason.EXPIRED)
            else:
                wanted.append(ticket)
        return wanted

    def drop(self, ticket: Ticket, reason: Reason) -> None:
        """Give a marked ticket back as failed."""
        complete(self._shared, (ticket,), State.FAILED, NO_TIMING, reason)
        self._holds -= 1

    def mark_waiting(self, tickets: Iterable[Ticket], waiting: bool) -> None:
        """Say whether these wait for their batch to begin, or for its outputs to be given out: a crash of the worker
        meanwhile does not count for them."""
        mark_waiting(self._shared, tickets, waiting)

    def completed(self, count: int) -> None:
        """So many of the marked tickets are completed."""
        self._holds -= count

    def begin_step(self) -> None:
        """Begin a step of the work, of which none may take longer than the run limit."""
        self._step[self._place] = time.monotonic_ns()

    def holds_only_present_lives(self, since_ns: int) -> None:
        """All tickets that it holds were seen, after since_ns, to be of their API servers' present lives."""
        self._busy[self._place] = since_ns

    def rest(self) -> None:
        """It waits for tickets: no step is under way, and it is busy only if it holds some."""
        self._step[self._place] = 0
        if not self._holds:
            self._busy[self._place] = 0

    def _mark(self, ticket: Ticket, now_ns: int, dropped: list[tuple[Ticket, Reason]]) -> bool:
        """Mark a ticket's slot as taken by this worker; False when the ticket is void, expired or cancelled."""
        memory = self._shared.arenas[ticket.api]
        header = ticket.slot * _HEADER_BYTES
        state, cancelled, attempt = HEADER_STRUCT.unpack_from(memory, header)
        if (
            state != _QUEUED
            or attempt != ticket.attempt
            or ticket.generation != self._generation
            or ticket.epoch != self._shared.board.epoch[ticket.api] % EPOCHS
        ):
            return False
        # The incarnation before the state: a slot that says TAKEN or FAILED always says by which worker.
        memory[header + WORKER_AT : header + WORKER_AT + 4] = self._incarnation
        if cancelled or ticket.deadline_ns < now_ns:
            # Here, and not later: a slot that says QUEUED while no instance marks is queued again (engine/recovery.py).
            set_state(memory, header, _FAILED)
            dropped.append((ticket, Reason.CANCELLED if cancelled else Reason.EXPIRED))
            return False
        set_state(memory, header, _TAKEN)
        return True


def set_state(memory: memoryview, header: int, state: int) -> None:
    """Move a slot; slot_state.py says which moves are a worker's."""
    if slot_state.checking:
        slot_state.check_move(slot_state.Side.WORKER, memory[header], state)
    memory[header] = state


def mark_waiting(shared: WorkerMemory, tickets: Iterable[Ticket], waiting: bool) -> None:
    """See TicketConsumer.mark_waiting."""
    for ticket in tickets:
        shared.arenas[ticket.api][ticket.slot * _HEADER_BYTES + WAITING_AT] = waiting


def complete(
    shared: WorkerMemory,
    tickets: Sequence[Ticket],
    state: State,
    timing: Timing,
    reason: Reason = Reason.NONE,
    needed_bytes: int = 0,
) -> None:
    """Mark the tickets' slots, then send the done records; a crash between the two is seen from the slots."""
    for ticket in tickets:
        set_state(shared.arenas[ticket.api], ticket.slot * _HEADER_BYTES, state)
    send_done(shared, tickets, state, timing, reason, needed_bytes)


def send_done(
    shared: WorkerMemory,
    tickets: Iterable[Ticket],
    state: State,
    timing: Timing,
    reason: Reason = Reason.NONE,
    needed_bytes: int = 0,
) -> None:
    """Send the done records of tickets whose slots are marked."""
    records: defaultdict[int, list[bytes]] = defaultdict(list)
    # All that the records of a batch share is packed once.
    rest = DONE_STRUCT.pack(0, 0, state, reason, 0, *timing, 0, needed_bytes)[WHOSE_STRUCT.size :]
    for ticket in tickets:
        records[ticket.api].append(WHOSE_STRUCT.pack(ticket.slot, ticket.attempt) + rest)
    for api, theirs in records.items():
        for at in range(0, len(theirs), DONES_PER_WRITE):
            # Waits only where the pipe could not be made as large as its records want (ipc/resources.py).
            os.write(shared.done_fds[api], b"".join(theirs[at : at + DONES_PER_WRITE]))
