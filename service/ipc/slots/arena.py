"""One API server's shared memory: a table of slot headers, then the bytes of inputs and outputs.

Owned by its API server, which alone hands out slots and bytes (allocator.py); workers read inputs, write
outputs, and move the state of the slots they take (slot_state.py). This file maps the memory and names its
parts; who may write what when is slot_state.py's table.
"""

import struct
from typing import Final

import numpy as np

from foldserve.service.ipc.handles import SharedMemory
from foldserve.service.ipc.slots.allocator import ALIGNMENT

HEADER: Final = np.dtype(
    [
        ("state", "u1"),  # slot_state.State
        ("cancelled", "u1"),  # set by the API server at any time: nobody waits for the answer
        (
            "waiting",
            "u1",
        ),  # set by the worker: taken, but not run yet, or not any more, so that it is no suspect
        ("_", "u1"),
        ("attempt", "<u4"),  # set by the API server when it queues the slot; a ticket must carry the same
        ("worker", "<u4"),  # incarnation number of the worker that took it
        (
            "model",
            "<u4",
        ),  # row of the model table; set with the attempt, like the next two, for a count of the slots
        ("generation", "<u4"),  # of that row
        ("rows", "<u4"),
        ("pad", "V40"),
    ]
)
HEADER_STRUCT: Final = struct.Struct("<BB2xI")
"""state, cancelled and attempt, from the start of a header."""
QUEUED_STRUCT: Final = struct.Struct("<BxI4xIII")
"""waiting, attempt, model, generation and rows, from WAITING_AT."""
ATTEMPT_STRUCT: Final = struct.Struct("<I")
WAITING_AT: Final = 2
ATTEMPT_AT: Final = 4
WORKER_AT: Final = 8
WORKER_STRUCT: Final = struct.Struct("<I")
assert HEADER.itemsize == ALIGNMENT
_OFFSETS: Final = [HEADER.fields[name][1] for name in ("state", "cancelled", "waiting", "attempt", "worker")]  # type: ignore[index]
assert _OFFSETS == [0, 1, WAITING_AT, ATTEMPT_AT, WORKER_AT]


class Arena:
    """The memory itself; give it to every process that needs it, and map() it there."""

    def __init__(self, api_server: int, slots: int, data_bytes: int) -> None:
        self.slots = slots
        self.data_at = slots * HEADER.itemsize
        self.memory = SharedMemory(f"arena-{api_server}", self.data_at + data_bytes)
        self.data_bytes = data_bytes

    def map(self) -> "MappedArena":
        """This process's view of the arena."""
        return MappedArena(self)


class MappedArena:
    """Views of an arena's parts in this process: headers by field, and bytes by offset."""

    def __init__(self, arena: Arena) -> None:
        self.map = arena.memory.map()
        self.data_bytes = arena.data_bytes
        self.bytes = memoryview(self.map)
        headers = np.frombuffer(self.map, HEADER, arena.slots)
        self.state = headers["state"]
        self.cancelled = headers["cancelled"]
        self.waiting = headers["waiting"]
        self.attempt = headers["attempt"]
        self.worker = headers["worker"]
        self.model = headers["model"]
        self.generation = headers["generation"]
        self.rows = headers["rows"]
