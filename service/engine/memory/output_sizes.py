"""How much of an arena a request needs: what to allocate for its outputs, and what can never fit.

Owned by the event loop thread of one API server, like the slot pool that it asks.
"""

from collections.abc import Sequence
from typing import Final

from foldserve.service.engine.model_queue import ModelQueue
from foldserve.service.engine.request import PendingRequest
from foldserve.service.errors import TooLarge
from foldserve.service.ipc.slots.allocator import ALIGNMENT
from foldserve.service.ipc.slots.slot_pool import SlotPool

_FIRST_FACTOR: Final = 4
"""Allocated at first for outputs of unknown shape, as a multiple of the inputs' bytes; grown when it is too little."""
_MOST_SHAPES: Final = 4096
"""Shapes of inputs of one model for which the size of their outputs is remembered."""


class OutputSizes:
    """What requests to the models of one API server need. has_bytes: the whole arena."""

    def __init__(self, pool: SlotPool, has_bytes: int) -> None:
        self._pool = pool
        self._has_bytes = has_bytes

    def of_outputs(self, queue: ModelQueue, rows: int, dims: Sequence[int], input_bytes: int) -> int:
        """Bytes to allocate for the outputs: exact where the signature says it, else what was needed last time."""
        exact = queue.layout.output_capacity(rows)
        if exact is not None:
            return exact
        per_row = queue.row_output_bytes.get(tuple(dims))
        if per_row is not None and self._pool.could_hold(input_bytes, per_row * rows):
            return per_row * rows
        # A guess must not refuse a request that may fit: its run will show what it needs.
        guess = input_bytes * _FIRST_FACTOR
        return guess if self._pool.could_hold(input_bytes, guess) else 0

    def remember(self, request: PendingRequest, needed: int) -> None:
        """The outputs of such a request needed so many bytes."""
        known = request.queue.row_output_bytes
        if len(known) >= _MOST_SHAPES:
            known.clear()
        known[tuple(request.dims)] = -(-needed // request.rows)

    def check(self, request: PendingRequest, input_bytes: int, output_bytes: int) -> None:
        """Raise TooLarge unless an empty arena has that much: whoever can never be served is not asked to try again."""
        rows = request.rows
        if self._pool.could_hold(input_bytes, output_bytes):
            return
        fit = self._fitting(request, input_bytes, output_bytes)
        advice = (
            f"send {fit} rows or fewer in a single request"
            if fit
            else f"send {'smaller rows' if rows else 'less in a single request'}"
        )
        raise TooLarge(
            f"the request takes {input_bytes} bytes and its answer {output_bytes}, {input_bytes + output_bytes} "
            f"together; the server has {self._has_bytes} for all requests in flight; {advice}, or raise --arena-bytes "
            "on the server"
        )

    def _fitting(self, request: PendingRequest, input_bytes: int, output_bytes: int) -> int:
        """The most rows of such a request that surely fit; 0 when none do."""
        rows, signature = request.rows, request.queue.layout.signature
        inputs, outputs = len(signature.inputs) * ALIGNMENT, len(signature.outputs) * ALIGNMENT
        low, high = 0, rows
        while high - low > 1:
            n = (low + high) // 2
            # Each tensor begins at a multiple of the alignment, whatever the rows.
            if self._pool.could_hold(input_bytes * n // rows + inputs, output_bytes * n // rows + outputs):
                low = n
            else:
                high = n
        return low
