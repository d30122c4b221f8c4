"""How quickly refused clients may come again, so that refusals do not take the time that answers need.

Where a model costs next to nothing, a refusal costs as much as an answer, and a flood of requests past the queue's
bound would leave no time for those within it. Each is refused at once all the same. But when there are more than RATE
of them a second and this thread has hardly any time left, what comes next on the connection that was refused is not
looked at for a while. No longer than MOST_S: clients that use a connection for each request are not slowed down by it,
and would only have ever more of their connections kept. Past it the connection is closed with its answer.
"""

import time
from collections.abc import Callable
from typing import Final

RATE: Final = 1_000
"""Refusals per second that an API server without time to spare goes on giving: a few hundredths of a core."""
FREE: Final = 100
"""Refusals in a burst that are followed by no pause."""
MOST_S: Final = 1.0
"""The longest pause."""
CLOSE: Final = -1.0
"""In place of a pause: the connection is to be closed."""
BUSY: Final = 0.7
"""The part of a core from which on the event loop's thread has no time to spare."""
CHECK_S: Final = 0.05
"""Its use is measured no more often."""


class RefusalThrottle:
    """The pauses after refusals: a virtual clock that each refusal moves on by 1 / RATE (GCRA, ITU-T I.371).

    cpu_s: CPU seconds of the event loop's thread.
    """

    def __init__(self, cpu_s: Callable[[], float] = time.thread_time) -> None:
        self._cpu_s = cpu_s
        self._due_s = 0.0
        self._looked_s = 0.0
        self._used_s = 0.0
        self._busy = False

    def delay_s(self, now_s: float) -> float:
        """Count a refusal; seconds for which nothing more of its connection is to be looked at, or CLOSE.

        now_s: CLOCK_MONOTONIC.
        """
        due_s = max(self._due_s, now_s) + 1 / RATE
        pause_s = due_s - now_s - FREE / RATE
        if pause_s <= 0.0:
            self._due_s = due_s
            return 0.0
        if now_s - self._looked_s >= CHECK_S:
            used_s = self._cpu_s()
            self._busy = used_s - self._used_s >= BUSY * (now_s - self._looked_s)
            self._looked_s, self._used_s = now_s, used_s
        if not self._busy:
            self._due_s = now_s
            return 0.0
        if pause_s > MOST_S:
            return CLOSE  # whose client comes back on another connection, as late as it likes: not counted
        self._due_s = due_s
        return pause_s
