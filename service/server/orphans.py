"""Buries processes of the server whose parent has died before them.

An API server that is killed leaves the processes that helped it. They end by themselves, and stay in the system's table
as zombies until their parent asks how. That would be process 1: in a container this server, or another that never asks.
Knows nothing of what they did.
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Collection
from types import FrameType, TracebackType
from typing import Final

from foldserve.service.metrics.process import children

_PR_SET_CHILD_SUBREAPER: Final = 36  # linux/prctl.h


class Orphans:
    """Of this process (Linux; elsewhere they are left to process 1). A context manager; used in the main thread.

    Args:
        ours: the children that somebody here waits for; they are left to him.
    """

    def __init__(self, ours: Callable[[], Collection[int]]) -> None:
        self._ours = ours
        self._pid = os.getpid()
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def __enter__(self) -> "Orphans":
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        # Where it was ignored, as some that start servers leave it, nobody would learn with which code a child ended.
        self._before = signal.signal(signal.SIGCHLD, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGCHLD, self._before)
        os.close(self._read)
        os.close(self._write)

    def fileno(self) -> int:
        """Readable when a child has ended."""
        return self._read

    def renew(self) -> None:
        """Bury those that are nobody's."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 1024)
        ours = self._ours()
        for pid in children(self._pid):
            if pid not in ours:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._pid:  # forked children inherit this, and bury their own
            with contextlib.suppress(BlockingIOError):  # full: the loop is woken already
                os.write(self._write, b"\0")
