"""One batch: gather the requests' rows, run the model, scatter the outputs back into the requests' slots.

Numbers only move here; which requests make a batch is batcher.py's, and when the next part of a large request is run,
instance_loop.py's. A batch for which the device does not have memory is run in smaller pieces, and later ones are
no larger (oom_backoff.py). When a run raises anything else, the batch is halved and its halves are run, until only the
request that the model cannot take fails. A lost device fails no request: DeviceLost ends the worker (instance.py).
"""

import logging
import time
from collections.abc import Callable, Sequence
from math import prod
from typing import Final

import numpy as np

from foldserve.service.backends import Session
from foldserve.service.backends.base import DeviceLost, OutOfMemory, WrongOutput
from foldserve.service.errors import new_error_id
from foldserve.service.ipc.records import Reason
from foldserve.service.ipc.slots.slot_state import State
from foldserve.service.ipc.slots.tensor_layout import TensorLayout
from foldserve.service.logs.limits import with_id
from foldserve.service.repository.buckets import bucket_for
from foldserve.service.worker.batches.gather import Arrays, Gatherer, copy_bytes
from foldserve.service.worker.batches.oom_backoff import BatchLimits
from foldserve.service.worker.batches.pieces import LargeRun, Pieces, check_output, copy_piece, overlapping
from foldserve.service.worker.ticket_consumer import Ticket, Timing, WorkerMemory, complete, mark_waiting

_log = logging.getLogger("foldserve.worker")

_TEXT_BYTES: Final = 1000
"""Of an error's text, UTF-8; every slot's output bytes have room for it."""


class ComputedBatch:
    """A batch that has run, and its outputs. kept: whether they stay as they are while other batches run."""

    def __init__(
        self, tickets: Sequence[Ticket], outputs: list[np.ndarray], timing: Timing, kept: bool
    ) -> None:
        self.tickets = tickets
        self.outputs = outputs
        self.timing = timing
        self.kept = kept


class BatchRunner:
    """Runs the batches of one instance. Used by its thread alone.

    max_batch_size: rows that the next batch may have; lowered while the device does not have memory for more.
    gather_ns: what putting a batch together takes, a moving average.

    Args:
        model, device: as the log and errors name them.
        buckets: allowed batch sizes, ascending, the last is max_batch_size; empty = any size up to it.
        retried: called with how many requests are run again because a run raised.
        batch_limit_moved: called with the rows of the lowest batch limit, when it fell or rose.
    """

    def __init__(
        self,
        model: str,
        device: str,
        session: Session,
        layout: TensorLayout,
        shared: WorkerMemory,
        instance: int,
        max_batch_size: int,
        buckets: Sequence[int],
        retried: Callable[[int], None],
        batch_limit_moved: Callable[[int], None],
    ) -> None:
        self.max_batch_size = max_batch_size
        self._model = model
        self._device = device
        self._session = session
        self._layout = layout
        self._shared = shared
        self._step_since = shared.board.step_since_ns
        self._place = (shared.worker, instance)
        self._buckets = tuple(buckets)
        self._memory = shared.arenas
        self._retried = retried
        self._batch_limit_moved = batch_limit_moved
        self._batch_limits = BatchLimits(max_batch_size, buckets)
        self._lowest = max_batch_size
        self.gather_ns = 0
        self._gatherer = Gatherer(session, layout, shared.arenas, max_batch_size)

    def _begin_step(self) -> None:
        """None of its steps may take longer than the run limit (ipc/scoreboard.py)."""
        self._step_since[self._place] = time.monotonic_ns()

    def bucket(self, rows: int) -> int:
        """The batch size that `rows` rows are run at."""
        return bucket_for(rows, self._buckets)

    def padding(self, rows: int) -> int:
        """Rows that are added to a batch of `rows`, whose full pieces need none."""
        rest = rows if rows <= self.max_batch_size else rows % self.max_batch_size
        return self.bucket(rest) - rest if rest else 0

    def run(self, tickets: Sequence[Ticket], taken_ns: int) -> "ComputedBatch | None":
        """Run tickets that share their dynamic dims and fit into one batch, or one that is larger.

        Returns: what give() takes; None when the run raised, and they are completed otherwise.
        Raises: DeviceLost, with the tickets not completed.
        """
        self._begin_step()
        started = time.monotonic()
        rows = sum(ticket.rows for ticket in tickets)
        try:
            inputs = self._gatherer.gather(tickets, rows, self.bucket(rows))
            gathered = time.monotonic()
            outputs = self._run(tickets, inputs, rows)
        except DeviceLost:
            raise
        except Exception as error:
            self._bisect(tickets, taken_ns, error)
            return None
        ran = time.monotonic()
        self.gather_ns += (int((gathered - started) * 1e9) - self.gather_ns) // 8
        self._begin_step()
        timing = Timing(rows, taken_ns, gathered - started, ran - gathered)
        return ComputedBatch(tickets, outputs, timing, self._are_kept(inputs, outputs))

    def _are_kept(self, inputs: Arrays, outputs: list[np.ndarray]) -> bool:
        """Whether outputs stay as they are while other batches are gathered and run."""
        if not self._session.keeps_outputs:
            return False
        # A model that gives an input back may give its memory back.
        return not any(np.may_share_memory(output, given) for output in outputs for given in inputs.values())

    def give(self, batch: "ComputedBatch") -> None:
        """Give each request its part of the outputs, and complete it. Of a batch that is kept, on any thread."""
        tickets, timing = batch.tickets, batch.timing
        began = time.monotonic()
        needed = self._scatter(tickets, batch.outputs)
        timing = timing._replace(scatter_s=time.monotonic() - began)
        if needed:
            for i, nbytes in needed.items():
                complete(self._shared, (tickets[i],), State.OUTPUT_OVERFLOW, timing, needed_bytes=nbytes)
            tickets = [ticket for i, ticket in enumerate(tickets) if i not in needed]
        complete(self._shared, tickets, State.DONE, timing)

    # -- a request of more rows than a batch may have

    def begin(self, ticket: Ticket, taken_ns: int, level: int) -> "LargeRun":
        """What run_on() takes, once for each batch of it."""
        began = time.monotonic()
        inputs = self._gatherer.gather((ticket,), ticket.rows, self.bucket(ticket.rows))
        return LargeRun(ticket, taken_ns, level, inputs, time.monotonic() - began)

    def run_on(self, large: "LargeRun") -> int:
        """Run its next batch; complete it after the last, or when the model fails on it.

        Returns: the rows that were run; 0 when they are tried again in fewer, or failed.
        Raises: DeviceLost, with the ticket not completed.
        """
        ticket, pieces = large.ticket, large.pieces
        began = time.monotonic()
        limit = self._limit(ticket.dims) if self._batch_limits.lowered else self.max_batch_size
        rows = min(limit, ticket.rows - pieces.at)
        try:
            self._add_piece(pieces, rows)
        except DeviceLost:
            raise
        except OutOfMemory as error:
            try:
                self._lower_batch_limit((ticket,), pieces.at, rows, error)
            except OutOfMemory:
                self._fail(large, error)
            return 0
        except Exception as error:
            self._fail(large, error)
            return 0
        large.run_s += time.monotonic() - began
        if pieces.at == ticket.rows:
            large.done = True
            timing = Timing(self.max_batch_size, large.taken_ns, large.gather_s, large.run_s)
            self._begin_step()
            self.give(ComputedBatch((ticket,), pieces.outputs, timing, False))
        return rows

    def _fail(self, large: "LargeRun", error: Exception) -> None:
        large.done = True
        self._bisect((large.ticket,), large.taken_ns, error)

    # -- run

    def _run(self, tickets: Sequence[Ticket], inputs: Arrays, rows: int) -> list[np.ndarray]:
        """The outputs of the batch, padding cut off; above the batch limit it is run in pieces and rejoined.

        Raises: OutOfMemory when there is no memory for the smallest piece; whatever the model raises.
        """
        limit = self._limit(tickets[0].dims) if self._batch_limits.lowered else self.max_batch_size
        if rows <= limit:
            try:
                return self._run_piece(inputs, rows)
            except OutOfMemory as error:
                limit = self._lower_batch_limit(tickets, 0, rows, error)
        pieces = Pieces(inputs, rows)
        while pieces.at < rows:
            count = min(limit, rows - pieces.at)
            try:
                self._add_piece(pieces, count)
            except OutOfMemory as error:
                limit = self._lower_batch_limit(tickets, pieces.at, count, error)
        return pieces.outputs

    def _add_piece(self, pieces: "Pieces", count: int) -> None:
        """Run the next `count` rows."""
        at = pieces.at
        outputs = self._run_piece(self._gatherer.piece(pieces.inputs, at, count, self.bucket(count)), count)
        if not pieces.outputs:
            pieces.outputs = [np.empty((pieces.rows, *output.shape[1:]), output.dtype) for output in outputs]
        copy_piece(outputs, pieces.outputs, at, self._layout.signature.outputs)
        pieces.at = at + count

    def _run_piece(self, inputs: Arrays, rows: int) -> list[np.ndarray]:
        size = len(next(iter(inputs.values())))
        self._begin_step()
        named = self._session.run(inputs)
        outputs = []
        for spec in self._layout.signature.outputs:
            output = named[spec.name]
            # What a file declares is not what its run must give, and outputs of another size would end in another
            # request's slot.
            if output.shape != (size, *spec.row_shape) or output.dtype != spec.dtype:
                check_output(spec, output, size)
            outputs.append(output[:rows])
        return outputs

    def _bisect(self, tickets: Sequence[Ticket], taken_ns: int, error: Exception) -> None:
        """A run raised: the only request fails; otherwise each half is run by itself."""
        if len(tickets) > 1:
            self._retried(len(tickets))
            half = len(tickets) // 2
            mark_waiting(self._shared, tickets[half:], True)
            self._run_and_give(tickets[:half], taken_ns)
            mark_waiting(self._shared, tickets[half:], False)
            self._run_and_give(tickets[half:], taken_ns)
            return
        error_id = new_error_id()
        _log.warning(
            "model %s failed on one request, error id %s: %s",
            *(self._model, error_id, str(error)),
            exc_info=error,
            extra=with_id(error_id),
        )
        text = self._told(error, error_id).encode()[:_TEXT_BYTES]
        ticket = tickets[0]
        memory, at = self._memory[ticket.api], ticket.output_at
        memory[at : at + 4 + len(text)] = len(text).to_bytes(4, "little") + text
        complete(self._shared, tickets, State.FAILED, Timing(ticket.rows, taken_ns), Reason.MODEL_FAILED)

    def _run_and_give(self, tickets: Sequence[Ticket], taken_ns: int) -> None:
        computed = self.run(tickets, taken_ns)
        if computed is not None:
            self.give(computed)

    def _told(self, error: Exception, error_id: str) -> str:
        """What the client reads: a text of ours. Those of runtimes hold the model's source, node names and paths."""
        if isinstance(error, OutOfMemory):
            return (
                f"{self._device} is out of memory: there is not enough for this request, not even in pieces of "
                f"{self.bucket(1)} row(s); send it again later, or smaller rows where they may be of any size"
            )
        if isinstance(error, WrongOutput):
            return f"the model failed on this request: {error}"
        return (
            "the model failed on this request; check whether the model can take such values: the server's log says "
            f"why it failed, under error id {error_id}"
        )

    # -- no room

    def _limit(self, dims: bytes) -> int:
        """The rows of such dims that a run may have, now that some batch limit fell."""
        limit = self._batch_limits.limit(dims)
        self._publish_batch_limit()
        return limit

    def _lower_batch_limit(self, tickets: Sequence[Ticket], at: int, rows: int, error: OutOfMemory) -> int:
        """The device did not have memory for `rows` of the batch's rows from `at` on. Returns: how many are tried next.

        Raises: the error, when there is no smaller piece.
        """
        size = self.bucket(rows)
        limit = self._batch_limits.lower(tickets[0].dims, size)
        if limit is None:
            raise error
        self._publish_batch_limit()
        self._retried(overlapping(tickets, at, at + rows))
        _log.warning(
            "model %s: %s does not have enough memory for a batch of %d rows (%s); they are run again in batches of "
            "%d at most, and so are others; if it stays so, set a smaller max_batch_size, fewer instances or a larger "
            "session.memory_limit_bytes in config.yaml, or serve fewer models on the device",
            *(self._model, self._device, size, error, limit),
        )
        return limit

    def _publish_batch_limit(self) -> None:
        lowest = self._batch_limits.lowest
        if lowest == self._lowest:
            return
        self._lowest = lowest
        self._batch_limit_moved(lowest)
        if not self._layout.dynamic_dims:  # otherwise the next batch's dims decide, which nobody knows yet
            self.max_batch_size = lowest

    # -- scatter

    def _scatter(self, tickets: Sequence[Ticket], outputs: list[np.ndarray]) -> dict[int, int]:
        """Copy each request's part of the outputs into its slot.

        Returns: the bytes that are needed by those requests, by their index, whose slots have too little room.
        """
        layout = self._layout
        if len(outputs) == 1 and layout.fixed_outputs:
            # The common case, and the one whose cost per request shows: bytes to bytes.
            output = np.ascontiguousarray(outputs[0])
            row_bytes = prod(output.shape[1:]) * output.itemsize
            source = output.reshape(-1).view(np.uint8).data
            begin = 0
            for ticket in tickets:
                size = ticket.rows * row_bytes
                copy_bytes(self._memory[ticket.api], ticket.output_at, source, begin, size)
                begin += size
            return {}
        overflowing: dict[int, int] = {}
        row = 0
        for i, ticket in enumerate(tickets):
            mine = [np.ascontiguousarray(output[row : row + ticket.rows]) for output in outputs]
            row += ticket.rows
            if layout.needed_bytes(mine) > ticket.output_bytes:
                overflowing[i] = layout.needed_bytes(mine)
            else:
                at = ticket.output_at
                layout.write_outputs(self._memory[ticket.api][at : at + ticket.output_bytes], mine)
        return overflowing
