"""In which order a worker's models are loaded, so that one that never ends does not hold back the others.

One after the other, each serving as soon as it is loaded. On the CPU the next one does not wait long for one that is
slow: that goes on beside it. On a GPU it does, to the limit: what others do on a device may spoil the recording of CUDA
graphs. A runtime cannot be interrupted, so the thread of a model that is given up goes on; its result is dropped.
"""

import threading
import time
from collections.abc import Sequence
from typing import Final, Protocol

PATIENCE_S: Final = 5.0
"""How long the next model waits for one before it, on the CPU."""


class Loadable(Protocol):
    """A model version that can be loaded in this worker."""

    def load(self) -> None:
        """Load it; whether that succeeded is its own affair. Blocks."""
        ...

    def serve(self) -> None:
        """Let what is loaded serve."""
        ...

    def give_up(self, limit_s: float) -> None:
        """It took longer than so many seconds: tell, drop what is loaded, and never serve."""
        ...


class _Loading:
    """One version's loading, in a thread of its own."""

    def __init__(self, version: Loadable, limit_s: float | None) -> None:
        self._version = version
        self._limit_s = limit_s
        self._started_s = time.monotonic()
        self._lock = threading.Lock()
        self._given_up = self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait(self, at_most_s: float | None) -> None:
        """Wait until it is loaded, or for so long, or until its limit: then it is given up."""
        left_s = None
        if self._limit_s is not None:
            left_s = max(0.0, self._started_s + self._limit_s - time.monotonic())
        self._thread.join(min((s for s in (left_s, at_most_s) if s is not None), default=None))
        with self._lock:
            if not self._limit_s or self._given_up or self._ended:
                return
            if time.monotonic() - self._started_s >= self._limit_s:
                self._given_up = True
                self._version.give_up(self._limit_s)

    def _run(self) -> None:
        self._version.load()
        with self._lock:
            self._ended = True
            if self._given_up:
                self._version.give_up(self._limit_s or 0.0)
            else:
                self._version.serve()


def load_all(versions: Sequence[Loadable], limit_s: float | None, side_by_side: bool) -> None:
    """Load every version and let it serve; returns when each is loaded or given up.

    Args:
        limit_s: for each; None = no bound.
        side_by_side: whether others may be loaded while one is slow.
    """
    under_way = []
    for version in versions:
        under_way.append(_Loading(version, limit_s))
        under_way[-1].wait(PATIENCE_S if side_by_side else None)
    for loading in under_way:
        loading.wait(None)
