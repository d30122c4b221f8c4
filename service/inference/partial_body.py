"""Bodies that arrive in parts: where they are kept until they are whole, and how much memory they may hold.

A body that comes whole with its head is never here. Of one that comes in parts only what has come counts, never what
its head declares. It is kept

- in the arena, where it will be read, as long as no whole request needs that memory: an ordinary body is copied once.
  This memory is only lent: when the arena is full, evict() moves the oldest partial body out, into memory of its own,
  so that no number of half-sent bodies can keep whole requests out;
- in memory of its own otherwise, and always if it is large, so that moving one out is never a long copy. When it is
  whole it is copied into the arena, a piece in each turn of the event loop.

Owned by the event loop thread.
"""

from collections.abc import Callable
from typing import Final

from foldserve.service.engine.codec_process import PIECE_BYTES
from foldserve.service.engine.dispatcher import Dispatcher
from foldserve.service.engine.request import PendingRequest
from foldserve.service.inference.body_budget import BodyBudget

LENT_BYTES: Final = 4 * 2**20
"""Larger bodies are kept in memory of their own: at most so much is copied when one is moved out of the arena."""
LENT_SHARE: Final = 2
"""Half-sent bodies are lent at most one in so many of the arena's slots and bytes."""
UNKNOWN: Final = -1
"""In place of a length: of a body whose length is only known at its end. It is kept in memory of its own."""
_PART_BYTES: Final = 256 * 1024


class PartialBodies:
    """The partial bodies of an API server. budget: bounds what they hold together."""

    def __init__(self, budget: BodyBudget, dispatcher: Dispatcher) -> None:
        self.budget = budget
        self.dispatcher = dispatcher
        self._lent: dict[PartialBody, int] = {}
        """The bytes of the arena that each is lent, the oldest first."""
        self._most_lent = len(dispatcher.arena.state) // LENT_SHARE
        self._most_lent_bytes = dispatcher.arena.data_bytes // LENT_SHARE

    def begin(
        self, request: PendingRequest, length: int, sizes: tuple[int, int], on_evicted: Callable[[], None]
    ) -> "PartialBody":
        """A body of this length, or of UNKNOWN, of which a part has come.

        Args:
            request: whose body it is; if it is lent memory of the arena, the body is kept there.
            sizes: bytes of inputs and of outputs to allocate for it in the arena.
            on_evicted: called when the body is evicted from the budget: the request is to be refused.
        Raises: TooLarge when it is larger than the whole budget.
        """
        if length > self.budget.limit_bytes:
            raise self.budget.never(length)
        partial = PartialBody(self, request, on_evicted)
        dispatcher, nbytes = self.dispatcher, sum(sizes)
        if (
            UNKNOWN < length <= LENT_BYTES
            and len(self._lent) < self._most_lent
            and dispatcher.lent_bytes + nbytes <= self._most_lent_bytes
            and dispatcher.lend(request, *sizes)
        ):
            self._lent[partial] = nbytes
            dispatcher.lent_bytes += nbytes
        return partial

    def evict(self) -> bool:
        """Move the oldest body that is in the arena out of it; False when there is none."""
        oldest = next(iter(self._lent), None)
        if oldest is None:
            return False
        oldest.move_out()
        return True

    def end_loan(self, partial: "PartialBody") -> None:
        """The memory of the arena that this body is lent, if it is, is lent no longer."""
        self.dispatcher.lent_bytes -= self._lent.pop(partial, 0)


class PartialBody:
    """One body, from its first part until end()."""

    __slots__ = ("_at", "_begin", "_holding", "_of", "_parts", "_request")

    def __init__(self, of: PartialBodies, request: PendingRequest, on_evicted: Callable[[], None]) -> None:
        self._of = of
        self._request = request
        self._holding = of.budget.open(on_evicted)
        self._begin = request.input_offset
        """Where it begins in the memory of the arena."""
        self._at = 0
        self._parts: list[bytearray] = []

    def add(self, chunk: bytes) -> None:
        """The next part. Raises: QueueFull."""
        at = self._at
        self.filled(len(chunk))
        allocation = self._request.allocation  # not before: filled() may evict others
        if allocation is not None:
            allocation.inputs[self._begin + at : self._begin + self._at] = chunk
        else:
            self._append(chunk)

    def _append(self, chunk: bytes) -> None:
        """Keep it, joined with the part before: as objects, a body of single bytes would take forty times its size."""
        parts = self._parts
        if parts and len(parts[-1]) + len(chunk) <= _PART_BYTES:
            parts[-1] += chunk
        else:
            parts.append(bytearray(chunk))

    def rest(self, nbytes: int) -> memoryview | None:
        """Where the next bytes go, as many at most: valid until the next call here. None outside of the arena."""
        allocation = self._request.allocation
        at = self._begin + self._at
        return None if allocation is None else allocation.inputs[at : at + nbytes]

    def filled(self, nbytes: int) -> None:
        """So many bytes were written into rest(). Raises: QueueFull."""
        if not self._holding.reserve(nbytes):
            raise self._of.budget.full(nbytes, self._at)
        self._at += nbytes

    def move_out(self) -> None:
        """Free its memory of the arena; keep what has come in memory of its own."""
        allocation = self._request.allocation
        assert allocation is not None
        self._parts = [bytearray(allocation.inputs[self._begin : self._begin + self._at])]
        self._of.end_loan(self)
        self._of.dispatcher.release(self._request)

    def copy_some(self, memory: memoryview, at: int) -> int:
        """Copy the next parts, PIECE_BYTES or one part more, into `memory` from `at` on, and drop them here.

        Returns: where the next parts go; 0 when there are none.
        """
        end = at + PIECE_BYTES
        while self._parts and at < end:
            part = self._parts.pop(0)
            memory[at : at + len(part)] = part
            at += len(part)
        return at if self._parts else 0

    def end(self) -> None:
        """The body is whole, or cancelled: it holds nothing here, and the memory of the arena is the request's own."""
        self._holding.end()
        self._parts.clear()
        self._of.end_loan(self)
