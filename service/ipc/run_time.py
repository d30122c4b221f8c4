"""How long a model's batches take: learned from the quickest of the recent ones, as a + b * rows seconds.

The quickest, because one batch in a hundred is slow for reasons that have nothing to do with the next one: the process
was paused, the device was shared, memory was touched for the first time. Who is refused on a forecast is refused for
good, so it has to be a floor. It can be wrong all the same, and forgets: what nobody has measured again within FRESH_NS
counts for nothing, and a worker's death takes its measurements along.

Pure: clocks are passed in. One forecast for all who ask: admission, Retry-After, a batch's window, a device's gate.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

EPOCH_NS: Final = 5_000_000_000
"""The quickest batch of this time and of the time before count."""
FRESH_NS: Final = 2 * EPOCH_NS
"""A forecast that nobody has renewed for so long is none."""


class RunTime(NamedTuple):
    """What a batch takes, in nanoseconds: fixed_ns + row_ns * rows. Zeros while nothing is known."""

    fixed_ns: int = 0
    row_ns: int = 0

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return self.fixed_ns > 0 or self.row_ns > 0

    def of(self, rows: int) -> int:
        """Nanoseconds for a batch of so many rows."""
        return self.fixed_ns + self.row_ns * rows


UNKNOWN: Final = RunTime()


class RunTimes:
    """Learns from the batches of one model in one worker. Not thread-safe.

    Batches are kept apart by size, in powers of two: the quickest of each size, with the rows that it had.
    """

    def __init__(self) -> None:
        self._began_ns = 0
        self._now: dict[int, tuple[int, int]] = {}
        self._before: dict[int, tuple[int, int]] = {}
        self._line = UNKNOWN
        """What they make."""

    def add(self, rows: int, took_ns: int, now_ns: int) -> RunTime:
        """Count a batch of `rows` rows, padding included. Returns: the forecast from now on."""
        if now_ns - self._began_ns >= EPOCH_NS:
            self._before = self._now if now_ns - self._began_ns < 2 * EPOCH_NS else {}
            self._now = {}
            self._began_ns = now_ns
            self._line = UNKNOWN
        size = rows.bit_length()
        quickest = self._now.get(size)
        if quickest is None or took_ns * quickest[1] < quickest[0] * rows:
            self._now[size] = (max(1, took_ns), rows)
            self._line = UNKNOWN
        if self._line is UNKNOWN:
            self._line = self._fit()
        return self._line

    def _fit(self) -> RunTime:
        """A line through the quickest batches of the smallest and of the largest size."""
        sizes = self._now.keys() | self._before.keys()
        least, most = min(sizes), max(sizes)
        small_ns, small_rows = self._quickest(least)
        if least == most:
            # One size says nothing of the slope. All is taken to be fixed: the lowest that larger batches can take.
            return RunTime(small_ns, 0)
        large_ns, large_rows = self._quickest(most)
        # Few batches may be of one of the sizes, and all of them slow. But fewer rows take no more than many, and many
        # no more than as many batches of few.
        small_ns = min(small_ns, large_ns)
        large_ns = min(large_ns, small_ns * large_rows // small_rows)
        row_ns = (large_ns - small_ns) // (large_rows - small_rows)
        return RunTime(max(0, small_ns - row_ns * small_rows), row_ns)

    def _quickest(self, size: int) -> tuple[int, int]:
        found = [times[size] for times in (self._now, self._before) if size in times]
        return min(found, key=lambda one: one[0] / one[1])


def combined(of_workers: Iterable[tuple[RunTime, int]], now_ns: int) -> RunTime:
    """The forecast for a batch that whichever worker is quickest takes.

    Args:
        of_workers: each worker's, with when it was last renewed.
    """
    fresh = [time for time, renewed_ns in of_workers if time.known and now_ns - renewed_ns < FRESH_NS]
    if not fresh:
        return UNKNOWN
    return RunTime(min(time.fixed_ns for time in fresh), min(time.row_ns for time in fresh))
