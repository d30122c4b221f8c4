"""One batch: gather the requests' rows, run the model, scatter the outputs back into the requests' slots.

Numbers only move here; which requests make a batch is loop.py's. When a run raises, the batch is halved and
its halves are run, until only the request that the model cannot take fails.
"""

import logging
import time
from collections.abc import Callable, Sequence
from math import prod
from typing import Final

import numpy as np

from service.backends import Session
from service.buckets import bucket_for, padded
from service.lifecycle import State
from service.signature import ANY, TensorSpec
from service.transport.layout import Layout
from service.transport.records import Reason
from service.worker.take import Shared, Ticket, Timing, hold, settle

_log = logging.getLogger("foldserve.worker")

_TEXT_BYTES: Final = 1000
"""Of an error's text, UTF-8; every slot's output bytes have room for it."""

Arrays = dict[str, np.ndarray]


class BatchRunner:
    """Runs the batches of one instance. Used by its thread alone.

    buckets: allowed batch sizes, ascending, the last at least max_batch_size; empty = any size up to it.
    retried: called with how many requests are run again because a run raised.
    """

    def __init__(
        self,
        model: str,
        session: Session,
        layout: Layout,
        shared: Shared,
        instance: int,
        max_batch_size: int,
        buckets: Sequence[int],
        retried: Callable[[int], None],
    ) -> None:
        self.max_batch_size = max_batch_size
        self._model = model
        self._session = session
        self._layout = layout
        self._shared = shared
        self._run_since = shared.board.run_since_ns
        self._place = (shared.worker, instance)
        self._buckets = tuple(buckets)
        self._memory = shared.arenas
        self._retried = retried
        # Reused from batch to batch: fresh memory of this size would be faulted in page by page at every run.
        self._buffers = (
            [] if layout.dynamic_dims else self._empty(max(self._buckets, default=max_batch_size), ())
        )

    def bucket(self, rows: int) -> int:
        """The batch size that `rows` rows are run at."""
        return bucket_for(rows, self._buckets)

    def run(self, tickets: Sequence[Ticket], taken_ns: int) -> None:
        """Run tickets that share their dynamic dims and fit into one batch, or one that is larger; settle each."""
        started = time.monotonic()
        rows = sum(ticket.rows for ticket in tickets)
        try:
            inputs = self._gather(tickets, rows)
            gathered = time.monotonic()
            outputs = self._run(inputs, rows)
        except Exception as error:
            self._halve(tickets, taken_ns, error)
            return
        ran = time.monotonic()
        needed = self._scatter(tickets, outputs)
        timing = Timing(rows, taken_ns, gathered - started, ran - gathered, time.monotonic() - ran)
        if needed:
            for i, nbytes in needed.items():
                settle(self._shared, (tickets[i],), State.OUTGROWN, timing, needed_bytes=nbytes)
            tickets = [ticket for i, ticket in enumerate(tickets) if i not in needed]
        settle(self._shared, tickets, State.DONE, timing)

    # -- gather

    def _gather(self, tickets: Sequence[Ticket], rows: int) -> Arrays:
        """The batch's inputs: in place for a request that fills its batch alone, else copied together and padded."""
        specs = self._layout.signature.inputs
        dims = self._layout.unpacked(tickets[0].dims)
        bucket = self.bucket(rows)
        if len(tickets) == 1 and bucket == rows:
            api, at = tickets[0].api, tickets[0].input_at
            return {
                spec.name: np.frombuffer(self._memory[api], spec.dtype, prod(shape), at + offset).reshape(
                    shape
                )
                for spec, (offset, shape) in zip(specs, self._layout.input_places(rows, dims), strict=True)
            }
        buffers = self._buffers or self._empty(bucket, dims)
        for i, (spec, buffer) in enumerate(zip(specs, buffers, strict=True)):
            row_bytes = prod(buffer.shape[1:]) * spec.dtype.itemsize
            target = buffer.reshape(-1).view(np.uint8).data
            filled = 0
            for ticket in tickets:
                # The first input lies at the start; the others' places depend on the request's rows.
                start = ticket.input_at + (self._layout.input_places(ticket.rows, dims)[i][0] if i else 0)
                size = ticket.rows * row_bytes
                target[filled : filled + size] = self._memory[ticket.api][start : start + size]
                filled += size
            if bucket > rows:  # padding repeats a row that the model surely takes, which zeros need not be
                buffer[rows:bucket] = buffer[rows - 1]
        return {spec.name: buffer[:bucket] for spec, buffer in zip(specs, buffers, strict=True)}

    def _empty(self, rows: int, dims: Sequence[int]) -> list[np.ndarray]:
        shapes = self._layout.input_shapes(rows, dims)
        return [
            np.empty(shape, spec.dtype)
            for spec, shape in zip(self._layout.signature.inputs, shapes, strict=True)
        ]

    # -- run

    def _run(self, inputs: Arrays, rows: int) -> list[np.ndarray]:
        """The outputs of the batch, padding cut off; a request above max_batch_size is run in pieces and rejoined."""
        if rows <= self.max_batch_size:
            return self._run_piece(inputs, rows)
        pieces = []
        for at in range(0, rows, self.max_batch_size):
            count = min(self.max_batch_size, rows - at)
            piece = {name: array[at : at + count] for name, array in inputs.items()}
            bucket = self.bucket(count)
            pieces.append(
                self._run_piece({name: padded(array, bucket) for name, array in piece.items()}, count)
            )
        return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]

    def _run_piece(self, inputs: Arrays, rows: int) -> list[np.ndarray]:
        size = len(next(iter(inputs.values())))
        self._run_since[self._place] = time.monotonic_ns()
        try:
            named = self._session.run(inputs)
        finally:
            self._run_since[self._place] = 0
        outputs = []
        for spec in self._layout.signature.outputs:
            output = named[spec.name]
            # What a file declares is not what its run must give, and outputs of another size would end in another
            # request's slot.
            if output.shape != (size, *spec.row_shape) or output.dtype != spec.dtype:
                check_output(spec, output, size)
            outputs.append(output[:rows])
        return outputs

    def _halve(self, tickets: Sequence[Ticket], taken_ns: int, error: Exception) -> None:
        """A run raised: the only request fails; otherwise each half is run by itself."""
        if len(tickets) > 1:
            self._retried(len(tickets))
            half = len(tickets) // 2
            hold(self._shared, tickets[half:], True)
            self.run(tickets[:half], taken_ns)
            hold(self._shared, tickets[half:], False)
            self.run(tickets[half:], taken_ns)
            return
        _log.warning("model %s failed on one request: %s", self._model, error, exc_info=error)
        text = f"the model failed on this request: {type(error).__name__}: {error}".encode()[:_TEXT_BYTES]
        ticket = tickets[0]
        memory, at = self._memory[ticket.api], ticket.output_at
        memory[at : at + 4 + len(text)] = len(text).to_bytes(4, "little") + text
        settle(self._shared, tickets, State.FAILED, Timing(ticket.rows, taken_ns), Reason.MODEL_FAILED)

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
                at = ticket.output_at
                self._memory[ticket.api][at : at + size] = source[begin : begin + size]
                begin += size
            return {}
        outgrown: dict[int, int] = {}
        row = 0
        for i, ticket in enumerate(tickets):
            mine = [np.ascontiguousarray(output[row : row + ticket.rows]) for output in outputs]
            row += ticket.rows
            if layout.needed_room(mine) > ticket.output_bytes:
                outgrown[i] = layout.needed_room(mine)
            else:
                at = ticket.output_at
                layout.write_outputs(self._memory[ticket.api][at : at + ticket.output_bytes], mine)
        return outgrown


def check_output(spec: TensorSpec, output: np.ndarray, rows: int) -> None:
    """Raise ValueError unless an output is what the signature says, for a batch of `rows` rows."""
    fits = (
        output.dtype == spec.dtype
        and output.ndim == len(spec.shape)
        and len(output) == rows
        and all(want in (ANY, got) for want, got in zip(spec.row_shape, output.shape[1:], strict=True))
    )
    if not fits:
        raise ValueError(
            f"output {spec.name!r} came as {output.dtype} {list(output.shape)} from a batch of {rows} rows; the "
            f"signature says {spec.datatype} {list(spec.shape)}"
        )
