"""How long a call may take, and how soon it is tried again. The clock is a parameter; nothing here waits."""

import random
import time
from collections.abc import Callable
from typing import Final

from foldserve.service.client.errors import DeadlinePassed, ServerRefused

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0
_SPREAD: Final = 0.25
"""Of a pause, at most, on top: so that clients which were refused together do not come back together."""
_ANSWER_S: Final = 0.25
_ANSWER_PART: Final = 0.1
"""What of the time that is left the server is not given, so that its word that the time is over can arrive."""


class TimeOver(Exception):
    """The time that a request was given passed without an answer."""


class Deadline:
    """When the time of a call is over."""

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        if not timeout_s > 0:
            raise ValueError(f"timeout_s is {timeout_s}; expected more than 0 seconds")
        self._timeout_s = timeout_s
        self._clock = clock
        self._until_s = clock() + timeout_s

    def left_s(self) -> float:
        """Seconds that are left. Raises: DeadlinePassed when none are."""
        left_s = self._until_s - self._clock()
        if left_s <= 0:
            raise self.passed()
        return left_s

    def passed(self) -> DeadlinePassed:
        """For a call whose time is over without a word of the server."""
        return DeadlinePassed(
            f"504 deadline_passed: no answer within timeout_s={self._timeout_s:g}; is the server busy, or unreachable?"
        )

    def pause_after(self, refused: ServerRefused) -> float:
        """How long to wait before another try. Raises: the refusal, when there is none or no time for one."""
        left_s, after_s = self._until_s - self._clock(), refused.retry_after_s
        if after_s is None or after_s >= left_s:
            raise refused
        return min(_spread(after_s), (after_s + left_s) / 2)  # the other half is for the answer


def servers_part_s(left_s: float) -> float:
    """Of the time that is left, what the server is told that it has."""
    return left_s - min(_ANSWER_S, left_s * _ANSWER_PART)


def pause_after_break_s(breaks: int) -> float:
    """How long to wait after so many connections that ended in one call.

    None after the first: a connection that was kept is often one that the server has closed meanwhile.
    """
    return 0.0 if breaks < 2 else _spread(min(_FIRST_PAUSE_S * 2 ** (breaks - 2), _LONGEST_PAUSE_S))


def _spread(seconds: float) -> float:
    return seconds * (1 + _SPREAD * random.random())
