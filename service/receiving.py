"""Bounds the bodies that arrive in parts on the short way, over all connections of an API server.

A body that comes whole with its head is never counted: it is gone from the connection in the same turn of the
event loop. What comes in parts may stay for as long as its client likes to take, and a flood of half-sent bodies must
not take the arena's room and slots from those who send theirs at once. Pure accounting: no clock, no I/O. Owned by the
event loop thread.
"""

from service.body import BodyMemory
from service.errors import QueueFull


class Receiving:
    """The half-received bodies. memory: what they count in, with those of the long way. limit: how many may be."""

    def __init__(self, memory: BodyMemory, limit: int) -> None:
        self.memory = memory
        self.limit = limit
        self.bodies = 0

    def begin(self, nbytes: int) -> "HalfBody":
        """A body of this length, of which a part has come. Raises: QueueFull when there are too many."""
        if self.bodies >= self.limit:
            raise QueueFull(
                f"{self.bodies} request bodies are being received in parts, which is the most at a time; send the "
                "body in one go, or try again later"
            )
        self.memory.take(nbytes)
        self.bodies += 1
        return HalfBody(self, nbytes)


class HalfBody:
    """What one body holds until end()."""

    __slots__ = ("_nbytes", "_of")

    def __init__(self, of: Receiving, nbytes: int) -> None:
        self._of = of
        self._nbytes = nbytes

    def end(self) -> None:
        """The body is whole, or was given up: it holds nothing here any more. Once."""
        self._of.memory.give(self._nbytes)
        self._of.bodies -= 1
