"""One model's queue: a pipe of tickets that any worker may read, and the lock under which they are taken.

API servers write tickets without the lock (a write of at most PIPE_BUF is atomic). A worker reads under the
lock and marks each slot as taken before it lets go, so whoever holds the lock sees every request either with
a ticket in the pipe or marked as somebody's. The kernel drops a dead process's lock. If a worker dies between
the read and the mark, its tickets are gone and their slots still say QUEUED: recovery.after_any_death() finds
these by comparing the slots with the pipe, and is run by every API server after any death.
"""

import contextlib
import fcntl
import os
import select
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np

from service.transport.handles import Handle, SharedMemory
from service.transport.records import PIPE_BUF, TICKET, TICKETS_PER_WRITE

_PIPE_BYTES: Final = 1 << 18
"""Capacity asked for per queue; what does not fit waits in the API server's own memory."""


class ModelQueue:
    """The shared part: pipe ends and the lock's byte. Made by the parent, given to every process.

    Only the writing side must not block; O_NONBLOCK belongs to the open file description, and each end of a
    pipe has its own.
    """

    def __init__(self, index: int, locks: SharedMemory) -> None:
        self.index = index
        self.locks = locks
        read_fd, write_fd = os.pipe()
        for fd in (read_fd, write_fd):
            os.set_blocking(fd, False)
        # The user may be over the pipe quota (pipe(7)): the default of 64 KiB works as well, with more waiting outside.
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self.reader = Handle(read_fd)
        self.writer = Handle(write_fd)


class QueueLock:
    """The queue's lock in one process: a POSIX record lock between processes, a thread lock within.

    `with lock:` waits while another thread or process has it, which is microseconds. POSIX locks do not exclude
    threads of one process, hence both. They vanish when the holder dies; they also vanish when the process closes
    any descriptor of the file, so nothing here ever closes one.
    """

    def __init__(self, queue: ModelQueue) -> None:
        self._queue = queue
        self._threads = threading.Lock()

    def __enter__(self) -> None:
        self._threads.acquire()
        try:
            fcntl.lockf(self._queue.locks.handle.fd, fcntl.LOCK_EX, 1, self._queue.index)
        except BaseException:
            self._threads.release()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            fcntl.lockf(self._queue.locks.handle.fd, fcntl.LOCK_UN, 1, self._queue.index)
        finally:
            self._threads.release()

    def passes(self) -> bool:
        """Whether nobody holds it at this moment; does not wait."""
        if not self._threads.acquire(blocking=False):
            return False
        fd, index = self._queue.locks.handle.fd, self._queue.index
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, index)
            fcntl.lockf(fd, fcntl.LOCK_UN, 1, index)
        except (BlockingIOError, PermissionError):
            return False
        finally:
            self._threads.release()
        return True


class TicketReader:
    """A worker's end of the queue."""

    def __init__(self, queue: ModelQueue, lock: QueueLock) -> None:
        self.lock = lock
        self._fd = queue.reader.fd
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until a ticket seems to wait (another worker may be quicker); False when the time is up."""
        return bool(self._poll.poll(None if timeout_s is None else max(0.0, timeout_s * 1000.0)))

    def read(self, at_most: int) -> bytes:
        """Up to at_most whole tickets, without waiting; the caller holds the lock."""
        try:
            return os.read(self._fd, at_most * TICKET.itemsize)
        except BlockingIOError:
            return b""


class TicketWriter:
    """An API server's end of the queue. Owned by its event loop thread.

    Tickets that find the pipe full wait here in order; `overflow` says that there are some, and flush() tries
    again: to be called when the pipe has room.
    """

    def __init__(self, queue: ModelQueue, lock: QueueLock) -> None:
        self._queue = queue
        self._lock = lock
        self._waiting: deque[bytes] = deque()

    @property
    def fd(self) -> int:
        """The pipe's writing end: writable when there is room."""
        return self._queue.writer.fd

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

    def _send(self, tickets: bytes | bytearray) -> bool:
        assert len(tickets) <= PIPE_BUF
        try:
            os.write(self._queue.writer.fd, tickets)  # all or nothing: at most PIPE_BUF, non-blocking
        except BlockingIOError:
            return False
        return True

    @contextmanager
    def contents(self) -> Iterator[np.ndarray]:
        """Under the lock: all tickets that wait in the pipe and here, taken out and written back at the end.

        While the caller looks at them no worker can take any, so the state of every slot is exact.
        """
        with self._lock:
            parts = []
            while True:
                try:
                    parts.append(os.read(self._queue.reader.fd, _PIPE_BYTES))
                except BlockingIOError:
                    break
            in_pipe = b"".join(parts)
            outside = b"".join(self._waiting)
            self._waiting.clear()
            tickets = np.frombuffer(in_pipe + outside, TICKET)
            try:
                yield tickets
            finally:
                if len(tickets):
                    self.write(tickets.tobytes())
