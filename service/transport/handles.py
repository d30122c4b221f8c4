"""File descriptors that reach the processes started with them.

Forked API servers inherit descriptors; spawned workers do not, so a handle pickles itself as
multiprocessing's DupFd, which passes the descriptor while the process is being spawned. Nothing has a name
in the file system, so nothing can be left behind there.
"""

import mmap
import os
from multiprocessing import reduction
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


class SharedMemory:
    """Anonymous memory that every process with the handle can map. Zeroed at first; untouched pages cost nothing."""

    def __init__(self, name: str, nbytes: int) -> None:
        self.nbytes = nbytes
        self.handle = Handle(os.memfd_create(f"foldserve-{name}", os.MFD_CLOEXEC))
        os.ftruncate(self.handle.fd, nbytes)

    def map(self) -> mmap.mmap:
        """A new mapping of the whole memory, shared with every other one."""
        return mmap.mmap(self.handle.fd, self.nbytes)
