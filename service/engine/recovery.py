"""What an API server does when a worker has died: no request of its own is lost.

Run on the event loop, told by the supervisor, which knows that the process is dead: nothing of it can still
write. The slots that it held are known by its number. The tickets that died in its hands cannot be seen, so every
ticket that waits is made void and written again, after a moment in which each instance has been seen not to be marking
slots: who had looked at one before has marked it by then.
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
"""Between two looks at whether anybody is still marking: longer than board.SETTLE_NS."""

_log = logging.getLogger("foldserve.recovery")


def after_worker_death(dispatcher: Dispatcher, incarnation: int) -> list[PendingRequest]:
    """Run again, or fail for good, what the worker with this incarnation number held or may have had in hand.

    Returns: what it held and is run again. What it may have had in hand is known, and written anew, a moment later.
    """
    lost = LostTickets(dispatcher)  # first: a ticket that is written from now on was in no dead hands
    lost.check_later()
    return retry_held(dispatcher, incarnation)


def retry_held(dispatcher: Dispatcher, incarnation: int) -> list[PendingRequest]:
    """Run again, or fail for good, what the dead worker had marked as its own. Returns: what is run again."""
    dispatcher.receive()
    again: list[PendingRequest] = []
    for request in list(dispatcher.in_flight.values()):
        assert request.place is not None
        state = State(int(dispatcher.arena.state[request.place.slot]))
        if state == State.QUEUED or int(dispatcher.arena.worker[request.place.slot]) != incarnation:
            continue
        if state == State.DONE:
            # It finished, and died before its record was sent.
            dispatcher.complete(request, None)
        elif (state == State.TAKEN or state in COMPLETED) and _retry(dispatcher, request):
            again.append(request)
    return again


def _retry(dispatcher: Dispatcher, request: PendingRequest) -> bool:
    assert request.place is not None
    waiting = request.place.pop_waiting()
    if request.cancelled:
        dispatcher.complete(request, None)
        return False
    # Its batch had not begun: whatever killed the worker, it was not this request.
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
    """The search for the tickets that a dead worker had in its hands; begins when it is made. Of no use afterwards.

    Several at a time do not disturb each other: a request that one has given a new attempt is not the others' any more.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._voided: list[tuple[PendingRequest, int]] = []
        """Requests whose tickets were made void, with the attempt that it was."""
        dispatcher.drop_unsent()
        for request in dispatcher.in_flight.values():
            place = request.place
            if place is not None and place.state == State.QUEUED:
                place.void_attempt()
                self._voided.append((request, place.attempt))
        self._since_ns = time.monotonic_ns()

    @property
    def done(self) -> bool:
        """Whether it has found out which tickets are lost."""
        return not self._voided

    def check_later(self) -> None:
        """Look until it is over, by a timer."""
        if not self.done:
            asyncio.get_running_loop().call_later(_CHECK_S, self._check_again)

    def _check_again(self) -> None:
        self.check()
        self.check_later()

    def check(self) -> None:
        """Write the tickets again that were made void before anybody had looked at them, unless it is too early."""
        dispatcher = self._dispatcher
        if not dispatcher.board.markings_are_over(self._since_ns):
            return
        voided, self._voided = self._voided, []
        for request, attempt in voided:
            place = request.place
            if (
                place is None
                or dispatcher.in_flight.get(place.slot) is not request
                or place.attempt != attempt
            ):
                continue  # answered meanwhile, or queued again
            if place.state != State.QUEUED:
                continue  # somebody had looked at it just before, and has it now
            if request.cancelled:
                dispatcher.complete(request, None)
            else:
                dispatcher.enqueue(request)
        dispatcher.flush()
