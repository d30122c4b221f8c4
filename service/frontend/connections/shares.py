"""Which API server's turn it is to take the next connection: that of the one with the fewest.

All API servers wait on the same listening sockets, so a connection is lost with none of them; but the kernel wakes
all, and whoever is first would take everything that waits. So each takes only while it has hardly more than any other,
by the numbers on the scoreboard. One that does not come in time, because it is stopped or busy, is left
out. Knows no sockets.
"""

import time
from collections.abc import Iterator
from typing import Final

from foldserve.service.ipc.scoreboard import MappedScoreboard

SLACK: Final = 8
"""One API server may have this part (an eighth) more than the one with the fewest: with many connections, evenness to
the last one is not worth a wait."""

FORGET_S: Final = 0.2
"""How long one that did not come is not waited for."""


class Shares:
    """One API server's view of who has how many connections; it counts its own."""

    def __init__(self, board: MappedScoreboard, index: int) -> None:
        self._connections = board.connections
        self._index = index
        self._others = [other for other in range(board.dimensions.api_servers) if other != index]
        self._late_until_s: dict[int, float] = {}

    @property
    def mine(self) -> int:
        """The connections that this API server has."""
        return self._connections[self._index] - 1

    def begin(self) -> None:
        """From now on this API server takes connections."""
        self._connections[self._index] = 1

    def end(self) -> None:
        """It takes none any more: nobody is to wait for it."""
        self._connections[self._index] = 0

    def came(self) -> None:
        """It has taken one."""
        self._connections[self._index] += 1

    def left(self) -> None:
        """One of its connections has ended."""
        if self._connections[self._index] > 1:  # else it takes none any more
            self._connections[self._index] -= 1

    def my_turn(self) -> bool:
        """Whether none of those that are waited for has clearly fewer."""
        mine = self.mine
        return not any(mine > has + has // SLACK for _, has in self._waited_for())

    def wait_no_longer(self) -> None:
        """Those whose turn it is do not come: leave them out for a while."""
        mine, until_s = self.mine, time.monotonic() + FORGET_S
        for other, has in list(self._waited_for()):
            if has < mine:
                self._late_until_s[other] = until_s

    def _waited_for(self) -> Iterator[tuple[int, int]]:
        """The others that take connections and are not late, with how many each has."""
        if self._late_until_s:
            now_s = time.monotonic()
            self._late_until_s = {one: until for one, until in self._late_until_s.items() if until > now_s}
        for other in self._others:
            if (has := self._connections[other]) and other not in self._late_until_s:
                yield other, has - 1
