"""When a batch begins with a lower priority level although a higher one waits: so that no request waits for ever.

What is promised, of each instance: once the oldest request of a level has waited for the age, and the instance has
taken no oldest request of that level for as long, one of the instance's next 2 * (levels - 1) batches begins with it.
With R the longest time from one batch of the instance to the next, a request with n others of its level before it is
thus taken within (n + 1) * (age + 2 * (levels - 1) * R), whatever comes meanwhile. In return the order of the levels is
never left for two batches in a row, however short the age and however long the batches: a request of the first level
waits for one batch more than it would without ageing.

Decides only; times are given.
"""

from collections.abc import Sequence


class Ageing:
    """Of one instance's batches.

    Args:
        levels: how many there are; numbered from 0, which is served first.
        age_ns: how long a level is passed over.
    """

    def __init__(self, levels: int, age_ns: int) -> None:
        self._age_ns = age_ns
        self._taken_ns = [0] * levels
        """When the oldest request of the level was last taken."""
        self._led = False
        """The last batch began with a level whose time had come."""

    def may_be_due(self, level: int, now_ns: int) -> bool:
        """Whether it depends on the level's oldest request whether the next batch begins with it."""
        return not self._led and now_ns - self._taken_ns[level] >= self._age_ns

    def due(self, queued_ns: Sequence[int], now_ns: int) -> int:
        """The level with which the next batch begins out of its order; 0 for none. To be asked once for each batch.

        Args:
            queued_ns: by level, since when its oldest request waits; negative where none does.
        """
        due, longest_ns = 0, self._age_ns - 1
        if not self._led:
            for level in range(1, len(queued_ns)):
                passed_over_ns = now_ns - max(queued_ns[level], self._taken_ns[level])
                if queued_ns[level] >= 0 and passed_over_ns > longest_ns:
                    due, longest_ns = level, passed_over_ns
        self._led = due > 0
        return due

    def took_oldest(self, level: int, now_ns: int) -> None:
        """The oldest request of the level is in a batch."""
        self._taken_ns[level] = now_ns
