"""Finds the children that do not answer: stopped, or with a thread that never lets go of the interpreter.

Each is asked through its lifeline from time to time, and answers on the scoreboard. What is counted are looks of this
process, not seconds: a machine that was paused as a whole, or a supervisor that was, finds nobody guilty of it.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Final, Generic, TypeVar

_CHECKS: Final = 4
"""Looks within the limit."""
_SHORTEST_S: Final = 0.25
"""Between two looks."""


Child = TypeVar("Child", bound=Hashable)


class Liveness(Generic[Child]):
    """Pure bookkeeping; no clock, no pipe.

    Args:
        limit_s: how long a child may take to answer.
    """

    def __init__(self, limit_s: float) -> None:
        self.every_s = max(limit_s / _CHECKS, _SHORTEST_S)
        """How often to look."""
        self._asked: dict[Child, tuple[int, int]] = {}
        """When each was asked (CLOCK_MONOTONIC), and at how many looks since then it had not answered."""

    def check(
        self,
        children: Iterable[Child],
        answered_ns: Callable[[Child], int],
        ask: Callable[[Child], None],
        now_ns: int,
    ) -> list[Child]:
        """Ask those that have answered, and return those that have not for longer than the limit.

        Args:
            children: who is able to answer by now.
            answered_ns: CLOCK_MONOTONIC of a child's last answer.
        """
        before, self._asked = self._asked, {}
        silent = []
        for child in children:
            asked_ns, looks = before.get(child, (0, 0))
            if answered_ns(child) >= asked_ns:
                ask(child)
                self._asked[child] = now_ns, 0
            else:
                self._asked[child] = asked_ns, looks + 1
                if looks + 1 > _CHECKS:
                    silent.append(child)
        return silent
