"""The folder of one running server: its shared metrics and its workers' reports, gone when it ends.

Lies in /dev/shm (memory, not disk) where there is one. The owner holds a lock on the folder for as long as it
lives, and forked processes hold it with it; the kernel drops the lock when the last of them dies, however it
dies. So a folder whose lock can be taken belongs to a server that is gone, and the next start removes it: no
process ids are compared, which containers sharing /dev/shm may both use.
"""

import fcntl
import logging
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

log = logging.getLogger(__name__)

PREFIX = "foldserve-"
_SHARED_MEMORY = Path("/dev/shm")


def default_parent() -> Path:
    """Where runtime folders are made."""
    usable = _SHARED_MEMORY.is_dir() and os.access(_SHARED_MEMORY, os.W_OK)
    return _SHARED_MEMORY if usable else Path(tempfile.gettempdir())


class RuntimeFolder:
    """A context manager that makes the folder, and removes it at the end. The supervisor owns it."""

    def __init__(self, parent: Path | None = None) -> None:
        self._parent = parent or default_parent()
        self.path = Path()
        self._lock = -1

    def __enter__(self) -> "RuntimeFolder":
        remove_stale(self._parent)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=self._parent))
            lock = _take_lock(self.path, wait=True)
            # Another server's start may have taken the new, not yet locked folder for a stale one.
            if lock is not None and self.path.is_dir():
                self._lock = lock
                return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def remove_stale(parent: Path) -> list[Path]:
    """Remove the folders of servers that are gone; return them."""
    removed = []
    for folder in sorted(parent.glob(f"{PREFIX}*")):
        try:
            lock = _take_lock(folder, wait=False)
        except OSError:  # another user's: not ours to judge
            continue
        if lock is None:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        log.info("removed %s, left behind by a server that is gone", folder)
        removed.append(folder)
    return removed


def _take_lock(folder: Path, wait: bool) -> int | None:
    """An open descriptor that holds the folder's lock; None when held elsewhere or gone."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(fd)
        return None
    return fd
