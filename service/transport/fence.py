"""Waits until no worker can touch a dead API server's arena any more, so that a new one may begin in it."""

import contextlib
import os
import time
from collections.abc import Sequence
from typing import Final

from service.transport.board import MappedBoard
from service.transport.queues import QueueLock
from service.transport.transport import Transport

_LOOK_S: Final = 0.001
_READ_BYTES: Final = 1 << 16


def wait_until_untouched(
    transport: Transport, board: MappedBoard, locks: Sequence[QueueLock], api_server: int
) -> None:
    """Return once every batch that holds tickets of the API server's earlier life is over.

    Its epoch has been raised before. Whoever takes tickets from then on drops its old ones; whoever took some
    before is marked busy since before. A batch that hangs is ended by its own limit, and its worker's mark
    with it.
    """
    for lock in locks:
        with lock.held():
            pass  # nobody is between reading tickets and marking them any more
    now_ns = time.monotonic_ns()
    while True:
        # What is finished meanwhile has nobody to read its records: a full pipe would stop the worker.
        with contextlib.suppress(BlockingIOError):
            while os.read(transport.done[api_server].reader.fd, _READ_BYTES):
                pass
        if not any(0 < since <= now_ns for since in board.all_busy_since_ns()):
            return
        time.sleep(_LOOK_S)
