"""What is dispatched: a request with a place in the arena, and the queue of its model version.

Plain data for dispatcher.py, which sets it, and for the two ways that requests come by, which own them.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Final

from foldserve.service.engine.model_queue import ModelQueue
from foldserve.service.errors import ServiceError
from foldserve.service.ipc.slots.slot_pool import SlotAllocation

NO_BOUND_S: Final = 1e9
"""The time of a request that has no bound: thirty years."""


class PendingRequest:
    """A request with a place in the arena. Owned by the event loop thread; the fields are the Dispatcher's to set.

    stages_s: seconds of queue, gather, run, scatter.
    """

    # Values until they are set: an object is made for every request, and each store in __init__ would show.
    place: SlotAllocation | None = None
    rows = 0
    dims: Sequence[int] = ()
    queued_ns = 0
    deadline_ns = 0
    crashes = 0
    cancelled = False
    stages_s = (0.0, 0.0, 0.0, 0.0)
    batch_rows = 0

    def __init__(self, queue: ModelQueue) -> None:
        self.queue = queue

    @property
    @abstractmethod
    def request_id(self) -> str:
        """For logs."""

    @abstractmethod
    def completed(self, error: ServiceError | None) -> None:
        """The request is over. Without an error its outputs stand in its place until the owner release()s it;
        with one the place is no longer the owner's."""


class ScratchPlace(PendingRequest):
    """A place that is no request's, or not yet: what is being decoded or encoded (engine/codec_process/)."""

    @property
    def request_id(self) -> str:
        """For logs."""
        return "(no request)"

    def completed(self, error: ServiceError | None) -> None:
        """Never queued, so never called."""
        raise AssertionError("a room is never queued")
