"""Puts a batch's inputs together: in place where that will do, else copied into memory that every batch reuses.

That memory is the session's own where it has some (base.Session.host_buffers): pinned, a device can copy from it
while the host goes on. Then everything that runs passes through it. Fresh memory of a batch's size would be faulted
in page by page at every run.
"""

from collections.abc import Sequence
from math import prod
from typing import Final

import numpy as np

from foldserve.service.backends import Session
from foldserve.service.ipc.slots.tensor_layout import TensorLayout
from foldserve.service.repository.buckets import padded
from foldserve.service.worker.ticket_consumer import Ticket

Arrays = dict[str, np.ndarray]


_LARGE_BYTES: Final = 1 << 14
"""From this size on a copy lets go of the interpreter: other instances, of other models too, run meanwhile. Below,
numpy's fixed cost is larger than the copy."""


def copy_bytes(target: memoryview, at: int, source: memoryview, start: int, size: int) -> None:
    """Copy `size` bytes of `source` from `start` on into `target` from `at` on."""
    if size < _LARGE_BYTES:
        target[at : at + size] = source[start : start + size]
    else:
        # Assigning to a memoryview's slice would hold on to the interpreter for the whole copy.
        np.copyto(np.frombuffer(target, np.uint8, size, at), np.frombuffer(source, np.uint8, size, start))


class Gatherer:
    """The inputs of one instance's batches. Used by its thread alone.

    Args:
        memory: the bytes of each API server's arena.
        most: rows of the largest batch, padding included.
    """

    def __init__(
        self, session: Session, layout: TensorLayout, memory: Sequence[memoryview], most: int
    ) -> None:
        self._layout = layout
        self._memory = memory
        self._most = most
        # Rows of a size unknown before the batch: no memory can be kept for them.
        theirs = None if layout.dynamic_dims else session.host_buffers(most)
        self._staging: Arrays = dict(theirs) if theirs else {}
        self._buffers: list[np.ndarray] = []
        if theirs:
            self._buffers = [theirs[spec.name] for spec in layout.signature.inputs]
        elif not layout.dynamic_dims:
            self._buffers = self._empty(most, ())

    def gather(self, tickets: Sequence[Ticket], rows: int, bucket: int) -> Arrays:
        """The inputs of tickets that share their dynamic dims: rows in their order, padded up to the bucket.

        A request that fills its batch alone is read where it lies, unless the session has memory of its own; one
        larger than any batch in any case, for it is run in pieces.
        """
        specs = self._layout.signature.inputs
        dims = self._layout.unpacked(tickets[0].dims)
        if len(tickets) == 1 and bucket == rows and (not self._staging or rows > self._most):
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
                copy_bytes(target, filled, self._memory[ticket.api], start, size)
                filled += size
            if bucket > rows:  # padding repeats a row that the model surely takes, which zeros need not be
                buffer[rows:bucket] = buffer[rows - 1]
        return {spec.name: buffer[:bucket] for spec, buffer in zip(specs, buffers, strict=True)}

    def piece(self, inputs: Arrays, at: int, rows: int, bucket: int) -> Arrays:
        """Some rows of a batch, from `at` on, padded up to the bucket.

        The session's own memory is written over from its start. A batch that lies there loses no row that is still
        to run: pieces are run in order, and none is larger than the one before.
        """
        if not self._staging:
            return {name: padded(array[at : at + rows], bucket) for name, array in inputs.items()}
        for name, buffer in self._staging.items():
            buffer[:rows] = inputs[name][at : at + rows]
            buffer[rows:bucket] = buffer[rows - 1]
        return {name: buffer[:bucket] for name, buffer in self._staging.items()}

    def _empty(self, rows: int, dims: Sequence[int]) -> list[np.ndarray]:
        shapes = self._layout.input_shapes(rows, dims)
        return [
            np.empty(shape, spec.dtype)
            for spec, shape in zip(self._layout.signature.inputs, shapes, strict=True)
        ]
