"""The life of one instance: wait for tickets, form batches, run them. One thread each; ends with its process.

A free instance takes what waits (window 0). With a window, it waits for more until the first request of the
batch has waited max_queue_delay_ms. Rows are counted, not requests; requests whose dynamic dims differ never
meet in one batch.
"""

import time
from collections.abc import Iterator, Sequence

from service.metrics import BatchReason, Metrics
from service.transport.board import ROW_FRACTION, MappedBoard
from service.worker.run import BatchRunner
from service.worker.take import Taker, Ticket


class Averages:
    """Moving averages of a model's batches on the board, for forecasts. One writer: this worker's instances."""

    def __init__(self, board: MappedBoard, worker: int, model: int) -> None:
        self._ns = board.batch_ns
        self._rows = board.batch_rows
        self._place = (worker, model)

    @property
    def batch_ns(self) -> int:
        """What a batch takes."""
        return self._ns[self._place]

    def add(self, batch_s: float, rows: int) -> None:
        """Count one batch, with a weight of an eighth."""
        place = self._place
        batch_ns, before = int(batch_s * 1e9), self._rows[place]
        if before:
            self._ns[place] += (batch_ns - self._ns[place]) // 8
            # In 256ths, for an average of small whole numbers to move at all.
            self._rows[place] += (rows * ROW_FRACTION - before) // 8
        else:
            self._ns[place], self._rows[place] = batch_ns, rows * ROW_FRACTION


class InstanceLoop:
    """One instance of one model version. window_s: how long the first request of a batch may wait for others."""

    def __init__(
        self,
        model: tuple[str, str],
        taker: Taker,
        runner: BatchRunner,
        window_s: float,
        averages: Averages,
        metrics: Metrics,
    ) -> None:
        self._model = model
        self._taker = taker
        self._runner = runner
        self._window_ns = int(window_s * 1e9)
        self._averages = averages
        self._metrics = metrics

    def run_forever(self) -> None:
        """Serve until the process ends."""
        while True:
            self._taker.reader.wait()
            self.turn()

    def turn(self) -> None:
        """Take what waits, and run all of it that is still wanted when its batch begins."""
        most = self._runner.max_batch_size
        taken = self._taker.take(most)
        if not taken:
            return
        taken_ns = time.monotonic_ns()
        reason: BatchReason = "drained"
        if self._window_ns:
            reason = "waited"
            while (rows := sum(ticket.rows for ticket in taken)) < most:
                # A deadline closes the window early enough for a run: nobody is made late by waiting for others.
                until_ns = min(
                    min(ticket.queued_ns for ticket in taken) + self._window_ns,
                    min(ticket.deadline_ns for ticket in taken) - 2 * self._averages.batch_ns,
                )
                left_ns = until_ns - time.monotonic_ns()
                if left_ns <= 0:
                    break
                if self._taker.reader.wait(left_ns / 1e9):
                    taken += self._taker.take(most - rows, holding=True)
            taken = list(self._taker.still_wanted(taken))
        pending = list(batches(taken, most)) if taken else []
        for batch in pending[1:]:
            self._taker.hold(batch, True)
        for i, batch in enumerate(pending):
            if i:
                self._taker.hold(batch, False)
                batch = self._taker.still_wanted(batch)
            if batch:
                self._run(batch, taken_ns, reason)
        self._taker.idle()

    def _run(self, batch: Sequence[Ticket], taken_ns: int, reason: BatchReason) -> None:
        began = time.monotonic()
        self._runner.run(batch, taken_ns)
        most = self._runner.max_batch_size
        rows = sum(ticket.rows for ticket in batch)
        self._averages.add(time.monotonic() - began, rows)
        padding = self._runner.padding(rows)
        self._metrics.batch_finished(*self._model, rows, padding, "full" if rows >= most else reason)


def batches(tickets: Sequence[Ticket], max_rows: int) -> Iterator[Sequence[Ticket]]:
    """Cut tickets, in order, into batches of at most max_rows rows that share their dynamic dims.

    A ticket of more than max_rows rows makes a batch alone, and so does one that is suspected of killing workers;
    these come last.
    """
    dims = tickets[0].dims
    if sum(ticket.rows for ticket in tickets) <= max_rows and (
        len(tickets) == 1 or all(t.dims == dims and not t.suspect for t in tickets)
    ):
        yield tickets
        return
    groups: dict[bytes, list[Ticket]] = {}
    for ticket in tickets:
        if not ticket.suspect:
            groups.setdefault(ticket.dims, []).append(ticket)
    for group in groups.values():
        begin = filled = 0
        for i, ticket in enumerate(group):
            if filled and filled + ticket.rows > max_rows:
                yield group[begin:i]
                begin, filled = i, 0
            filled += ticket.rows
        yield group[begin:]
    yield from ((ticket,) for ticket in tickets if ticket.suspect)
