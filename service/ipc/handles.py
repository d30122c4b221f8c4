"""File descriptors that reach the processes started with them.

Forked API servers inherit descriptors; spawned workers do not, so a handle pickles itself as
multiprocessing's DupFd, which passes the descriptor while the process is being spawned. Nothing has a name
in the file system, so nothing can be left behind there.
"""

import mmap
import os
from multiprocessing import context, reduction
from typing import Any


class Handle:
    """An open file descriptor, owned by this object, that can be given to a child process.

    Picklable only while a process is being spawned (multiprocessing's rule for DupFd).
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Close the descriptor in this process; further use is an error."""
        os.close(self.fd)
        self.fd = -1

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (reduction.DupFd(self.fd),)


def _rebuilt(duplicate: Any) -> Handle:
    return Handle(duplicate.detach())


class _Passing:
    """What multiprocessing asks, while it pickles for a process that is being started, about descriptors to pass."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    class DupFd:
        """In the other process: the descriptor, which has the same number there."""

        def __init__(self, fd: int) -> None:
            self._fd = fd

        def detach(self) -> int:
            """See multiprocessing."""
            return self._fd

    def duplicate_for_child(self, fd: int) -> int:
        """See multiprocessing."""
        self.fds.append(fd)
        return fd


def pickled_for_exec(value: object) -> tuple[bytes, list[int]]:
    """Pickle something that holds handles, for a program that is started with subprocess.

    Returns: the bytes, and the descriptors that must be passed (pass_fds).
    """
    passing = _Passing()
    context.set_spawning_popen(passing)  # type: ignore[arg-type]  # of this thread alone
    try:
        return bytes(reduction.ForkingPickler.dumps(value)), passing.fds
    finally:
        context.set_spawning_popen(None)


class SharedMemory:
    """Anonymous memory that every process with the handle can map. Zeroed at first; untouched pages cost nothing."""

    def __init__(self, name: str, nbytes: int) -> None:
        self.nbytes = nbytes
        self.handle = Handle(os.memfd_create(f"foldserve-{name}", os.MFD_CLOEXEC))
        os.ftruncate(self.handle.fd, nbytes)

    def map(self) -> mmap.mmap:
        """A new mapping of the whole memory, shared with every other one."""
        return mmap.mmap(self.handle.fd, self.nbytes)
