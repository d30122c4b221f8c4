"""How many rows one run of an instance may have, once its device had no memory for more: the batch limit.

    a run of 32 rows raises OutOfMemory   the limit falls to 16, or to the next smaller bucket
    16 rows need too much too             it falls further, as far as one row or the smallest bucket
    a minute later                        it rises one step: 32 are tried again when so many come
    they still need too much              it falls again, and rises after two minutes, four, ... an hour

It rises because the memory may have been another's for a moment: a neighbour on the device, or a model that was
loading. A server that kept the batch limit for ever would be slow until somebody looked. Trying costs one run that is
repeated in pieces, and fails nobody. The waits grow, because memory that a neighbour keeps need not be asked for
every minute.

Kept by the dynamic dims of the rows: a row's need depends on them, and one client's long rows must not make
everybody's batches small. Knows neither sessions nor requests.
"""

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

FIRST_WAIT_S: Final = 60.0
"""How long a batch limit holds before it rises a step."""
LONGEST_WAIT_S: Final = 3600.0
"""The most it waits, after steps that failed again and again."""
MOST_DIMS: Final = 64
"""Batch limits are kept of so many dims; past it the oldest is forgotten, and found again by a failed run."""


@dataclass
class _BatchLimit:
    rows: int
    wait_s: float
    rises_at_s: float
    risen: bool = False
    """Since it last fell."""


class BatchLimits:
    """The batch limits of one instance, by dims. Used by its thread alone.

    top: what holds where nothing fell, the model's max_batch_size.
    lowered: the dims whose batch limit fell; empty in the life of most instances.
    """

    def __init__(self, top: int, buckets: Sequence[int], clock: Callable[[], float] = time.monotonic) -> None:
        """buckets: allowed batch sizes, ascending, the last is `top`; empty = any."""
        self.top = top
        self.lowered: dict[bytes, _BatchLimit] = {}
        self._buckets = tuple(buckets)
        self._clock = clock

    @property
    def lowest(self) -> int:
        """Over all dims."""
        return min((limit.rows for limit in self.lowered.values()), default=self.top)

    def limit(self, dims: bytes) -> int:
        """The most rows of such dims that a run may have now; raises the batch limit when it is time."""
        limit = self.lowered.get(dims)
        if limit is None:
            return self.top
        now_s = self._clock()
        if now_s < limit.rises_at_s:
            return limit.rows
        if limit.rows >= self.top:  # reached a wait ago, and nothing fell: it is as if nothing ever had
            del self.lowered[dims]
            return self.top
        limit.rows = self._above(limit.rows)
        limit.rises_at_s = now_s + limit.wait_s
        limit.risen = True
        return limit.rows

    def lower(self, dims: bytes, rows: int) -> int | None:
        """A run of `rows` rows, padding included, raised OutOfMemory.

        Returns: the new batch limit; None when no smaller run is allowed.
        """
        smaller = self._below(rows)
        if not smaller:
            return None
        limit = self.lowered.get(dims)
        if limit is None:
            if len(self.lowered) == MOST_DIMS:
                del self.lowered[next(iter(self.lowered))]
            limit = self.lowered[dims] = _BatchLimit(smaller, FIRST_WAIT_S, 0.0)
        elif limit.risen:
            limit.wait_s = min(2 * limit.wait_s, LONGEST_WAIT_S)
        limit.rows, limit.risen = smaller, False
        limit.rises_at_s = self._clock() + limit.wait_s
        return smaller

    def _below(self, rows: int) -> int:
        """The next smaller allowed size; 0 when there is none."""
        if not self._buckets:
            return rows // 2
        place = bisect_left(self._buckets, rows)
        return self._buckets[place - 1] if place else 0

    def _above(self, rows: int) -> int:
        return self._buckets[bisect_right(self._buckets, rows)] if self._buckets else min(2 * rows, self.top)
