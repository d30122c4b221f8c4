"""Says when no worker can touch a dead API server's arena any more, so that a new one may start in it."""

import contextlib
import os
import time
from typing import Final

from foldserve.service.ipc.handles import Handle
from foldserve.service.ipc.scoreboard import MappedScoreboard

_READ_BYTES: Final = 1 << 16


class Fence:
    """Passed once every batch that holds tickets of the API server's earlier life has ended.

    Its epoch has been raised before. An instance that marks tickets from then on drops the old ones; one that marked
    some before is busy since before. Never waits: a worker may hang or die meanwhile, and the supervisor, which asks,
    is the one to end it and to clear its marks.

    Args:
        done: the reading end of the dead API server's pipe of done records.
    """

    def __init__(self, board: MappedScoreboard, done: Handle) -> None:
        self._board = board
        self._done_fd = done.fd
        self._since_ns = time.monotonic_ns()

    def passed(self) -> bool:
        """Whether no worker can touch the arena; ask again a little later if not."""
        if not self._board.markings_are_over(self._since_ns):
            return False
        # No instance is between reading the epoch and marking a slot: one that holds old tickets is busy since before.
        touched = any(0 < since <= self._since_ns for since in self._board.all_busy_since_ns())
        # Nobody reads the records of what they finished. Afterwards, so that the last ones are gone too.
        with contextlib.suppress(BlockingIOError):
            while os.read(self._done_fd, _READ_BYTES):
                pass
        return not touched
