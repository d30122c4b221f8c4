"""What is dispatched: a request with memory in the arena, and the queue of its model version.

Plain data, set by dispatcher.py; owned by inference/request.py.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Final

from foldserve.service.access.quotas import Quota
from foldserve.service.engine.model_queue import ModelQueue
from foldserve.service.errors import DeadlinePassed, ModelFailed, ServiceError
from foldserve.service.ipc.records import Reason
from foldserve.service.ipc.slots.slot_pool import SlotAllocation

NO_BOUND_S: Final = 1e9
"""The time of a request that has no bound: thirty years."""


class PendingRequest:
    """A request with memory in the arena. Owned by the event loop thread; the Dispatcher sets the fields.

    input_offset: where its inputs begin in the allocation's input bytes. stages_s: seconds of queue, gather, run,
    scatter.
    """

    # Values until they are set: an object is made for every request, and each store in __init__ would show.
    allocation: SlotAllocation | None = None
    input_offset = 0
    rows = 0
    dims: Sequence[int] = ()
    queued_ns = 0
    deadline_ns = 0
    crashes = 0
    cancelled = False
    stages_s = (0.0, 0.0, 0.0, 0.0)
    batch_rows = 0
    quota: Quota | None = None
    """The limits of who asks; None where there are none."""

    def __init__(self, queue: ModelQueue) -> None:
        self.queue = queue
        self.level = queue.default_level

    def __repr__(self) -> str:
        state = "without memory" if self.allocation is None else repr(self.allocation)
        cancelled = ", cancelled" if self.cancelled else ""
        return (
            f"<{type(self).__name__} {self.request_id} to {self.queue.model}/{self.queue.version}: {self.rows} rows, "
            f"{self.crashes} crashes{cancelled}, {state}>"
        )

    @property
    @abstractmethod
    def request_id(self) -> str:
        """For logs."""

    @abstractmethod
    def completed(self, error: ServiceError | None) -> None:
        """Called once, when the request has left the queue. Without an error its outputs stay in its memory until the
        owner calls release(); with one the memory is freed already."""


class ScratchRequest(PendingRequest):
    """Memory of the arena that is not a request's, or not yet: what is being parsed or rendered (codec_process/)."""

    @property
    def request_id(self) -> str:
        """For logs."""
        return "(no request)"

    def completed(self, error: ServiceError | None) -> None:
        """Never queued, so never called."""
        raise AssertionError("scratch memory is never queued")


def failure(request: PendingRequest, reason: int) -> ServiceError:
    """The error that a done record of a FAILED slot stands for. reason: a Reason."""
    if reason == Reason.EXPIRED:
        return DeadlinePassed.after(None)
    assert request.allocation is not None
    text = request.allocation.outputs
    length = int.from_bytes(text[:4], "little")
    return ModelFailed(bytes(text[4 : 4 + length]).decode(errors="replace"))
