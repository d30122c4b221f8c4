"""What an API server does when a worker has died, so that none of its requests is lost.

Runs on the event loop when the supervisor reports the death: the process is gone, and cannot write any more. Two kinds
of requests may have died with it:

- those whose slots it had marked as TAKEN: each slot names its worker, by incarnation. They are queued again, or failed
  when they were running at the second crash (retry_held);
- those whose tickets it had read and not marked yet. They cannot be told from tickets that still wait in the pipe, so
  all waiting tickets are made void and sent again. Before that, every living instance must have been seen outside of
  mark(): one that had read a slot's header before has marked the slot by then (LostTickets).

Nothing here waits.
"""

import asyncio
import logging
import time
from typing import Final

from foldserve.service.engine.dispatcher import Dispatcher
from foldserve.service.engine.request import PendingRequest
from foldserve.service.errors import ModelCrashed, new_error_id
from foldserve.service.ipc.slots.slot_state import COMPLETED, MAX_CRASHES, State
from foldserve.service.logs.limits import with_id

_CHECK_S: Final = 0.002
"""Between two checks whether an instance is still marking: longer than scoreboard.SETTLE_NS."""

_log = logging.getLogger("foldserve.recovery")


def after_worker_death(dispatcher: Dispatcher, incarnation: int) -> list[PendingRequest]:
    """Queue again, or fail, the requests that the worker with this incarnation had marked or may have had read.

    Returns: those that it had marked and that are queued again. The tickets that it may have read are sent again a
    moment later.
    """
    lost = LostTickets(dispatcher)  # first: tickets that are sent from now on are not affected
    lost.check_later()
    return retry_held(dispatcher, incarnation)


def retry_held(dispatcher: Dispatcher, incarnation: int) -> list[PendingRequest]:
    """Queue again, or fail, the requests that the dead worker had marked. Returns: those queued again."""
    dispatcher.receive()
    again: list[PendingRequest] = []
    for request in list(dispatcher.in_flight.values()):
        assert request.allocation is not None
        state = State(int(dispatcher.arena.state[request.allocation.slot]))
        if state == State.QUEUED or int(dispatcher.arena.worker[request.allocation.slot]) != incarnation:
            continue
        if state == State.DONE:
            # It finished, and died before its record was sent.
            dispatcher.complete(request, None)
        elif (state == State.TAKEN or state in COMPLETED) and _retry(dispatcher, request):
            again.append(request)
    return again


def _retry(dispatcher: Dispatcher, request: PendingRequest) -> bool:
    assert request.allocation is not None
    waiting = request.allocation.pop_waiting()
    if request.cancelled:
        dispatcher.complete(request, None)
        return False
    # While its batch had not begun, the request cannot have caused the crash.
    request.crashes += not waiting
    if request.crashes >= MAX_CRASHES:
        error_id = new_error_id()
        _log.error(
            "request %s to %s/%s was running at %d crashes of a worker: it is answered model_crashed and not tried "
            "again, error id %s",
            *(request.request_id, request.queue.model, request.queue.version, request.crashes, error_id),
            extra=with_id(error_id),
        )
        dispatcher.complete(
            request,
            ModelCrashed(
                f"the process that ran this request died, {request.crashes} times; the request is not tried again; "
                f"check its values, and the server's log under error id {error_id}"
            ),
        )
        return False
    dispatcher.enqueue(request)
    return True


class LostTickets:
    """Sends again the tickets that a dead worker may have read and not marked. One object for each death.

    Several at a time do not disturb each other: a request whose ticket one has sent again is skipped by the others.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._voided: list[tuple[PendingRequest, int]] = []
        """Requests whose tickets were made void, with the attempt that was void."""
        dispatcher.drop_unsent()
        for request in dispatcher.in_flight.values():
            allocation = request.allocation
            if allocation is not None and allocation.state == State.QUEUED:
                allocation.void_attempt()
                self._voided.append((request, allocation.attempt))
        self._since_ns = time.monotonic_ns()

    @property
    def done(self) -> bool:
        """Whether the lost tickets have been sent again."""
        return not self._voided

    def check_later(self) -> None:
        """Check until it is done, by a timer."""
        if not self.done:
            asyncio.get_running_loop().call_later(_CHECK_S, self._check_again)

    def _check_again(self) -> None:
        self.check()
        self.check_later()

    def check(self) -> None:
        """Send the void tickets again, unless an instance may still be marking one of them."""
        dispatcher = self._dispatcher
        if not dispatcher.board.markings_are_over(self._since_ns):
            return
        voided, self._voided = self._voided, []
        for request, attempt in voided:
            allocation = request.allocation
            if (
                allocation is None
                or dispatcher.in_flight.get(allocation.slot) is not request
                or allocation.attempt != attempt
            ):
                continue  # answered meanwhile, or queued again
            if allocation.state != State.QUEUED:
                continue  # an instance marked it in time
            if request.cancelled:
                dispatcher.complete(request, None)
            else:
                dispatcher.enqueue(request)
        dispatcher.flush()
