"""The memory of an API server's arena: allocated to requests, evicted when it is full, released; where outputs lie.

Owned by the event loop thread of one API server; nothing here blocks.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from foldserve.service.engine.memory.output_sizes import OutputSizes
from foldserve.service.engine.model_queue import ModelQueue
from foldserve.service.engine.queue_load import QueueLoads
from foldserve.service.engine.request import PendingRequest
from foldserve.service.errors import QueueFull
from foldserve.service.ipc.scoreboard import MappedScoreboard
from foldserve.service.ipc.slots.arena import MappedArena
from foldserve.service.ipc.slots.slot_pool import SlotPool

_SCARCE: Final = 7 / 8
"""When so much of an arena is in use, each model is limited to its own share of it."""
_KEPT: Final = 1 / 16
"""Of an arena, kept from each priority level for the one before it."""


class ArenaMemory(QueueLoads):
    """Allocates one API server's arena to its requests."""

    def __init__(self, index: int, arena: MappedArena, board: MappedScoreboard) -> None:
        super().__init__(index, board)
        self.arena = arena
        self.queues: dict[int, ModelQueue] = {}
        """By row of the model table."""
        self.in_flight: dict[int, PendingRequest] = {}
        """The requests that are queued or run, by slot."""
        self.evict: Callable[[int], bool] = lambda nbytes: False
        """Called when so many bytes are needed: frees the memory of a partial body, or of a response that its client
        does not read; False when there is none to evict."""
        self.lent_bytes = 0
        """Of the arena, lent to partial bodies: evict() gets them back."""
        self._pool = SlotPool(arena)
        self._sizes = OutputSizes(self._pool, arena.data_bytes)

    def add_queue(self, queue: ModelQueue) -> None:
        """Take requests for a model version from now on; its row must be free here."""
        assert queue.row not in self.queues
        self.queues[queue.row] = queue

    def output_capacity(self, queue: ModelQueue, rows: int, dims: Sequence[int], input_bytes: int) -> int:
        """Bytes to allocate for the outputs: exact where the signature says it, else what was needed last time."""
        return self._sizes.of_outputs(queue, rows, dims, input_bytes)

    def reserve(self, request: PendingRequest, input_bytes: int, output_bytes: int) -> memoryview:
        """Allocate memory of the arena to the request; return the bytes of its inputs, to be filled.

        Raises: TooLarge when an empty arena would not have that much; QueueFull when the arena has no slot or not
            enough memory left.
        """
        modest = not self._over_its_share(request.queue, request.level.index)
        allocation = self._pool.acquire(input_bytes, output_bytes) if modest else None
        if allocation is None:
            self.check_fits(request, input_bytes, output_bytes)  # before others are evicted for nothing
            while modest and allocation is None and self.evict(input_bytes + output_bytes):
                allocation = self._pool.acquire(input_bytes, output_bytes)
        if allocation is None:
            raise QueueFull(
                f"no memory available for a request of {input_bytes} bytes: {len(self.in_flight)} requests are in "
                f"flight and {self._pool.used_bytes} of {self.arena.data_bytes} bytes in use; try again later",
                retry_after_s=self.load(request.queue, request.level).wait_s(0),
            )
        request.allocation = allocation
        return allocation.inputs

    def check_fits(self, request: PendingRequest, input_bytes: int, output_bytes: int) -> None:
        """Raise TooLarge unless an empty arena has that much: whoever can never be served is not asked to try again."""
        self._sizes.check(request, input_bytes, output_bytes)

    def lend(self, request: PendingRequest, input_bytes: int, output_bytes: int) -> bool:
        """Allocate memory to the request until evict() is called; False when there is none.

        The caller counts it in lent_bytes, and frees it when evict() asks for it.
        """
        request.allocation = self._pool.acquire(input_bytes, output_bytes)
        return request.allocation is not None

    def grow_output(self, request: PendingRequest, needed: int) -> bool:
        """Allocate so many bytes for the request's outputs, and remember the size for such inputs. False when others
        have that memory now.

        Raises: TooLarge when an empty arena would not have that much: not remembered, because the next request of such
            inputs may have smaller outputs, and would be refused without a try.
        """
        allocation = request.allocation
        assert allocation is not None
        self.check_fits(request, len(allocation.inputs), needed)
        self._sizes.remember(request, needed)
        found = self._pool.grow_outputs(allocation, needed)
        while not found and self.evict(needed):
            found = self._pool.grow_outputs(allocation, needed)
        return found

    def _over_its_share(self, queue: ModelQueue, level: int) -> bool:
        """Whether the arena is nearly full and this model has its share: one busy model must not shut out another. Or
        so full that the rest is kept for higher levels: what waits behind a request must not keep it out."""
        models = len(self.queues)
        if models == 1 and not level:
            return False
        arena = self.arena
        slots = len(arena.state)
        if level:
            share = 1 - level * _KEPT
            if (
                len(self.in_flight) > slots * share
                or self._pool.allocated_bytes - self.lent_bytes > arena.data_bytes * share
            ):
                return True
        return (len(self.in_flight) > slots * _SCARCE and queue.requests * models > slots) or (
            self._pool.allocated_bytes - self.lent_bytes > arena.data_bytes * _SCARCE
            and queue.held_bytes * models > arena.data_bytes
        )

    def put(self, request: PendingRequest, inputs: Mapping[str, np.ndarray], rows: int) -> None:
        """Allocate memory to the request and copy its inputs there: checked against the signature, C-contiguous.

        Raises: QueueFull.
        """
        layout = request.queue.layout
        arrays = [inputs[spec.name] for spec in layout.signature.inputs]
        dims = layout.dims_of([array.shape for array in arrays]) if layout.dynamic_dims else ()
        nbytes = layout.input_bytes(rows, dims)
        request.rows, request.dims = rows, dims
        memory = self.reserve(request, nbytes, self.output_capacity(request.queue, rows, dims, nbytes))
        for (offset, _), array in zip(layout.input_places(rows, dims), arrays, strict=True):
            memory[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8).data

    def release(self, request: PendingRequest) -> None:
        """Free the request's memory: it never was queued, or is completed, so that no worker can touch it."""
        if request.allocation is not None:
            self._pool.release(request.allocation)
            request.allocation = None

    def outputs(self, request: PendingRequest) -> dict[str, np.ndarray]:
        """The request's outputs, as views that are valid until release()."""
        allocation, layout, rows = request.allocation, request.queue.layout, request.rows
        assert allocation is not None
        kept = allocation.views
        if kept is not None and kept[0] is layout and kept[1] == rows:
            return kept[2]
        outputs = layout.read_outputs(allocation.outputs, rows)
        if layout.fixed_outputs:
            # The allocation is kept for the next request of these sizes, whose outputs will lie in the same place.
            allocation.views = (layout, rows, outputs)
        return outputs
