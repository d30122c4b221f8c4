"""One model's queue: a pipe of tickets for each priority level, and the turn of the instance that may read them.

API servers write tickets; a write of at most PIPE_BUF bytes is atomic, and so is a read: a ticket is in the pipe or in
one reader's hands, never in two. No lock is held anywhere: what a reader does with a ticket is decided by the slot's
header (worker/ticket_consumer.py), and tickets that died with a reader are found out from there (engine/recovery.py).

The turn decides who reads next, so that one instance at a time forms a batch and only one is woken for a ticket. It is
a packet in a second pipe, which exactly one reader gets. The tickets that the instance before read and could not use
travel in it, in their order. It bears a generation, by which the supervisor can replace it when whoever has it is dead
or stopped. Two turns at once would do no harm but smaller batches. The only reader of a queue needs none.
"""

import contextlib
import fcntl
import os
import select
import time
from collections import deque
from collections.abc import Iterable
from typing import Final

import numpy as np

from foldserve.service.ipc.handles import Handle
from foldserve.service.ipc.records import GENERATIONS, PIPE_BUF, TICKET, TICKETS_PER_WRITE, TURN_STRUCT
from foldserve.service.ipc.scoreboard import MappedScoreboard

_PIPE_BYTES: Final = 1 << 18
"""Capacity asked for per queue; what does not fit waits in the API server's own memory."""
_TURN_PIPE_BYTES: Final = 1 << 14
"""A turn takes a page; there is one, and for moments one more that is not valid any longer."""
_MS_NS: Final = 1_000_000


class TicketPipe:
    """The tickets of one priority level."""

    def __init__(self) -> None:
        read_fd, write_fd = os.pipe()
        for fd in (read_fd, write_fd):
            os.set_blocking(fd, False)
        _resize(write_fd, _PIPE_BYTES)
        self.reader = Handle(read_fd)
        self.writer = Handle(write_fd)


class TicketQueue:
    """The shared part: pipe ends. Made by the parent for a row of the model table, given to every process.

    O_NONBLOCK belongs to the open file description, and each end of a pipe has its own: all ends but the reading one of
    the turn are non-blocking.
    """

    def __init__(self, levels: int = 1) -> None:
        self.levels = [TicketPipe() for _ in range(levels)]
        """By priority level, the first served first."""
        # O_DIRECT: each write is a packet, and a read takes one (pipe(2)).
        read_fd, write_fd = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
        os.set_blocking(write_fd, False)
        _resize(write_fd, _TURN_PIPE_BYTES)
        self.turn_reader = Handle(read_fd)
        self.turn_writer = Handle(write_fd)

    def pass_turn(self, generation: int, tickets: bytes = b"") -> bool:
        """Let the next instance read: whole tickets, which it has to look at first, travel along.

        Returns: False when there is no room, because nobody has taken the turns before; then nothing was sent.
        """
        with contextlib.suppress(BlockingIOError):
            os.write(self.turn_writer.fd, TURN_STRUCT.pack(generation) + tickets)
            return True
        return False

    def renew_turn(self, board: MappedScoreboard, model: int) -> None:
        """Replace the turn, in whose hands it may be: they may be dead or stopped. For the supervisor.

        A turn that waits in its pipe is in nobody's hands. Replaced while nobody comes to read, again and again, turns
        would fill the pipe, and the valid one could be the one that did not fit.
        """
        if _waits(self.turn_reader.fd):
            return
        board.turn[model] += 1
        self.pass_turn(board.turn[model])

    def wake_reader(self, generation: int) -> None:
        """Have whoever may read look up, which otherwise sleeps until a ticket comes: this one is void.

        A full pipe wakes it as well.
        """
        void = np.zeros(1, TICKET)
        void["generation"] = (generation + 1) % GENERATIONS
        with contextlib.suppress(BlockingIOError):
            os.write(self.levels[0].writer.fd, void.tobytes())

    def empty(self) -> None:
        """Drop whatever nobody will read any more: for the supervisor, when no reader and no writer is left."""
        for end in (*(level.reader for level in self.levels), self.turn_reader):
            while _waits(end.fd):
                os.read(end.fd, _PIPE_BYTES)


def _waits(fd: int) -> bool:
    """Whether there is anything to read."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _resize(fd: int, nbytes: int) -> None:
    # The user may be over the pipe quota (pipe(7)): the default of 64 KiB works as well, with more waiting outside.
    with contextlib.suppress(PermissionError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, nbytes)


class TicketReader:
    """A worker's end of the queue. levels: how many the model has; numbered from 0."""

    def __init__(self, queue: TicketQueue, levels: int = 1) -> None:
        self._fds = [level.reader.fd for level in queue.levels[:levels]]
        self._polls = [_poll_of(self._fds[: level + 1]) for level in range(levels)]

    def wait(self) -> None:
        """Block until a ticket of any level seems to wait."""
        self._polls[-1].poll()

    def wait_ns(self, left_ns: int, level: int = 0) -> None:
        """Block until a ticket of this level, or of one before it, seems to wait or the time is up."""
        if left_ns >= _MS_NS:
            self._polls[level].poll(left_ns // _MS_NS)
        elif left_ns > 0:
            time.sleep(
                left_ns / 1e9
            )  # poll(2) counts in milliseconds; of what comes meanwhile nothing is lost

    def read(self, at_most: int, level: int = 0) -> bytes:
        """Up to at_most whole tickets of this level, without waiting."""
        try:
            return os.read(self._fds[level], at_most * TICKET.itemsize)
        except BlockingIOError:
            return b""


def _poll_of(fds: Iterable[int]) -> select.poll:
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return poll


class TicketWriter:
    """An API server's end of one level of the queue. Owned by its event loop thread.

    Tickets that find the pipe full wait here in order; `overflow` says that there are some, and flush() tries
    again: to be called when the pipe has room.
    """

    def __init__(self, pipe: TicketPipe) -> None:
        self._pipe = pipe
        self._waiting: deque[bytes] = deque()

    @property
    def fd(self) -> int:
        """The pipe's writing end: writable when there is room."""
        return self._pipe.writer.fd

    @property
    def overflow(self) -> bool:
        """Whether tickets wait outside the pipe."""
        return bool(self._waiting)

    def write(self, tickets: bytes | bytearray) -> None:
        """Send whole tickets; never blocks."""
        chunk = TICKETS_PER_WRITE * TICKET.itemsize
        if len(tickets) <= chunk and not self._waiting:
            if not self._send(tickets):
                self._waiting.append(bytes(tickets))
            return
        self._waiting.extend(bytes(tickets[at : at + chunk]) for at in range(0, len(tickets), chunk))
        self.flush()

    def flush(self) -> None:
        """Send what waits here, as far as the pipe has room."""
        while self._waiting and self._send(self._waiting[0]):
            self._waiting.popleft()

    def drop(self) -> None:
        """Forget what waits here: tickets that are void."""
        self._waiting.clear()

    def _send(self, tickets: bytes | bytearray) -> bool:
        assert len(tickets) <= PIPE_BUF
        try:
            os.write(self._pipe.writer.fd, tickets)  # all or nothing: at most PIPE_BUF, non-blocking
        except BlockingIOError:
            return False
        return True
