"""How quickly refused clients may come again: so that refusing does not eat what answering needs.

Where a model costs next to nothing, a refusal costs as much as an answer, and a flood of requests past the queue's
bound would leave no time for those within it. Each is refused at once all the same; but past RATE of them a second,
the connection that was refused is not read from for a while, and what its client sends meanwhile waits in the socket.
"""

from typing import Final

RATE: Final = 5_000
"""Refusals per second and API server: about a tenth of a core."""
FREE: Final = 500
"""Refusals in a burst that are followed by no pause."""


class Pace:
    """The pauses after refusals: a virtual clock that each refusal moves on by 1 / RATE (GCRA, ITU-T I.371)."""

    def __init__(self) -> None:
        self._due_s = 0.0

    def pause_s(self, now_s: float) -> float:
        """Count a refusal; seconds for which its connection is not to be read from."""
        self._due_s = max(self._due_s, now_s) + 1 / RATE
        return max(0.0, self._due_s - now_s - FREE / RATE)
