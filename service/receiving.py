"""Bounds the memory of bodies that arrive in parts, over all connections of an API server.

A body that comes whole with its head is never counted: it is gone from the connection in the same turn of the
event loop. What comes in parts may stay for as long as its client likes to take, and a flood of half-sent bodies must
neither grow the process nor take the places of those who send theirs at once. Pure accounting: no clock, no I/O.
Owned by the event loop thread.
"""

from service.errors import QueueFull


class Receiving:
    """Bytes that half-received bodies hold, and how many there are.

    limit_bytes: the most they may hold together. limit: how many there may be.
    """

    def __init__(self, limit_bytes: int, limit: int) -> None:
        self.limit_bytes = limit_bytes
        self.limit = limit
        self.held_bytes = 0
        self.bodies = 0

    def begin(self) -> "HalfBody":
        """A body of which the first part has come. Raises: QueueFull when there are too many already."""
        if self.bodies >= self.limit:
            raise QueueFull(
                f"{self.bodies} request bodies are being received in parts, which is the most at a time; send the "
                "body in one go, or try again later"
            )
        self.bodies += 1
        return HalfBody(self)


class HalfBody:
    """What one body holds until end()."""

    __slots__ = ("_nbytes", "_of")

    def __init__(self, of: Receiving) -> None:
        self._of: Receiving | None = of
        self._nbytes = 0

    def hold(self, nbytes: int) -> None:
        """Count nbytes more. Raises: QueueFull when all bodies together would hold too much; end() is still due."""
        of = self._of
        assert of is not None
        # A body larger than the bound is let in when it is the only one: it could never be received otherwise.
        if of.held_bytes + nbytes > of.limit_bytes and of.held_bytes > self._nbytes:
            raise QueueFull(
                f"bodies that are being received hold {of.held_bytes} of {of.limit_bytes} bytes; these {nbytes} do "
                "not fit; try again later, or have --receive-bytes raised"
            )
        of.held_bytes += nbytes
        self._nbytes += nbytes

    def end(self) -> None:
        """The body is whole, or was given up: it holds nothing here any more. May be called again."""
        if self._of is not None:
            self._of.held_bytes -= self._nbytes
            self._of.bodies -= 1
            self._of = None
