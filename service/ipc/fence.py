"""Tells when no worker can touch a dead API server's arena any more, so that a new one may begin in it."""

import contextlib
import os
import time
from typing import Final

from foldserve.service.ipc.handles import Handle
from foldserve.service.ipc.scoreboard import MappedScoreboard

_READ_BYTES: Final = 1 << 16


class Fence:
    """Passed once every batch that holds tickets of the API server's earlier life is over.

    Its epoch has been raised before. Whoever marks tickets from then on drops its old ones; whoever marked some
    before is busy since before. Never waits: a worker may hang or die meanwhile, and whoever asks is the one
    to end it and to clear its marks.

    Args:
        done: the reading end of the dead API server's pipe of done records.
    """

    def __init__(self, board: MappedScoreboard, done: Handle) -> None:
        self._board = board
        self._done_fd = done.fd
        self._since_ns = time.monotonic_ns()

    def passed(self) -> bool:
        """Whether nobody can touch the arena; ask again a little later if not."""
        if not self._board.markings_are_over(self._since_ns):
            return False
        # Nobody is between looking at the epoch and marking a slot: who holds old tickets is busy since before.
        touched = any(0 < since <= self._since_ns for since in self._board.all_busy_since_ns())
        # What they finished has nobody to read its records. Afterwards: the last ones too must be gone.
        with contextlib.suppress(BlockingIOError):
            while os.read(self._done_fd, _READ_BYTES):
                pass
        return not touched
