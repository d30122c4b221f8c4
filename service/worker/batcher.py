"""Forms the next batch of one instance: reads tickets, keeps the batch window, picks the tickets that run together.

An instance takes what makes its next batch and no more: other tickets that it has read are passed on with the turn, in
their order, to whichever instance is free first. Rows are counted, not requests; requests whose dynamic dims differ are
never in one batch; the oldest request always is, so that none waits for ever.

Where the model has priority levels, a batch is filled in their order, and begins with the oldest request of the first
that waits; ageing.py says when with another's. The last level is bulk: its requests get the rows that a batch of the
others would be padded with, and make batches of their own only where nothing else waits. So nothing takes longer for
them but what is begun while they run.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from foldserve.service.ipc.records import TICKET_STRUCT, TICKETS_PER_TURN
from foldserve.service.ipc.ticket_queue import TicketReader
from foldserve.service.metrics.catalog import BatchReason
from foldserve.service.worker.ageing import Ageing
from foldserve.service.worker.ticket_consumer import Ticket, TicketConsumer
from foldserve.service.worker.turn import Turn, pack_waiting, unpack_waiting


class Batch(NamedTuple):
    """Tickets that run together, marked as this instance's.

    A request of more rows than a batch may have, and one that is suspected of killing workers, is alone. level: with
    whose oldest request it began.
    """

    tickets: Sequence[Ticket]
    taken_ns: int
    reason: BatchReason
    level: int = 0


class Batcher:
    """Forms the batches of one instance. Used by its thread alone.

    Args:
        window_ns: the batch window, max_queue_delay_ms: how long the first request of a batch may wait for others.
        run_ns: how long a run of so many rows takes: a window closes so early that no deadline passes for it.
        bucket: the batch size that so many rows are run at.
        levels: priority levels of the model. age_ns: see Ageing.
    """

    def __init__(
        self,
        reader: TicketReader,
        turn: Turn,
        consumer: TicketConsumer,
        window_ns: int,
        run_ns: Callable[[int], int],
        bucket: Callable[[int], int],
        levels: int = 1,
        age_ns: int = 0,
    ) -> None:
        self._reader = reader
        self._turn = turn
        self._consumer = consumer
        self._window_ns = window_ns
        self._run_ns = run_ns
        self._bucket = bucket
        self._bulk = levels - 1
        """The level that is; 0 for none."""
        self._ordinary = max(1, levels - 1)
        """How many levels are not bulk."""
        self._ageing = Ageing(levels, age_ns)
        self._room = TICKETS_PER_TURN // levels
        """Tickets of a level that may be in hand: others must find room in the turn, however many of one wait."""
        self._rows_per_ticket = [1.0] * levels

    @property
    def waits(self) -> bool:
        """Whether it has a window in which the first request of a batch waits for others."""
        return self._window_ns > 0

    def next(self, most: int, wait: bool) -> Batch | None:
        """The next batch, of `most` rows at most.

        Args:
            wait: for the turn, for a ticket and for the window; otherwise only what is there is taken.
        Returns: None when there is none.
        """
        carried = self._turn.acquire(wait)
        if carried is None:
            return None
        waiting = unpack_waiting(carried, self._bulk + 1)
        if wait and not carried and self._turn.may_read:
            if self._consumer.is_unloaded():
                self._turn.pass_on(b"")  # the next instance has to see it too
                return None
            self._reader.wait()
        batch: list[Ticket] = []
        level = self._begin(batch, waiting, most)
        reason: BatchReason = "drained"
        taken_ns = 0
        if batch:
            taken_ns = time.monotonic_ns()
            if wait and self._window_ns and self._turn.may_read:
                reason = "waited"
                self._wait_for_more(batch, waiting, level, most)
            if self._bulk:
                self._fill_padding(batch, waiting, most)
        self._turn.pass_on(pack_waiting(waiting))
        return Batch(batch, taken_ns, reason, level) if batch else None

    def _begin(self, batch: list[Ticket], waiting: list[list[Ticket]], most: int) -> int:
        """Put into an empty batch what waits. Returns: the level with whose oldest request it begins."""
        first = self._due(waiting) if self._bulk else 0
        if first:
            self._fill(batch, waiting, first, most)
        if not batch:
            first = -1
        for level in range(self._ordinary):
            self._fill(batch, waiting, level, most)
            if batch and first < 0:
                first = level
        if not batch and self._bulk:
            self._fill(batch, waiting, self._bulk, most)
        return first if first >= 0 else self._bulk

    def _fill_padding(self, batch: list[Ticket], waiting: list[list[Ticket]], most: int) -> None:
        """Give bulk the rows that the batch would be padded with."""
        rows = _rows(batch)
        size = min(self._bucket(rows), most)
        if batch and rows < size:
            self._fill(batch, waiting, self._bulk, size)

    def _due(self, waiting: list[list[Ticket]]) -> int:
        """The level whose time has come; 0 for none."""
        now_ns = time.monotonic_ns()
        queued_ns = [-1] * len(waiting)
        for level in range(1, len(waiting)):
            if self._ageing.may_be_due(level, now_ns):
                if not waiting[level]:
                    self._read(waiting, level, 1)
                if waiting[level]:
                    queued_ns[level] = waiting[level][0].queued_ns
        return self._ageing.due(queued_ns, now_ns)

    def _fill(self, batch: list[Ticket], waiting: list[list[Ticket]], level: int, most: int) -> None:
        """Add to the batch what goes with it of a level: first of the tickets in hand, then of those in the pipe. Those
        that are left stay in hand, in their order."""
        before, rows = len(batch), _rows(batch)
        rows_before = rows
        while True:
            if waiting[level]:
                oldest = waiting[level][0]
                chosen, waiting[level] = choose(batch, rows, waiting[level], most)
                if chosen:
                    marked = self._consumer.mark(chosen)
                    batch += marked
                    rows += _rows(marked)
                    if level and marked and (not before or marked[0] is oldest):
                        self._ageing.took_oldest(level, time.monotonic_ns())
                    if not batch:
                        continue  # all were void: what is left may go together
            room = self._room - len(waiting[level])
            if rows >= most or room <= 0 or (batch and batch[0].suspect):
                break
            wanted = min(max(1, int((most - rows) / self._rows_per_ticket[level])), room)
            if not self._read(waiting, level, wanted):
                break
        added = len(batch) - before
        if added:
            average = self._rows_per_ticket[level]
            self._rows_per_ticket[level] = average + ((rows - rows_before) / added - average) / 8

    def _read(self, waiting: list[list[Ticket]], level: int, at_most: int) -> bool:
        """Take tickets of a level into the hand. Returns: whether there were any."""
        data = self._reader.read(at_most, level) if self._turn.may_read else b""
        if data:
            waiting[level] += map(Ticket._make, TICKET_STRUCT.iter_unpack(data))
        return bool(data)

    def _wait_for_more(self, batch: list[Ticket], waiting: list[list[Ticket]], first: int, most: int) -> None:
        """Keep the batch open until the window of its first request has passed, or a request of a higher level than it
        began with does not fit: that must wait for nothing."""
        lowest = max(first, self._ordinary - 1)
        while _rows(batch) < most and not batch[0].suspect:
            if any(len(tickets) >= self._room for tickets in waiting[: lowest + 1]) or any(waiting[:first]):
                break
            # A deadline closes the window early enough for a run: no request expires because it waits for others.
            until_ns = min(
                min(ticket.queued_ns for ticket in batch) + self._window_ns,
                min(ticket.deadline_ns for ticket in batch) - 2 * self._run_ns(_rows(batch)),
            )
            left_ns = until_ns - time.monotonic_ns()
            if left_ns <= 0:
                break
            self._consumer.rest()
            self._reader.wait_ns(left_ns, lowest)
            for level in range(lowest + 1):
                self._fill(batch, waiting, level, most)
        batch[:] = self._consumer.still_wanted(batch)


def choose(
    batch: Sequence[Ticket], rows: int, waiting: Sequence[Ticket], most: int
) -> tuple[list[Ticket], list[Ticket]]:
    """Which of the waiting tickets go with a batch of `rows` rows; the first one does where the batch is empty.

    Returns: those, and the others, each in their order.
    """
    chosen: list[Ticket] = []
    left: list[Ticket] = []
    first = batch[0] if batch else None
    for ticket in waiting:
        if first is None:
            first = ticket
        elif rows + ticket.rows > most or ticket.dims != first.dims or ticket.suspect or first.suspect:
            left.append(ticket)
            continue
        chosen.append(ticket)
        rows += ticket.rows
    return chosen, left


def _rows(tickets: Sequence[Ticket]) -> int:
    rows = 0
    for ticket in tickets:
        rows += ticket.rows
    return rows
