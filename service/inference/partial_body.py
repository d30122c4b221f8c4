"""Bodies that arrive in parts: where they wait, and what they may hold.

A body that comes whole with its head is never here. Of one that comes in parts only what came counts, never what its
head declares: it waits

- in its place of the arena, where it will be read, as long as there is room that nobody else needs: an ordinary body
  is copied once. The place is lent: when the arena has no room for a request that is whole, the oldest gives its place
  up and goes on in memory of its own (make_room), so that no number of half-sent bodies keeps whole ones out;
- in memory of its own otherwise, and if it is large, so that giving way is never a long copy. It is copied into its
  place when it is whole, a piece in each turn of the event loop.

Owned by the event loop thread.
"""

from collections.abc import Callable
from typing import Final

from foldserve.service.engine.codec_process import PIECE_BYTES
from foldserve.service.engine.dispatcher import Dispatcher
from foldserve.service.engine.request import PendingRequest
from foldserve.service.inference.body_budget import BodyBudget

LENT_BYTES: Final = 4 * 2**20
"""Larger bodies wait in memory of their own: so much is copied, at most, when one leaves its place."""
LENT_SHARE: Final = 2
"""Half-sent bodies are lent at most one in so many of the arena's slots and bytes."""
UNKNOWN: Final = -1
"""In place of a length: of a body whose end alone tells it. It waits in memory of its own."""
_PART_BYTES: Final = 256 * 1024


class PartialBodies:
    """The half-received bodies of an API server. budget: what they count in."""

    def __init__(self, budget: BodyBudget, dispatcher: Dispatcher) -> None:
        self.budget = budget
        self.dispatcher = dispatcher
        self._lent: dict[PartialBody, int] = {}
        """Bytes of the places that they wait in, the oldest first."""
        self._most_lent = len(dispatcher.arena.state) // LENT_SHARE
        self._most_lent_bytes = dispatcher.arena.data_bytes // LENT_SHARE

    def begin(
        self, request: PendingRequest, length: int, room: tuple[int, int], give_way: Callable[[], None]
    ) -> "PartialBody":
        """A body of this length, or of UNKNOWN, of which a part has come.

        Args:
            request: whose body it is; if it is lent a place, the body waits there.
            room: bytes of inputs and of outputs that such a place is to have.
            give_way: called when the body must give way to others: the request is to be refused.
        Raises: TooLarge when there would be no room for it if nobody else were there.
        """
        if length > self.budget.limit_bytes:
            raise self.budget.never(length)
        half = PartialBody(self, request, give_way)
        dispatcher, nbytes = self.dispatcher, sum(room)
        if (
            UNKNOWN < length <= LENT_BYTES
            and len(self._lent) < self._most_lent
            and dispatcher.lent_bytes + nbytes <= self._most_lent_bytes
            and dispatcher.lend(request, *room)
        ):
            self._lent[half] = nbytes
            dispatcher.lent_bytes += nbytes
        return half

    def make_room(self) -> bool:
        """Have the oldest body that has a place go on without; False when there is none."""
        oldest = next(iter(self._lent), None)
        if oldest is None:
            return False
        oldest.leave_its_place()
        return True

    def end_loan(self, half: "PartialBody") -> None:
        """The place that this body waits in, if it does, is lent no longer."""
        self.dispatcher.lent_bytes -= self._lent.pop(half, 0)


class PartialBody:
    """One body, from its first part until end()."""

    __slots__ = ("_at", "_holding", "_of", "_parts", "_request")

    def __init__(self, of: PartialBodies, request: PendingRequest, give_way: Callable[[], None]) -> None:
        self._of = of
        self._request = request
        self._holding = of.budget.open(give_way)
        self._at = 0
        self._parts: list[bytearray] = []

    def add(self, chunk: bytes) -> None:
        """The next part. Raises: QueueFull."""
        at = self._at
        self.filled(len(chunk))
        place = self._request.place  # not before: others may have had to give way
        if place is not None:
            place.inputs[at : self._at] = chunk
        else:
            self._append(chunk)

    def _append(self, chunk: bytes) -> None:
        """Keep it. Not as it is: a body that comes in single bytes would take forty times its size."""
        parts = self._parts
        if parts and len(parts[-1]) + len(chunk) <= _PART_BYTES:
            parts[-1] += chunk
        else:
            parts.append(bytearray(chunk))

    def rest(self, nbytes: int) -> memoryview | None:
        """Where the next bytes go, as many at most: good until anything else is done here. None without a place."""
        place = self._request.place
        return None if place is None else place.inputs[self._at : self._at + nbytes]

    def filled(self, nbytes: int) -> None:
        """So many bytes came, which stand in rest() already. Raises: QueueFull."""
        if not self._holding.take(nbytes):
            raise self._of.budget.full(nbytes, self._at)
        self._at += nbytes

    def leave_its_place(self) -> None:
        """Free the place, and keep what came of the body."""
        place = self._request.place
        assert place is not None
        self._parts = [bytearray(place.inputs[: self._at])]
        self._of.end_loan(self)
        self._of.dispatcher.release(self._request)

    def copy_some(self, memory: memoryview, at: int) -> int:
        """Copy the next parts into memory, PIECE_BYTES or one part more, and keep them no longer.

        Returns: where the rest goes, 0 for no rest.
        """
        end = at + PIECE_BYTES
        while self._parts and at < end:
            part = self._parts.pop(0)
            memory[at : at + len(part)] = part
            at += len(part)
        return at if self._parts else 0

    def end(self) -> None:
        """The body is whole, or was given up: it holds nothing here, and its place is the request's own."""
        self._holding.end()
        self._parts.clear()
        self._of.end_loan(self)
