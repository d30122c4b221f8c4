"""Forms the next batch of one instance: reads tickets, keeps the batch window, picks the tickets that run together.

An instance takes what makes its next batch and no more: other tickets that it has read are passed on with the turn, in
their order, to whichever instance is free first. Rows are counted, not requests; requests whose dynamic dims differ are
never in one batch; the oldest request always is, so that none waits for ever.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from foldserve.service.ipc.records import TICKET_STRUCT, TICKETS_PER_TURN
from foldserve.service.ipc.ticket_queue import TicketReader
from foldserve.service.metrics.catalog import BatchReason
from foldserve.service.worker.ticket_consumer import Ticket, TicketConsumer
from foldserve.service.worker.turn import Turn


class Batch(NamedTuple):
    """Tickets that run together, marked as this instance's.

    A request of more rows than a batch may have, and one that is suspected of killing workers, is alone.
    """

    tickets: Sequence[Ticket]
    taken_ns: int
    reason: BatchReason


class Batcher:
    """Forms the batches of one instance. Used by its thread alone.

    Args:
        window_ns: the batch window, max_queue_delay_ms: how long the first request of a batch may wait for others.
        run_ns: how long a run of so many rows takes: a window closes so early that no deadline passes for it.
    """

    def __init__(
        self,
        reader: TicketReader,
        turn: Turn,
        consumer: TicketConsumer,
        window_ns: int,
        run_ns: Callable[[int], int],
    ) -> None:
        self._reader = reader
        self._turn = turn
        self._consumer = consumer
        self._window_ns = window_ns
        self._run_ns = run_ns
        self._rows_per_ticket = 1.0

    def next(self, most: int, wait: bool) -> Batch | None:
        """The next batch, of `most` rows at most.

        Args:
            wait: for the turn, for a ticket and for the window; otherwise only what is there is taken.
        Returns: None when there is none.
        """
        carried = self._turn.acquire(wait)
        if carried is None:
            return None
        waiting: list[Ticket] = list(map(Ticket._make, TICKET_STRUCT.iter_unpack(carried))) if carried else []
        if wait and not waiting and self._turn.may_read:
            if self._consumer.is_unloaded():
                self._turn.pass_on(b"")  # the next instance has to see it too
                return None
            self._reader.wait()
        batch, waiting = self._fill([], waiting, most)
        reason: BatchReason = "drained"
        taken_ns = 0
        if batch:
            taken_ns = time.monotonic_ns()
            if wait and self._window_ns and self._turn.may_read:
                reason = "waited"
                batch, waiting = self._wait_for_more(batch, waiting, most)
        self._turn.pass_on(b"".join([TICKET_STRUCT.pack(*ticket) for ticket in waiting]) if waiting else b"")
        return Batch(batch, taken_ns, reason) if batch else None

    def _fill(
        self, batch: list[Ticket], waiting: list[Ticket], most: int
    ) -> tuple[list[Ticket], list[Ticket]]:
        """Add to the batch what goes with it, first of the tickets in hand, then of those in the pipe.

        Returns: the batch, and the tickets in hand that are left, in their order.
        """
        rows = _rows(batch)
        while True:
            if waiting:
                chosen, waiting = choose(batch, rows, waiting, most)
                if chosen:
                    marked = self._consumer.mark(chosen)
                    batch += marked
                    rows += _rows(marked)
                    if not batch:
                        continue  # all were void: what is left may go together
            room = TICKETS_PER_TURN - len(waiting)
            if rows >= most or room <= 0 or not self._turn.may_read or (batch and batch[0].suspect):
                break
            wanted = min(max(1, int((most - rows) / self._rows_per_ticket)), room)
            data = self._reader.read(wanted)
            if not data:
                break
            waiting += map(Ticket._make, TICKET_STRUCT.iter_unpack(data))
        if batch:
            self._rows_per_ticket += (rows / len(batch) - self._rows_per_ticket) / 8
        return batch, waiting

    def _wait_for_more(
        self, batch: list[Ticket], waiting: list[Ticket], most: int
    ) -> tuple[list[Ticket], list[Ticket]]:
        """Keep the batch open until the window of its first request has passed."""
        while _rows(batch) < most and len(waiting) < TICKETS_PER_TURN and not batch[0].suspect:
            # A deadline closes the window early enough for a run: no request expires because it waits for others.
            until_ns = min(
                min(ticket.queued_ns for ticket in batch) + self._window_ns,
                min(ticket.deadline_ns for ticket in batch) - 2 * self._run_ns(_rows(batch)),
            )
            left_ns = until_ns - time.monotonic_ns()
            if left_ns <= 0:
                break
            self._consumer.rest()
            self._reader.wait_ns(left_ns)
            batch, waiting = self._fill(batch, waiting, most)
        return list(self._consumer.still_wanted(batch)), waiting


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
