"""When files change, told by the kernel (inotify(7)); nothing is polled.

What is watched are the folders of the files, and of every link on the way to them: files are mostly replaced and not
written into, a mounted Secret of Kubernetes changes by a link in its folder that is renamed, and certbot replaces links
that others may lead to. What another machine changes on a network file system is not told.
"""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_CLOSE_WRITE: Final = 0x8
_MOVED_TO: Final = 0x80
_CREATE: Final = 0x100
_DELETE: Final = 0x200
_MASK: Final = _CLOSE_WRITE | _MOVED_TO | _CREATE | _DELETE
_READ_BYTES: Final = 65_536
_MOST_LINKS: Final = 40
"""On the way to a file: Linux follows no more (path_resolution(7))."""


class FileChanges:
    """Readable when something has changed beside these files, or in them. Raises: OSError where that cannot be had."""

    def __init__(self, paths: Iterable[Path]) -> None:
        if sys.platform != "linux":
            raise OSError("only Linux tells of changed files")
        self._paths = tuple(paths)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._watch()

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._fd

    def clear(self) -> None:
        """Make it unreadable until the next change."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fd, _READ_BYTES):
                pass
        self._watch()  # links may lead elsewhere now; a folder that is watched already is the same watch

    def close(self) -> None:
        """Watch no more."""
        os.close(self._fd)

    def _watch(self) -> None:
        for folder in set().union(*map(folders_on_the_way, self._paths)):
            self._libc.inotify_add_watch(
                self._fd, os.fsencode(folder), _MASK
            )  # one that is gone is not watched


def folders_on_the_way(path: Path) -> set[Path]:
    """The folder of a file, and of every link by which the path leads there: a change in no other can make it lead to
    other content."""
    folders: set[Path] = set()
    at, links = Path("/"), 0
    left = list(reversed(path.absolute().parts[1:]))
    while left:
        name = left.pop()
        if name == "..":
            at = at.parent
            continue
        try:
            target = Path(os.readlink(at / name)) if links < _MOST_LINKS else None
        except OSError:
            target = None
        if target is not None:
            links += 1
            folders.add(at)
            left += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            at = Path("/") if target.is_absolute() else at
        else:
            at = at / name
    return folders | {at.parent}
