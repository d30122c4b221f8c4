"""Files whose changes are taken up while the server runs: looked at when the kernel tells that something changed."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from foldserve.service.documents import BadDocument, read_regular
from foldserve.service.host.file_changes import FileChanges

_log = logging.getLogger("foldserve.access")

_FILE_BYTES: Final = 32 * 2**20

Actions = Mapping[tuple[Path, ...], Callable[[], None]]
"""What is done when the content of any of these files is another."""


class WatchedFiles:
    """A helper of the supervisor (helpers.py): nothing of it ever ends, it only has something to do."""

    def __init__(self, actions: Actions) -> None:
        self._changes = FileChanges(path for paths in actions for path in paths)
        self._actions = actions
        self._seen = {paths: _sum_of(paths) for paths in actions}

    @classmethod
    def of(cls, actions: Actions) -> "WatchedFiles | None":
        """None where there are no files, or nobody tells of changes."""
        if not actions:
            return None
        try:
            return cls(actions)
        except OSError as error:
            _log.warning("changes of keys and certificates are taken up at the next start only: %s", error)
            return None

    def fileno(self) -> int:
        """Readable when something has changed."""
        return self._changes.fileno()

    def renew(self) -> None:
        """Take up what has changed."""
        self._changes.clear()
        for paths, act in self._actions.items():
            now = _sum_of(paths)
            if now != self._seen[paths]:
                self._seen[paths] = now
                act()


def _sum_of(paths: tuple[Path, ...]) -> bytes:
    """Of the contents of files; one that cannot be read is as if it were empty."""
    found = hashlib.sha256()
    for path in paths:
        try:
            content = read_regular(path, _FILE_BYTES)
        except (BadDocument, FileNotFoundError):
            content = b""
        found.update(hashlib.sha256(content).digest())
    return found.digest()
