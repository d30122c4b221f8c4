"""What the batches of a model take in this worker: measured by its instances, published on the scoreboard."""

import threading
import time
from typing import Final

from foldserve.service.ipc.run_time import FRESH_NS, UNKNOWN, RunTimes
from foldserve.service.ipc.scoreboard import MappedScoreboard

_TELL_NS: Final = FRESH_NS // 100
"""How often it is published that a forecast still holds."""


class BatchTimes:
    """Of one model. Thread-safe: all of its instances in this worker measure, and no event loop waits for them."""

    def __init__(self, board: MappedScoreboard, worker: int, model: int) -> None:
        self._board = board
        self._place = (worker, model)
        self._learned = RunTimes()
        self._lock = threading.Lock()
        self._run_time = UNKNOWN
        self._measured_ns = 0
        self._told_ns = 0

    def run_ns(self, rows: int) -> int:
        """What a batch of so many rows takes at best; 0 while that is not known."""
        fresh = time.monotonic_ns() - self._measured_ns < FRESH_NS
        return self._run_time.of(rows) if fresh else 0

    def add(self, batch_s: float, rows: int) -> None:
        """Count a batch of `rows` rows, padding included."""
        now_ns = time.monotonic_ns()
        with self._lock:
            run_time = self._learned.add(rows, int(batch_s * 1e9), now_ns)
            self._measured_ns = now_ns
            if run_time is not self._run_time or now_ns - self._told_ns >= _TELL_NS:
                self._run_time, self._told_ns = run_time, now_ns
                self._board.write_run_time(*self._place, run_time, now_ns)
