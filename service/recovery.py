"""What an API server does when a worker has died: no request of its own is lost.

Run on the event loop, told by the supervisor, which knows that the process is dead: nothing of it can still
write. The order matters: first the records it left behind, then the slots it held, then the tickets that
died in its hands. Which those are cannot be seen, so every ticket that waits is made void and written again, after a
moment in which each instance has been seen not to be marking slots: who had looked at one before has marked it by then.
Nothing here waits.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from service.dispatch import Dispatcher
from service.errors import ModelCrashed, new_error_id
from service.lifecycle import MAX_DEATHS, SETTLED, State
from service.log_limits import with_id
from service.ticketed import Ticketed

_LOOK_S: Final = 0.002
"""Between two looks at whether anybody is still marking: longer than board.SETTLE_NS."""

_log = logging.getLogger("foldserve.recovery")


class Recovery:
    """Owned by the event loop thread of one API server.

    Args:
        again: called with each request that is run again because the worker that held it died.
    """

    def __init__(self, dispatcher: Dispatcher, again: Callable[[Ticketed], None]) -> None:
        self._dispatcher = dispatcher
        self._again = again
        self._voided: dict[int, tuple[Ticketed, int]] = {}
        """By slot: requests whose tickets were made void, with the attempt that it was."""
        self._since_ns = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waits(self) -> bool:
        """Whether it has not found out yet which tickets are lost."""
        return self._timer is not None

    def worker_died(self, serial: int) -> None:
        """Run again, or fail for good, what the worker with this serial number held or may have had in hand."""
        dispatcher = self._dispatcher
        dispatcher.receive()
        for request in list(dispatcher.in_flight.values()):
            assert request.place is not None
            state = State(int(dispatcher.arena.state[request.place.slot]))
            if state == State.QUEUED or int(dispatcher.arena.worker[request.place.slot]) != serial:
                continue
            if state == State.DONE:
                # It finished, and died before its record was sent.
                dispatcher.settle(request, None)
            elif (state == State.TAKEN or state in SETTLED) and self._retry(request):
                self._again(request)
        self._void_queued()

    def _retry(self, request: Ticketed) -> bool:
        assert request.place is not None
        bystander = request.place.take_held()
        if request.given_up:
            self._dispatcher.settle(request, None)
            return False
        # Its batch had not begun: whatever killed the worker, it was not this request.
        request.deaths += not bystander
        if request.deaths >= MAX_DEATHS:
            error_id = new_error_id()
            _log.error(
                "request %s to %s/%s was being run at %d deaths of a worker: it gets model_crashed and is not tried "
                "again, error id %s",
                *(request.request_id, request.lane.model, request.lane.version, request.deaths, error_id),
                extra=with_id(error_id),
            )
            self._dispatcher.settle(
                request,
                ModelCrashed(
                    f"the process that ran this request died, {request.deaths} times; the request is not tried again; "
                    f"check its values, and the server's log under error id {error_id}"
                ),
            )
            return False
        self._dispatcher.enqueue(request)
        return True

    def _void_queued(self) -> None:
        """Begin to find out which tickets are lost."""
        dispatcher = self._dispatcher
        dispatcher.drop_unsent()
        for request in dispatcher.in_flight.values():
            place = request.place
            if place is not None and place.state == State.QUEUED:
                place.void_attempt()
                self._voided[place.slot] = request, place.attempt
        self._since_ns = time.monotonic_ns()
        if self._timer is None and self._voided:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self.look)

    def look(self) -> None:
        """Write the tickets again that were made void before anybody had looked at them; later, if it is too early."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        dispatcher = self._dispatcher
        if not dispatcher.board.markings_are_over(self._since_ns):
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self.look)
            return
        voided, self._voided = self._voided, {}
        for slot, (request, attempt) in voided.items():
            place = request.place
            if dispatcher.in_flight.get(slot) is not request or place is None or place.attempt != attempt:
                continue  # answered meanwhile, or queued again
            if place.state != State.QUEUED:
                continue  # somebody had looked at it just before, and has it now
            if request.given_up:
                dispatcher.settle(request, None)
            else:
                dispatcher.enqueue(request)
        dispatcher.flush()
