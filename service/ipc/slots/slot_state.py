"""The life of a slot: its states, the legal moves, and which side may make each.

A slot stands for a request's memory in an API server's arena. The state lives in the slot's header, where
both sides see it, and at any time exactly one side may write it: the API server that owns the arena while
the request is FREE, FILLING or over; the instance that has read its ticket while it is QUEUED; the
worker named in the header while it is TAKEN, for as long as that worker lives. What follows is the whole
machine: code elsewhere names a move, and never invents one. docs/engine.md draws it.

Only the standard library here: no memory, no pipe, no clock.
"""

from enum import IntEnum
from typing import Final


class State(IntEnum):
    """Where a slot is. The numbers are what the header holds."""

    FREE = 0
    """Nobody's. Its memory is in the arena's free lists."""
    FILLING = 1
    """The API server is receiving the body into it."""
    QUEUED = 2
    """Its ticket is in the model's queue: the instance that reads it may take it."""
    TAKEN = 3
    """A worker has taken it into a batch; the header says which."""
    DONE = 4
    """The outputs stand in the slot."""
    FAILED = 5
    """The slot holds the text of an error instead of outputs, or it was expired or cancelled."""
    OUTPUT_OVERFLOW = 6
    """The outputs need more bytes than were allocated; the record says how many. It is run again."""


class Side(IntEnum):
    """Who may make a move."""

    API_SERVER = 0
    """The owner of the arena."""
    WORKER = 1
    """The worker that takes, or has taken, the slot."""


MOVES: Final[dict[tuple[State, State], Side]] = {
    (State.FREE, State.FILLING): Side.API_SERVER,
    (State.FILLING, State.QUEUED): Side.API_SERVER,
    (State.FILLING, State.FREE): Side.API_SERVER,  # the client left, or the body was bad
    (State.QUEUED, State.TAKEN): Side.WORKER,  # by the instance that has its ticket in hand
    (State.QUEUED, State.FAILED): Side.WORKER,  # expired or cancelled: it never takes a place in a batch
    (State.TAKEN, State.DONE): Side.WORKER,
    (State.TAKEN, State.FAILED): Side.WORKER,
    (State.TAKEN, State.OUTPUT_OVERFLOW): Side.WORKER,
    # The worker is known to be dead: run again, or failed at the second crash, or nobody waits.
    (State.TAKEN, State.QUEUED): Side.API_SERVER,
    (State.TAKEN, State.FREE): Side.API_SERVER,
    (State.FAILED, State.QUEUED): Side.API_SERVER,  # it died before its record of why was sent
    # It may have died with the ticket read and the slot not yet marked, and nobody can take it any more.
    (State.QUEUED, State.QUEUED): Side.API_SERVER,
    (State.QUEUED, State.FREE): Side.API_SERVER,
    (State.OUTPUT_OVERFLOW, State.QUEUED): Side.API_SERVER,
    (State.DONE, State.FREE): Side.API_SERVER,
    (State.FAILED, State.FREE): Side.API_SERVER,
    (State.OUTPUT_OVERFLOW, State.FREE): Side.API_SERVER,
}
"""Every legal move and the side that makes it."""

COMPLETED: Final = frozenset({State.DONE, State.FAILED, State.OUTPUT_OVERFLOW})
"""States in which the worker is finished with the slot, whether or not its record has arrived."""

MAX_CRASHES: Final = 2
"""A request that was running at this many crashes of a worker is taken for the cause: it fails, and is not tried again.
After the first crash it runs alone, so that another crash affects no other request."""


def may_move(side: Side, before: State, after: State) -> bool:
    """Whether `side` may move a slot from `before` to `after`."""
    return MOVES.get((before, after)) == side


class IllegalMove(Exception):
    """A slot was to be moved in a way that is not in MOVES: a fault of ours, found before it could do harm."""


checking = False
"""Whether the running server holds every move against MOVES (setting check_moves); set at the start of each process."""


def check_move(side: Side, before: int, after: int) -> None:
    """Raise IllegalMove unless `side` may move a slot from `before` to `after`."""
    if not may_move(side, State(before), State(after)):
        raise IllegalMove(f"{side.name} moves a slot from {State(before).name} to {State(after).name}")
