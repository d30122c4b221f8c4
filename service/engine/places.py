"""Places of an API server's arena: who gets one, who has to give one back, where its outputs lie.

Owned by the event loop thread of one API server; nothing here blocks.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from foldserve.service.engine.model_queue import ModelQueue
from foldserve.service.engine.output_sizes import OutputSizes
from foldserve.service.engine.queue_load import QueueLoads
from foldserve.service.engine.request import PendingRequest
from foldserve.service.errors import QueueFull
from foldserve.service.ipc.scoreboard import MappedScoreboard
from foldserve.service.ipc.slots.arena import MappedArena
from foldserve.service.ipc.slots.slot_pool import SlotPool

_SCARCE: Final = 7 / 8
"""From this share of an arena's use on, each model is held to its own share of it."""


class Places(QueueLoads):
    """Of one API server's arena."""

    def __init__(self, index: int, arena: MappedArena, board: MappedScoreboard) -> None:
        super().__init__(index, board)
        self.arena = arena
        self.queues: dict[int, ModelQueue] = {}
        """By row of the model table."""
        self.in_flight: dict[int, PendingRequest] = {}
        """The requests that are queued or run, by slot."""
        self.make_room: Callable[[int], bool] = lambda nbytes: False
        """Evicts a partial body or an answer that is not read, because so many bytes are needed; False when there is
        none that must go."""
        self.lent_bytes = 0
        """In the places that make_room() would have given back for half-sent bodies."""
        self._pool = SlotPool(arena)
        self._rooms = OutputSizes(self._pool, arena.data_bytes)

    def add_queue(self, queue: ModelQueue) -> None:
        """Take requests for a model version from now on; its row must be free here."""
        assert queue.row not in self.queues
        self.queues[queue.row] = queue

    def output_room(self, queue: ModelQueue, rows: int, dims: Sequence[int], input_bytes: int) -> int:
        """Bytes to set aside for the outputs: exact when the signature tells, else what was needed last time."""
        return self._rooms.of_outputs(queue, rows, dims, input_bytes)

    def reserve(self, request: PendingRequest, input_bytes: int, output_bytes: int) -> memoryview:
        """Give the request a place with this room; return the bytes of its inputs, to be filled.

        Raises: TooLarge when there would be no such room if nobody else were there; QueueFull when the arena has no
            slot or no such room left.
        """
        modest = not self._over_its_share(request.queue)
        place = self._pool.take(input_bytes, output_bytes) if modest else None
        if place is None:
            self.check_fits(
                request, input_bytes, output_bytes
            )  # before others give up their places for nothing
            while modest and place is None and self.make_room(input_bytes + output_bytes):
                place = self._pool.take(input_bytes, output_bytes)
        if place is None:
            raise QueueFull(
                f"there is no room for a request of {input_bytes} bytes: {len(self.in_flight)} requests are in flight "
                f"and {self._pool.used_bytes} of {self.arena.data_bytes} bytes in use; try again later",
                retry_after_s=self.load(request.queue).wait_s(0),
            )
        request.place = place
        return place.inputs

    def check_fits(self, request: PendingRequest, input_bytes: int, output_bytes: int) -> None:
        """Raise TooLarge unless an empty arena has such room: who can never be served is not told to try again."""
        self._rooms.check(request, input_bytes, output_bytes)

    def lend(self, request: PendingRequest, input_bytes: int, output_bytes: int) -> bool:
        """Give the request a place with this room for as long as nobody else needs it; False when there is none.

        Who lends it counts it in lent_bytes, and frees it when make_room() is called.
        """
        request.place = self._pool.take(input_bytes, output_bytes)
        return request.place is not None

    def grow_output(self, request: PendingRequest, needed: int) -> bool:
        """Give the request's place so much room for its outputs, and remember it for such inputs. False when others
        have that room now.

        Raises: TooLarge when an empty arena would not have it: not remembered, for the next request of such inputs may
            have a smaller answer, and nobody would find out.
        """
        place = request.place
        assert place is not None
        self.check_fits(request, len(place.inputs), needed)
        self._rooms.remember(request, needed)
        found = self._pool.widen(place, needed)
        while not found and self.make_room(needed):
            found = self._pool.widen(place, needed)
        return found

    def _over_its_share(self, queue: ModelQueue) -> bool:
        """Whether the arena is scarce and this model has its part of it: one busy model must not shut out another."""
        models = len(self.queues)
        if models == 1:
            return False
        arena = self.arena
        slots = len(arena.state)
        return (len(self.in_flight) > slots * _SCARCE and queue.requests * models > slots) or (
            self._pool.lent_bytes - self.lent_bytes > arena.data_bytes * _SCARCE
            and queue.held_bytes * models > arena.data_bytes
        )

    def put(self, request: PendingRequest, inputs: Mapping[str, np.ndarray], rows: int) -> None:
        """Give the request a place that holds these inputs, checked against the signature and C-contiguous.

        Raises: QueueFull.
        """
        layout = request.queue.layout
        arrays = [inputs[spec.name] for spec in layout.signature.inputs]
        dims = layout.dims_of([array.shape for array in arrays]) if layout.dynamic_dims else ()
        nbytes = layout.input_bytes(rows, dims)
        request.rows, request.dims = rows, dims
        memory = self.reserve(request, nbytes, self.output_room(request.queue, rows, dims, nbytes))
        for (offset, _), array in zip(layout.input_places(rows, dims), arrays, strict=True):
            memory[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8).data

    def release(self, request: PendingRequest) -> None:
        """Free the request's place: it never was queued, or is completed, so that no worker can touch it."""
        if request.place is not None:
            self._pool.give(request.place)
            request.place = None

    def outputs(self, request: PendingRequest) -> dict[str, np.ndarray]:
        """The request's outputs, as views that are valid until release()."""
        place, layout, rows = request.place, request.queue.layout, request.rows
        assert place is not None
        kept = place.views
        if kept is not None and kept[0] is layout and kept[1] == rows:
            return kept[2]
        outputs = layout.read_outputs(place.outputs, rows)
        if layout.fixed_outputs:
            # The place comes back for the next request of these sizes, and its outputs lie where they did.
            place.views = (layout, rows, outputs)
        return outputs
