"""The life of one instance: collect a batch, run it, again. One thread each; ends with its model, or with its process.

A request of more rows than a batch may have is run a batch at a time, with a batch of the others between: nobody waits
for the whole of it, and it is dropped when nobody waits for its answer any more. While requests of a higher priority
level than its own come, it goes on as ageing.py says.
"""

import time
from collections import deque
from typing import Final

from foldserve.service.metrics.catalog import BatchReason
from foldserve.service.metrics.recorder import Metrics
from foldserve.service.worker.ageing import Ageing
from foldserve.service.worker.batcher import Batch, Batcher
from foldserve.service.worker.batches.batch_runner import BatchRunner, ComputedBatch
from foldserve.service.worker.batches.output_thread import OutputThread
from foldserve.service.worker.batches.pieces import LargeRun
from foldserve.service.worker.device_gate import Gate
from foldserve.service.worker.ticket_consumer import TicketConsumer
from foldserve.service.worker.times import BatchTimes

OVERLAPPED_NS: Final = 1_000_000
"""After a longer run its outputs are given out while the next one runs. Of a shorter one that would cost more than it
saves."""


class InstanceLoop:
    """One instance of one model version.

    Args:
        model: its row of the model table.
        gate: when another batch may be begun on the device.
        ageing: of the batches of large requests. levels: priority levels of the model.
    """

    def __init__(
        self,
        model: int,
        consumer: TicketConsumer,
        batcher: Batcher,
        runner: BatchRunner,
        gate: Gate,
        times: BatchTimes,
        metrics: Metrics,
        ageing: Ageing,
        levels: int = 1,
    ) -> None:
        self._model = model
        self._consumer = consumer
        self._batcher = batcher
        self._runner = runner
        self._gate = gate
        self._times = times
        self._metrics = metrics
        self._ageing = ageing
        self._levels = levels
        self._large: deque[LargeRun] = deque()
        self._output_thread = OutputThread(runner.give)
        self._computed: ComputedBatch | None = None
        """The last batch, while its outputs are not given out yet."""

    def run(self) -> None:
        """Serve until the model is unloaded, or the process ends."""
        while not self._consumer.is_unloaded():
            self.step()
        self._output_thread.end()

    def step(self, wait: bool = True) -> bool:
        """Run the next batch, and then one of the large request that is under way, if there is any.

        Args:
            wait: for tickets, when there is nothing else to do.
        Returns: whether there was anything to run.
        """
        wait = wait and not self._large and self._computed is None
        if wait:
            self._gate.wait()
        looked_ns = time.monotonic_ns()
        batch = self._batcher.next(self._runner.max_batch_size, wait)
        computed = self._computed
        if batch is not None:
            self._run(batch, looked_ns)
        elif computed is not None:
            self._give(computed)
        large = self._next_large(batch) if self._large else None
        if large is not None:
            self._run_on(large)
        self._consumer.rest()
        return large is not None or batch is not None or computed is not None

    def _run(self, batch: Batch, looked_ns: int) -> None:
        """Run a batch, whose tickets were seen, after looked_ns, to be of their API servers' present lives."""
        tickets, before = batch.tickets, self._computed
        rows = 0
        for ticket in tickets:
            rows += ticket.rows
        most = self._runner.max_batch_size
        if rows > most and len(tickets) == 1:
            if before is not None:
                self._give(before)
            self._large.append(self._runner.begin(tickets[0], batch.taken_ns, batch.level))
            self._consumer.mark_waiting(tickets, True)
            return
        began_s = time.monotonic()
        run_ns = self._times.run_ns(self._runner.bucket(rows))
        self._gate.begin(run_ns, self._runner.gather_ns)
        if before is not None:
            self._output_thread.begin(before)
        try:
            computed = self._runner.run(tickets, batch.taken_ns)
        finally:
            self._gate.end()
        if before is not None:
            self._output_thread.wait()
            self._computed = None
            self._consumer.completed(len(before.tickets))
            self._consumer.holds_only_present_lives(looked_ns)
        if computed is None:
            self._consumer.completed(len(tickets))
        elif computed.kept and run_ns >= OVERLAPPED_NS and not self._batcher.waits and not self._large:
            self._consumer.mark_waiting(tickets, True)  # what the next run does is not their fault
            self._computed = computed
        else:
            self._give(computed)
        self._count(time.monotonic() - began_s, rows, "full" if rows >= most else batch.reason)

    def _give(self, computed: ComputedBatch) -> None:
        """Give out the outputs of a batch here and now."""
        self._consumer.begin_step()
        self._runner.give(computed)
        self._computed = None
        self._consumer.completed(len(computed.tickets))

    def _any_wanted(self) -> bool:
        """Whether there still is a large request for whose answer somebody waits; the others are dropped."""
        looked_ns = time.monotonic_ns()
        self._large = deque([large for large in self._large if self._consumer.still_wanted((large.ticket,))])
        self._consumer.holds_only_present_lives(looked_ns)
        return bool(self._large)

    def _next_large(self, batch: Batch | None) -> LargeRun | None:
        """The large request that goes on after this batch, if one may."""
        if not self._any_wanted():
            return None
        first: list[LargeRun | None] = [None] * self._levels
        queued_ns = [-1] * self._levels
        for large in self._large:
            if first[large.level] is None:
                first[large.level] = large
                queued_ns[large.level] = large.taken_ns
        due = first[self._ageing.due(queued_ns, time.monotonic_ns())]
        if due is not None:
            return due
        best = min(self._large, key=lambda large: large.level)
        return best if batch is None or batch.level >= best.level else None

    def _run_on(self, large: LargeRun) -> None:
        """Run the next batch of a large request; forget it when it is over."""
        tickets = (large.ticket,)
        began_s = time.monotonic()
        self._consumer.mark_waiting(tickets, False)
        self._consumer.begin_step()
        self._ageing.took_oldest(large.level, time.monotonic_ns())
        self._gate.begin(self._times.run_ns(self._runner.max_batch_size), self._runner.gather_ns)
        try:
            rows = self._runner.run_on(large)
        finally:
            self._gate.end()
        if large.done:
            self._large.remove(large)
            self._consumer.completed(1)
        else:
            self._consumer.mark_waiting(tickets, True)
        if rows:
            self._count(time.monotonic() - began_s, rows, "full")

    def _count(self, batch_s: float, rows: int, reason: BatchReason) -> None:
        padding = self._runner.padding(rows)
        self._times.add(batch_s, rows + padding)
        self._metrics.batch_finished(self._model, rows, padding, reason)
