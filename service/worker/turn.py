"""Whose turn it is to read a model's queue, as one instance sees it: ipc/ticket_queue.py says what a turn is."""

import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import Final, TypeAlias

from foldserve.service.ipc.records import PIPE_BUF, TICKET_STRUCT, TURN_STRUCT
from foldserve.service.ipc.scoreboard import MappedScoreboard
from foldserve.service.ipc.ticket_queue import TicketQueue
from foldserve.service.worker.ticket_consumer import Ticket

Packed: TypeAlias = bytes
"""How many tickets there are of each priority level, a byte each, and those whole, one after the other; empty for
none."""

_NOTHING: Final = b""


def pack_waiting(waiting: Sequence[Sequence[Ticket]]) -> Packed:
    """The tickets that wait, by level, as they travel."""
    if not any(waiting):
        return _NOTHING
    counts = bytes([len(tickets) for tickets in waiting])
    return counts + b"".join([TICKET_STRUCT.pack(*ticket) for tickets in waiting for ticket in tickets])


def unpack_waiting(packed: Packed, levels: int) -> list[list[Ticket]]:
    """The tickets of each of so many levels."""
    if not packed:
        return [[] for _ in range(levels)]
    tickets = list(map(Ticket._make, TICKET_STRUCT.iter_unpack(packed[levels:])))
    waiting: list[list[Ticket]] = []
    at = 0
    for level in range(levels):
        waiting.append(tickets[at : at + packed[level]])
        at += packed[level]
    return waiting


class Turn:
    """One instance's. Used by its thread alone."""

    may_read: bool
    """Whether the pipe of tickets may be read now: otherwise there is only what acquire() gave."""

    @abstractmethod
    def acquire(self, wait: bool) -> Packed | None:
        """Acquire the turn.

        Returns: the tickets that came with it, which are older than any in their pipes; None when another instance has
            it, which only happens without `wait`.
        """

    @abstractmethod
    def pass_on(self, tickets: Packed) -> None:
        """Pass the turn on, and with it tickets that were read and are not used: TICKETS_PER_TURN at most."""


class SoleTurn(Turn):
    """The turn of a queue's only reader, which always has it."""

    def __init__(self) -> None:
        self.may_read = True
        self._kept: Packed = _NOTHING

    def acquire(self, wait: bool) -> Packed | None:
        """See Turn."""
        return self._kept

    def pass_on(self, tickets: Packed) -> None:
        """See Turn."""
        self._kept = tickets


class SharedTurn(Turn):
    """The turn of one of several readers."""

    def __init__(self, queue: TicketQueue, board: MappedScoreboard, model: int) -> None:
        self.may_read = False
        self._queue = queue
        self._valid = board.turn
        self._model = model
        self._generation = 0
        self._kept: Packed = _NOTHING
        """Tickets that came with a turn which was replaced: no other instance has them."""
        self._fd = queue.turn_reader.fd
        # The same pipe once more, for a description with flags of its own.
        self._fd_without_waiting = os.open(
            f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        )

    def acquire(self, wait: bool) -> Packed | None:
        """See Turn. Tickets of a turn that was replaced are given without one."""
        while not self._kept and not self.may_read:
            try:
                # Who waits in read(2) waits alone for each packet: one write wakes one instance.
                data = os.read(self._fd if wait else self._fd_without_waiting, PIPE_BUF)
            except BlockingIOError:
                return None
            self._generation = TURN_STRUCT.unpack_from(data)[0]
            self.may_read = self._is_valid()
            self._kept = data[TURN_STRUCT.size :]
        kept, self._kept = self._kept, _NOTHING
        return kept

    def pass_on(self, tickets: Packed) -> None:
        """See Turn."""
        given = self.may_read and self._is_valid() and self._queue.pass_turn(self._generation, tickets)
        self.may_read = False
        if not given:
            self._kept = tickets

    def _is_valid(self) -> bool:
        return self._valid[self._model] == self._generation


def turn_of(queue: TicketQueue, board: MappedScoreboard, model: int, readers: int) -> Turn:
    """An instance's turn to read a model's queue. readers: instances of the model, over all workers."""
    return SoleTurn() if readers == 1 else SharedTurn(queue, board, model)
