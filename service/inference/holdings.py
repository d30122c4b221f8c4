"""A bounded memory shared by many connections: how much each holds, and which are evicted when it is full.

What clients are slow to send, or to read, counts here by the bytes that are really there. When a holding wants to grow
and the memory is full, other holdings may be evicted, those without progress for the longest time first:

- those without progress for STALLED_S;
- those larger than an equal share, as long as the one that grows stays within its share: however many connections a
  client opens, and however slowly it sends, another client's first bytes are accepted.

Pure accounting: no I/O, and time only to see who has stalled. Owned by the event loop thread.
"""

import time
from collections.abc import Callable
from typing import Final

STALLED_S: Final = 2.0
"""After so long without progress a holding may be evicted. Longer than TCP takes to send a lost packet again."""


class Holdings:
    """The memory. clock_s: CLOCK_MONOTONIC."""

    def __init__(self, limit_bytes: int, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._clock_s = clock_s
        # In the order of their last progress: the first has stalled for the longest time.
        self._holders: dict[Holding, None] = {}

    def open(self, on_evicted: Callable[[], None]) -> "Holding":
        """A holding of nothing yet. on_evicted: called, once, when it was evicted."""
        holding = Holding(self, on_evicted)
        self._holders[holding] = None
        return holding

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__}: {self.used_bytes} of {self.limit_bytes} bytes in {len(self)} holdings>"
        )

    def __len__(self) -> int:
        return len(self._holders)

    def now_s(self) -> float:
        """CLOCK_MONOTONIC."""
        return self._clock_s()

    def _evict_for(self, nbytes: int, newcomer: "Holding") -> bool:
        """Evict others, as far as the rules allow it, until so many bytes more fit; whether they do.

        An eviction may end a connection, and with it the newcomer itself: then it may hold nothing any more.
        """
        share = self.limit_bytes // len(self._holders)
        modest = newcomer.nbytes + nbytes <= share
        now_s = self._clock_s()
        for holder in tuple(self._holders):
            if self.used_bytes + nbytes <= self.limit_bytes:
                break
            stalled = now_s - holder.moved_s >= STALLED_S
            if holder is not newcomer and holder.nbytes and (stalled or (modest and holder.nbytes > share)):
                self._evict(holder)
        return newcomer in self._holders and self.used_bytes + nbytes <= self.limit_bytes

    def _evict(self, holder: "Holding") -> None:
        holder.end()
        holder.on_evicted()


class Holding:
    """What one connection holds, until end()."""

    __slots__ = ("_of", "moved_s", "nbytes", "on_evicted")

    def __init__(self, of: Holdings, on_evicted: Callable[[], None]) -> None:
        self.nbytes = 0
        self.moved_s = of._clock_s()
        self.on_evicted = on_evicted
        self._of = of

    def reserve(self, nbytes: int) -> bool:
        """Grow by so many bytes. False when they do not fit; then it is unchanged."""
        of = self._of
        if of.used_bytes + nbytes > of.limit_bytes and not of._evict_for(nbytes, self):
            return False
        of.used_bytes += nbytes
        self.nbytes += nbytes
        self.moved()
        return True

    def adjust(self, nbytes: int) -> None:
        """Grow by so many bytes, or shrink if negative, whether they fit or not."""
        self._of.used_bytes += nbytes
        self.nbytes += nbytes

    def still_s(self) -> float:
        """Seconds since its last progress."""
        return self._of._clock_s() - self.moved_s

    def moved(self) -> None:
        """It has made progress just now."""
        of = self._of
        self.moved_s = of._clock_s()
        del of._holders[self]
        of._holders[self] = None

    def end(self) -> None:
        """It holds nothing any more. Once more does nothing."""
        self._of.used_bytes -= self.nbytes
        self.nbytes = 0
        self._of._holders.pop(self, None)
