"""Which tickets become an instance's own: read under the queue's lock and marked before it is let go.

Late and given-up requests are dropped here, before they could take a place in a batch; tickets of an API
server's earlier life, or of an earlier attempt, are void.

Plain loops over plain tuples: batches are small, and for them numpy's fixed cost per call is the larger.
"""

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from service.lifecycle import State
from service.transport.arena import HEADER, HEADER_STRUCT, HELD_AT, WORKER_AT, WORKER_STRUCT
from service.transport.board import MappedBoard
from service.transport.queues import TicketReader
from service.transport.records import (
    DONE_STRUCT,
    DONES_PER_WRITE,
    EPOCHS,
    TICKET_STRUCT,
    WHOSE_STRUCT,
    Reason,
)

_HEADER_BYTES: Final = HEADER.itemsize
# As plain numbers: looking up an enum's member would show in what a small request costs.
_QUEUED: Final = int(State.QUEUED)
_TAKEN: Final = int(State.TAKEN)


class Ticket(NamedTuple):
    """A request to be run, as its record in the queue says; see records.TICKET. dims: as pack_dims makes them."""

    slot: int
    attempt: int
    api: int
    epoch: int
    suspect: int
    rows: int
    input_at: int
    output_at: int
    output_bytes: int
    queued_ns: int
    deadline_ns: int
    dims: bytes


@dataclass(frozen=True)
class Shared:
    """What every instance of a worker shares: the mapped memory and the way back. Read-only but for the memory.

    serial: this worker process's number, never used again; the headers of the slots it takes carry it.
    arenas: the bytes of each API server's arena.
    """

    serial: int
    worker: int
    arenas: Sequence[memoryview]
    board: MappedBoard
    done_fds: Sequence[int]


class Timing(NamedTuple):
    """What a batch tells each of its requests: rows without padding, CLOCK_MONOTONIC, seconds."""

    batch_rows: int = 0
    taken_ns: int = 0
    gather_s: float = 0.0
    run_s: float = 0.0
    scatter_s: float = 0.0


NO_TIMING: Final = Timing()


class Taker:
    """One instance's way of taking from its model's queue. Used by its thread alone."""

    def __init__(self, reader: TicketReader, shared: Shared, instance: int) -> None:
        self.reader = reader
        self._shared = shared
        self._busy = shared.board.busy_since_ns
        self._step_since = shared.board.step_since_ns
        self._place = (shared.worker, instance)
        self._serial = WORKER_STRUCT.pack(shared.serial)
        self._rows_per_ticket = 1.0

    def take(self, rows: int, *, holding: bool = False) -> list[Ticket]:
        """Take tickets until they hold `rows` rows or none waits; may go over by the last read's tickets.

        Leaves the instance marked busy on the board when it took any. `holding`: it holds tickets of an earlier
        call, so that it has been busy since then.
        """
        taken: list[Ticket] = []
        dropped: list[tuple[Ticket, Reason]] = []
        missing = rows
        with self.reader.lock:
            # Set under the lock: whoever sees this instance idle, or busy since later than some event, knows that
            # it holds no ticket read before that event.
            now_ns = time.monotonic_ns()
            if not holding:
                self._busy[self._place] = now_ns
            self._step_since[self._place] = now_ns  # stopped here, it would stop every other worker too
            while missing > 0:
                wanted = max(1, int(missing / self._rows_per_ticket))
                data = self.reader.read(wanted)
                for ticket in map(Ticket._make, TICKET_STRUCT.iter_unpack(data)):
                    if self._mark(ticket, now_ns, dropped):
                        taken.append(ticket)
                        missing -= ticket.rows
                if len(data) < wanted * TICKET_STRUCT.size:
                    break
            self._step_since[self._place] = 0
        for ticket, reason in dropped:
            tell(self._shared, (ticket,), State.FAILED, NO_TIMING, reason)
        if taken:
            self._rows_per_ticket += ((rows - missing) / len(taken) - self._rows_per_ticket) / 8
        elif not holding:
            self.idle()
        return taken

    def still_wanted(self, tickets: Sequence[Ticket]) -> Sequence[Ticket]:
        """Those taken a while ago whose deadline has not passed and for whose answer somebody still waits; the others
        are dropped."""
        now_ns = time.monotonic_ns()
        wanted = []
        for ticket in tickets:
            if self._shared.arenas[ticket.api][ticket.slot * _HEADER_BYTES + 1]:
                settle(self._shared, (ticket,), State.FAILED, NO_TIMING, Reason.GIVEN_UP)
            elif ticket.deadline_ns < now_ns:
                settle(self._shared, (ticket,), State.FAILED, NO_TIMING, Reason.LATE)
            else:
                wanted.append(ticket)
        return wanted

    def hold(self, tickets: Iterable[Ticket], held: bool) -> None:
        """Say whether these wait for their batch to begin: if the worker dies until then, they had no part in it."""
        hold(self._shared, tickets, held)

    def idle(self) -> None:
        """This instance holds no ticket any more."""
        self._busy[self._place] = 0

    def _mark(self, ticket: Ticket, now_ns: int, dropped: list[tuple[Ticket, Reason]]) -> bool:
        """Mark a ticket's slot as taken by this worker; False when the ticket is void, late or given up."""
        memory = self._shared.arenas[ticket.api]
        header = ticket.slot * _HEADER_BYTES
        state, given_up, attempt = HEADER_STRUCT.unpack_from(memory, header)
        if (
            state != _QUEUED
            or attempt != ticket.attempt
            or ticket.epoch != self._shared.board.epoch[ticket.api] % EPOCHS
        ):
            return False
        # The name before the state: a slot that says TAKEN or FAILED always says by whom.
        memory[header + WORKER_AT : header + WORKER_AT + 4] = self._serial
        if given_up or ticket.deadline_ns < now_ns:
            # Under the lock too: a slot that says QUEUED outside the lock and has no ticket would be queued again.
            memory[header] = State.FAILED
            dropped.append((ticket, Reason.GIVEN_UP if given_up else Reason.LATE))
            return False
        memory[header] = _TAKEN
        return True


def hold(shared: Shared, tickets: Iterable[Ticket], held: bool) -> None:
    """See Taker.hold."""
    for ticket in tickets:
        shared.arenas[ticket.api][ticket.slot * _HEADER_BYTES + HELD_AT] = held


def settle(
    shared: Shared,
    tickets: Sequence[Ticket],
    state: State,
    timing: Timing,
    reason: Reason = Reason.NONE,
    needed_bytes: int = 0,
) -> None:
    """Mark the tickets' slots, then tell their API servers; a death between the two is seen from the slots."""
    for ticket in tickets:
        shared.arenas[ticket.api][ticket.slot * _HEADER_BYTES] = state
    tell(shared, tickets, state, timing, reason, needed_bytes)


def tell(
    shared: Shared,
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
            # Hardly ever waits: the pipe has room for a record of every slot of the arena.
            os.write(shared.done_fds[api], b"".join(theirs[at : at + DONES_PER_WRITE]))
