"""Allocates an API server's arena to requests: a slot each, with bytes for inputs and outputs.

Private to the API server that owns the arena. An allocation that is released is kept whole for the next request of the
same sizes, last in first out: the common request finds its slot, its bytes and the views of them ready. When
the arena runs short, the allocations that are kept are broken up.
"""

from typing import Final

import numpy as np

from foldserve.service.ipc.slots import slot_state
from foldserve.service.ipc.slots.allocator import FreeListAllocator, aligned
from foldserve.service.ipc.slots.arena import (
    ATTEMPT_AT,
    ATTEMPT_STRUCT,
    HEADER,
    QUEUED_STRUCT,
    WAITING_AT,
    MappedArena,
)
from foldserve.service.ipc.slots.slot_state import State

ERROR_TEXT_BYTES: Final = 1024
"""Bytes of outputs that every allocation has at least: the text of an error must fit."""

MOST_KEPT: Final = 64
"""Different sizes of which allocations are kept. Past it all are broken up: sizes that never come again would
otherwise hold slots, and touch ever more of the memory."""
_ATTEMPTS: Final = 1 << 32

# As plain numbers: looking up an enum's member would show in what a small request costs.
_FREE: Final = int(State.FREE)
_FILLING: Final = int(State.FILLING)
_QUEUED: Final = int(State.QUEUED)

_CANCELLED: Final = HEADER.fields["cancelled"][1]  # type: ignore[index]


def allocation_bytes(input_bytes: int, output_bytes: int) -> int:
    """What an allocation of these sizes takes of the arena."""
    return aligned(aligned(input_bytes) + max(output_bytes, ERROR_TEXT_BYTES))


class SlotAllocation:
    """A slot and its bytes. Offsets are from the start of the arena."""

    __slots__ = (
        "_header",
        "_key",
        "_memory",
        "_spans",
        "_whole",
        "attempt",
        "input_at",
        "inputs",
        "output_at",
        "outputs",
        "slot",
        "views",
    )

    def __init__(self, memory: memoryview, slot: int, key: tuple[int, int], span: tuple[int, int]) -> None:
        input_bytes, _ = key
        offset, size = span
        aligned_input = aligned(input_bytes)
        self.slot = slot
        # Continued from the slot's last allocation, of an earlier process too: no old record can match.
        self.attempt = ATTEMPT_STRUCT.unpack_from(memory, slot * HEADER.itemsize + ATTEMPT_AT)[0]
        self.input_at = offset
        self.inputs = memory[offset : offset + input_bytes]
        self.output_at = offset + aligned_input
        self.outputs = memory[offset + aligned_input : offset + size]
        self.views: tuple[object, int, dict[str, np.ndarray]] | None = None
        """The outputs as arrays, with the layout and the rows that they were made for."""
        self._memory = memory
        self._header = slot * HEADER.itemsize
        self._key = key
        self._spans = [span]
        self._whole = True

    def __repr__(self) -> str:
        return (
            f"<SlotAllocation slot {self.slot} {State(self.state).name}, attempt {self.attempt}: "
            f"{len(self.inputs)} bytes at {self.input_at}, {len(self.outputs)} at {self.output_at}>"
        )

    def set_state(self, state: int) -> None:
        """Move the slot; slot_state.py says which moves are this side's."""
        if slot_state.checking:
            slot_state.check_move(slot_state.Side.API_SERVER, self._memory[self._header], state)
        self._memory[self._header] = state

    def begin_attempt(self, model: int, generation: int, rows: int) -> None:
        """Queue the slot under a new attempt: tickets of earlier ones are void."""
        self.attempt = (self.attempt + 1) % _ATTEMPTS
        QUEUED_STRUCT.pack_into(
            self._memory, self._header + WAITING_AT, 0, self.attempt, model, generation, rows
        )
        self.set_state(_QUEUED)

    def void_attempt(self) -> None:
        """Make the present ticket void for whoever reads the slot's header from now on; an instance that has read it
        before may still mark it, which is then valid."""
        ATTEMPT_STRUCT.pack_into(self._memory, self._header + ATTEMPT_AT, (self.attempt + 1) % _ATTEMPTS)

    @property
    def state(self) -> int:
        """The slot's state, a slot_state.State."""
        return self._memory[self._header]

    def pop_waiting(self) -> bool:
        """Whether a worker that died did not run it, not yet or not any more; resets the mark."""
        waiting = bool(self._memory[self._header + WAITING_AT])
        self._memory[self._header + WAITING_AT] = 0
        return waiting

    def set_cancelled(self, cancelled: bool) -> None:
        """Tell workers whether anybody waits for the answer."""
        self._memory[self._header + _CANCELLED] = cancelled


class SlotPool:
    """All allocations of one arena."""

    def __init__(self, arena: MappedArena) -> None:
        self._memory = arena.bytes
        slots = len(arena.state)
        self._slots = list(range(slots - 1, -1, -1))
        self._data_bytes = arena.data_bytes
        self._allocator = FreeListAllocator(slots * HEADER.itemsize, arena.data_bytes)
        self._kept: dict[tuple[int, int], list[SlotAllocation]] = {}
        self._kept_bytes = 0
        arena.state[:] = State.FREE
        arena.cancelled[:] = arena.waiting[:] = 0

    def __repr__(self) -> str:
        return (
            f"<SlotPool: {self.allocated_bytes} of {self._data_bytes} bytes allocated, {self._kept_bytes} kept, "
            f"{len(self._slots)} slots never used or broken up>"
        )

    def acquire(self, input_bytes: int, output_bytes: int) -> SlotAllocation | None:
        """An allocation of at least these sizes, FILLING; None when slots or bytes have run out."""
        key = (input_bytes, output_bytes)
        kept = self._kept.get(key)
        if kept:
            allocation = kept.pop()
            self._kept_bytes -= allocation._spans[0][1]
        else:
            made = self._make(key)
            if made is None:
                self._break_up()
                made = self._make(key)
            if made is None:
                return None
            allocation = made
        allocation.set_state(_FILLING)
        return allocation

    def could_hold(self, input_bytes: int, output_bytes: int) -> bool:
        """Whether an empty arena could hold such an allocation."""
        return allocation_bytes(input_bytes, output_bytes) <= self._data_bytes

    def release(self, allocation: SlotAllocation) -> None:
        """Free an allocation that no worker can touch."""
        allocation.set_state(_FREE)
        if allocation._whole:
            kept = self._kept.get(allocation._key)
            if kept is None:
                if len(self._kept) == MOST_KEPT:
                    self._break_up()
                kept = self._kept[allocation._key] = []
            kept.append(allocation)
            self._kept_bytes += allocation._spans[0][1]
        else:
            self._free(allocation)

    def grow_outputs(self, allocation: SlotAllocation, output_bytes: int) -> bool:
        """Give an allocation other output bytes, at least output_bytes; False when there is not enough memory.

        Where memory is scarce its present output bytes are freed first: what is in them is not needed. It keeps the
        first of them even then, for the text of an error.
        """
        output_bytes = max(output_bytes, ERROR_TEXT_BYTES)
        span = self._allocator.allocate(output_bytes)
        if span is None:
            self._break_up()
            span = self._allocator.allocate(output_bytes)
        if span is None:
            self._shrink_outputs(allocation)
            span = self._allocator.allocate(output_bytes)
        if span is None:
            return False
        for earlier in allocation._spans[1:]:
            self._allocator.free(*earlier)
        allocation._spans[1:] = [span]
        allocation._whole = False
        allocation.output_at = span[0]
        allocation.outputs = self._memory[span[0] : span[0] + span[1]]
        return True

    def _shrink_outputs(self, allocation: SlotAllocation) -> None:
        """Leave an allocation the least output bytes."""
        for earlier in allocation._spans[1:]:
            self._allocator.free(*earlier)
        offset, size = allocation._spans[0]
        least = allocation_bytes(len(allocation.inputs), ERROR_TEXT_BYTES)
        allocation._spans = [(offset, least)]
        allocation._whole = False
        allocation.views = None
        if size > least:
            self._allocator.free(offset + least, size - least)
        allocation.output_at = offset + least - ERROR_TEXT_BYTES
        allocation.outputs = self._memory[allocation.output_at : offset + least]

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the allocations in use."""
        return self._allocator.used_bytes - self._kept_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes in use, or kept for requests of the same sizes."""
        return self._allocator.used_bytes

    def _make(self, key: tuple[int, int]) -> SlotAllocation | None:
        if not self._slots:
            return None
        span = self._allocator.allocate(allocation_bytes(*key))
        if span is None:
            return None
        return SlotAllocation(self._memory, self._slots.pop(), key, span)

    def _free(self, allocation: SlotAllocation) -> None:
        for offset, size in allocation._spans:
            self._allocator.free(offset, size)
        self._slots.append(allocation.slot)

    def _break_up(self) -> None:
        for kept in self._kept.values():
            for allocation in kept:
                self._free(allocation)
        self._kept.clear()
        self._kept_bytes = 0
