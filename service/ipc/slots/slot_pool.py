"""The places of an API server's arena: a slot each, with bytes for inputs and outputs, handed out and taken back.

Private to the API server that owns the arena. A place that is given back is kept whole for the next request of the
same sizes, last in first out: the common request finds its slot, its bytes and the views of them ready. When
the arena runs short, the places that are kept are broken up.
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

TEXT_ROOM: Final = 1024
"""Bytes of outputs that every place has at least: the text of an error must fit."""

MOST_KEPT: Final = 64
"""Different sizes of which places are kept whole. Past it all are broken up: sizes that never come again would
otherwise hold slots, and touch ever more of the memory."""
_ATTEMPTS: Final = 1 << 32

# As plain numbers: looking up an enum's member would show in what a small request costs.
_FREE: Final = int(State.FREE)
_FILLING: Final = int(State.FILLING)
_QUEUED: Final = int(State.QUEUED)

_CANCELLED: Final = HEADER.fields["cancelled"][1]  # type: ignore[index]


def place_bytes(input_bytes: int, output_bytes: int) -> int:
    """What a place with this room takes of the arena."""
    return aligned(aligned(input_bytes) + max(output_bytes, TEXT_ROOM))


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
        input_room = aligned(input_bytes)
        self.slot = slot
        # It goes on from what the slot had, in an earlier place or an earlier life: no old record can match.
        self.attempt = QUEUED_STRUCT.unpack_from(memory, slot * HEADER.itemsize + ATTEMPT_AT)[0]
        self.input_at = offset
        self.inputs = memory[offset : offset + input_bytes]
        self.output_at = offset + input_room
        self.outputs = memory[offset + input_room : offset + size]
        self.views: tuple[object, int, dict[str, np.ndarray]] | None = None
        """The outputs as arrays, with the layout and the rows that they were made for."""
        self._memory = memory
        self._header = slot * HEADER.itemsize
        self._key = key
        self._spans = [span]
        self._whole = True

    def set_state(self, state: int) -> None:
        """Move the slot; slot_state.py says which moves are this side's."""
        if slot_state.checking:
            slot_state.check_move(slot_state.Side.API_SERVER, self._memory[self._header], state)
        self._memory[self._header] = state

    def begin_attempt(self, model: int, generation: int, rows: int) -> None:
        """Queue the slot under a new attempt: tickets of earlier ones are void."""
        self.attempt = (self.attempt + 1) % _ATTEMPTS
        QUEUED_STRUCT.pack_into(
            self._memory, self._header + ATTEMPT_AT, self.attempt, model, generation, rows
        )
        self.set_state(_QUEUED)

    def void_attempt(self) -> None:
        """Make the present ticket void, for whoever looks at the slot from now on; who has looked before may still
        take it, and then it was in time."""
        ATTEMPT_STRUCT.pack_into(self._memory, self._header + ATTEMPT_AT, (self.attempt + 1) % _ATTEMPTS)

    @property
    def state(self) -> int:
        """Where the slot is, slot_state.State."""
        return self._memory[self._header]

    def pop_waiting(self) -> bool:
        """Whether a worker that died had not begun to run it; forgets it."""
        waiting = bool(self._memory[self._header + WAITING_AT])
        self._memory[self._header + WAITING_AT] = 0
        return waiting

    def set_cancelled(self, cancelled: bool) -> None:
        """Tell workers whether anybody waits for the answer."""
        self._memory[self._header + _CANCELLED] = cancelled


class SlotPool:
    """All places of one arena."""

    def __init__(self, arena: MappedArena) -> None:
        self._memory = arena.bytes
        slots = len(arena.state)
        self._slots = list(range(slots - 1, -1, -1))
        self._data_bytes = arena.data_bytes
        self._extents = FreeListAllocator(slots * HEADER.itemsize, arena.data_bytes)
        self._kept: dict[tuple[int, int], list[SlotAllocation]] = {}
        self._kept_bytes = 0
        arena.state[:] = State.FREE
        arena.cancelled[:] = arena.waiting[:] = 0

    def take(self, input_bytes: int, output_bytes: int) -> SlotAllocation | None:
        """A place with at least this room, FILLING; None when slots or bytes have run out."""
        key = (input_bytes, output_bytes)
        kept = self._kept.get(key)
        if kept:
            place = kept.pop()
            self._kept_bytes -= place._spans[0][1]
        else:
            made = self._make(key)
            if made is None:
                self._break_up()
                made = self._make(key)
            if made is None:
                return None
            place = made
        place.set_state(_FILLING)
        return place

    def could_hold(self, input_bytes: int, output_bytes: int) -> bool:
        """Whether there is such room while nobody has any of it."""
        return place_bytes(input_bytes, output_bytes) <= self._data_bytes

    def give(self, place: SlotAllocation) -> None:
        """Take back a place that no worker can touch."""
        place.set_state(_FREE)
        if place._whole:
            kept = self._kept.get(place._key)
            if kept is None:
                if len(self._kept) == MOST_KEPT:
                    self._break_up()
                kept = self._kept[place._key] = []
            kept.append(place)
            self._kept_bytes += place._spans[0][1]
        else:
            self._free(place)

    def widen(self, place: SlotAllocation, output_bytes: int) -> bool:
        """Give a place other output bytes, enough for output_bytes; False when there is no such room.

        Where room is scarce its present output bytes are given back first: what is in them is worth nothing. It keeps
        the first of them even then, for the text of an error.
        """
        output_bytes = max(output_bytes, TEXT_ROOM)
        span = self._extents.take(output_bytes)
        if span is None:
            self._break_up()
            span = self._extents.take(output_bytes)
        if span is None:
            self._narrow(place)
            span = self._extents.take(output_bytes)
        if span is None:
            return False
        for earlier in place._spans[1:]:
            self._extents.give(*earlier)
        place._spans[1:] = [span]
        place._whole = False
        place.output_at = span[0]
        place.outputs = self._memory[span[0] : span[0] + span[1]]
        return True

    def _narrow(self, place: SlotAllocation) -> None:
        """Leave a place the least output bytes."""
        for earlier in place._spans[1:]:
            self._extents.give(*earlier)
        offset, size = place._spans[0]
        least = place_bytes(len(place.inputs), TEXT_ROOM)
        place._spans = [(offset, least)]
        place._whole = False
        place.views = None
        if size > least:
            self._extents.give(offset + least, size - least)
        place.output_at = offset + least - TEXT_ROOM
        place.outputs = self._memory[place.output_at : offset + least]

    @property
    def lent_bytes(self) -> int:
        """Bytes of the places that somebody has."""
        return self._extents.used_bytes - self._kept_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes in use, or kept for requests of the same sizes."""
        return self._extents.used_bytes

    def _make(self, key: tuple[int, int]) -> SlotAllocation | None:
        if not self._slots:
            return None
        span = self._extents.take(place_bytes(*key))
        if span is None:
            return None
        return SlotAllocation(self._memory, self._slots.pop(), key, span)

    def _free(self, place: SlotAllocation) -> None:
        for offset, size in place._spans:
            self._extents.give(offset, size)
        self._slots.append(place.slot)

    def _break_up(self) -> None:
        for kept in self._kept.values():
            for place in kept:
                self._free(place)
        self._kept.clear()
        self._kept_bytes = 0
