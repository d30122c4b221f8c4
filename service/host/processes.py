"""Small things about processes and signals that Python leaves to the operating system.

Owner of the signal handlers: the supervising process. Its children are started with SIGINT, SIGTERM and
SIGHUP blocked: a terminal's Ctrl-C and end and many service managers signal every process of the group, and only the
supervisor may decide when the others end.
"""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType, TracebackType

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent dies, however it dies (Linux; elsewhere: nothing).

    parent: its process id; not needed in processes that multiprocessing started.
    """
    if sys.platform != "linux":
        return
    if parent is None:
        started_by = multiprocessing.parent_process()
        parent = None if started_by is None else started_by.pid
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


def leave_removed_folder() -> None:
    """Go to / when the working folder has been removed: a spawned process is given that folder, and fails there.

    A release's folder is taken away while the server runs; whatever the server needs has a whole path by then.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        os.chdir("/")


@contextlib.contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Processes started inside do not see the stop signals: blocked signals stay so across exec."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def open_standard_streams() -> None:
    """Open /dev/null as stdin, stdout and stderr where they are closed: the next file that is opened, a pipe of ours,
    would else be what everybody takes for them. To be called before anything is opened."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest that is free, and so this one
            os.set_inheritable(null, True)


class StopSignals:
    """Counts SIGINT, SIGTERM and SIGHUP, and makes a file descriptor readable at each, for the loop that waits.

    SIGHUP, the terminal's end, counts as the first signal only: terminals and service managers send it after another,
    and mean no haste by it. Where it is ignored (nohup) it stays so.

    A context manager; used in the main thread. Raises nothing in whatever code a signal happens to interrupt.
    In forked children the handler does nothing (uvicorn calls the handlers that it found when it ends).
    """

    def __init__(self) -> None:
        self.count = 0
        self._pid = os.getpid()
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def __enter__(self) -> "StopSignals":
        for number in STOP_SIGNALS:
            if number != signal.SIGHUP or self._before[number] != signal.SIG_IGN:
                signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._read

    def clear(self) -> None:
        """Make the descriptor unreadable until the next signal."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 1024)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._pid:
            self.count = max(1, self.count) if number == signal.SIGHUP else self.count + 1
            with contextlib.suppress(BlockingIOError):  # full: the loop is woken already
                os.write(self._write, b"\0")


def freeze_garbage() -> None:
    """Take what lives now out of later garbage collections; for when a process has set itself up.

    Modules and loaded models are most of it and never garbage, and each full collection would walk over them, which
    takes tens of milliseconds in which no request moves.
    """
    gc.collect()
    gc.freeze()
