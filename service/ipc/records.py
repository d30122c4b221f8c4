"""The two records that travel through pipes: tickets towards a worker, done records back.

Fixed size and plain numbers, so that a pipe carries them whole: writes of at most PIPE_BUF bytes are atomic
(POSIX, write(2)), and both sizes divide the reads. The rows themselves stay in the arena.
"""

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

import numpy as np

PIPE_BUF: Final = 4096
"""Linux's PIPE_BUF in bytes: the largest write that no other writer's can interleave."""

MAX_DYNAMIC_DIMS: Final = 10
"""Dims of unknown size, over all inputs and not counting rows, that a ticket can carry."""

TICKET: Final = np.dtype(
    [
        ("slot", "<u4"),
        ("attempt", "<u4"),  # must equal the header's: an older ticket is void
        ("api", "u1"),  # whose arena
        ("epoch", "u1"),  # which life of that API server, modulo EPOCHS
        ("generation", "u1"),  # of the model table's row whose queue it is in, modulo GENERATIONS
        ("suspect", "u1"),  # 1: it was being run when a worker died, and is run alone
        ("rows", "<u4"),
        ("input_at", "<u8"),  # byte offsets in the arena
        ("output_at", "<u8"),
        ("output_bytes", "<u8"),  # room for outputs
        ("queued_ns", "<u8"),  # CLOCK_MONOTONIC, the same in every process
        ("deadline_ns", "<u8"),  # no worker begins it after this
        ("dims", "<u4", (MAX_DYNAMIC_DIMS,)),  # the sizes of the dynamic dims, in the signature's order
    ]
)
EPOCHS: Final = 256
"""Tickets tell so many lives of an API server apart; no ticket waits while that many pass."""
GENERATIONS: Final = 256
"""Tickets tell so many models apart that one row of the table holds in turn; likewise."""
DIMS_STRUCT: Final = struct.Struct(f"<{MAX_DYNAMIC_DIMS}I")
TICKET_STRUCT: Final = struct.Struct(f"<IIBBBBIQQQQQ{DIMS_STRUCT.size}s")
TICKETS_PER_WRITE: Final = PIPE_BUF // TICKET.itemsize

MAX_LEVELS: Final = 8
"""Priority levels that a queue may have: each is a pipe of its own."""
TURN_STRUCT: Final = struct.Struct("<Q")
"""The head of a model's turn: its generation; how many tickets of each level follow, and whole tickets (turn.py)."""
TICKETS_PER_TURN: Final = (PIPE_BUF - TURN_STRUCT.size - MAX_LEVELS) // TICKET.itemsize

DONE: Final = np.dtype(
    [
        ("slot", "<u4"),
        ("attempt", "<u4"),
        ("state", "u1"),  # slot_state.State: DONE, FAILED or OUTPUT_OVERFLOW
        ("reason", "u1"),  # Reason, for FAILED
        ("_", "<u2"),
        ("batch_rows", "<u4"),
        ("taken_ns", "<u8"),
        ("gather_s", "<f4"),
        ("run_s", "<f4"),
        ("scatter_s", "<f4"),
        ("__", "<u4"),
        ("needed_bytes", "<u8"),  # room for outputs that OUTPUT_OVERFLOW asks for
    ]
)
DONE_STRUCT: Final = struct.Struct("<IIBBHIQfffIQ")
WHOSE_STRUCT: Final = struct.Struct("<II")
"""slot and attempt, with which a done record begins."""
DONES_PER_WRITE: Final = PIPE_BUF // DONE.itemsize

assert TICKET_STRUCT.size == TICKET.itemsize
assert DONE_STRUCT.size == DONE.itemsize


NO_DIMS: Final = bytes(DIMS_STRUCT.size)


def pack_dims(dims: Sequence[int]) -> bytes:
    """The sizes of the dynamic dims as a ticket carries them; equal bytes mean equal dims."""
    return DIMS_STRUCT.pack(*dims, *(0,) * (MAX_DYNAMIC_DIMS - len(dims))) if dims else NO_DIMS


class Reason(IntEnum):
    """Why a request FAILED; for MODEL_FAILED the slot's output bytes hold the text."""

    NONE = 0
    MODEL_FAILED = 1
    EXPIRED = 2
    CANCELLED = 3
