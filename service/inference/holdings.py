"""Who holds how much of a bounded memory, and who gives way when it has run out.

What clients are slow to send, or to take, counts here by the bytes that are really there. When no more fit, others than
the one who brings more may have to give way, in the order of who has moved nothing for the longest time:

- who has moved nothing for STALLED_S: memory is for those who use it;
- who holds more than an equal share, as long as the one who brings more stays within it: however many connections a
  client fills, and however it trickles, another's first bytes find room.

Pure accounting: no I/O, and time only to tell who stands still. Owned by the event loop thread.
"""

import time
from collections.abc import Callable
from typing import Final

STALLED_S: Final = 2.0
"""Who moved no byte for so long gives way to those who do. Longer than a lost packet takes to be sent again."""


class Holdings:
    """All holdings together. clock_s: CLOCK_MONOTONIC."""

    def __init__(self, limit_bytes: int, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._clock_s = clock_s
        # In the order of their last move: the first stands still for the longest time.
        self._holders: dict[Holding, None] = {}

    def open(self, give_way: Callable[[], None]) -> "Holding":
        """A holding of nothing yet. give_way: called, once, when it was ended so that others have room."""
        holding = Holding(self, give_way)
        self._holders[holding] = None
        return holding

    def __len__(self) -> int:
        return len(self._holders)

    def now_s(self) -> float:
        """CLOCK_MONOTONIC."""
        return self._clock_s()

    def _make_room(self, nbytes: int, newcomer: "Holding") -> bool:
        """Whether so many bytes more fit, when others have given way as far as they must.

        To give way may end a connection, and with it the newcomer itself: then it may hold nothing any more.
        """
        share = self.limit_bytes // len(self._holders)
        modest = newcomer.nbytes + nbytes <= share
        now_s = self._clock_s()
        for holder in tuple(self._holders):
            if self.used_bytes + nbytes <= self.limit_bytes:
                break
            stalled = now_s - holder.moved_s >= STALLED_S
            if holder is not newcomer and holder.nbytes and (stalled or (modest and holder.nbytes > share)):
                self._end(holder)
        return newcomer in self._holders and self.used_bytes + nbytes <= self.limit_bytes

    def _end(self, holder: "Holding") -> None:
        holder.end()
        holder.give_way()


class Holding:
    """What one connection holds, until end()."""

    __slots__ = ("_of", "give_way", "moved_s", "nbytes")

    def __init__(self, of: Holdings, give_way: Callable[[], None]) -> None:
        self.nbytes = 0
        self.moved_s = of._clock_s()
        self.give_way = give_way
        self._of = of

    def take(self, nbytes: int) -> bool:
        """Hold so many bytes more. False when they do not fit, and then it holds what it held."""
        of = self._of
        if of.used_bytes + nbytes > of.limit_bytes and not of._make_room(nbytes, self):
            return False
        of.used_bytes += nbytes
        self.nbytes += nbytes
        self.moved()
        return True

    def take_anyway(self, nbytes: int) -> None:
        """Hold so many bytes more, or less if negative, whether they fit or not."""
        self._of.used_bytes += nbytes
        self.nbytes += nbytes

    def still_s(self) -> float:
        """Seconds since something of it went on."""
        return self._of._clock_s() - self.moved_s

    def moved(self) -> None:
        """Something of it went on just now."""
        of = self._of
        self.moved_s = of._clock_s()
        del of._holders[self]
        of._holders[self] = None

    def end(self) -> None:
        """It holds nothing any more. Once more does nothing."""
        self._of.used_bytes -= self.nbytes
        self.nbytes = 0
        self._of._holders.pop(self, None)
