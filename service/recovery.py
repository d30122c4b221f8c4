"""What an API server does when a worker, or another API server, has died: no request of its own is lost.

Run on the event loop, told by the supervisor, which knows that the process is dead: nothing of it can still
write. The order matters: first the records it left behind, then the slots it held, then the tickets that
died in its hands.
"""

import logging

from service.dispatch import Dispatcher
from service.errors import ModelCrashed
from service.lifecycle import MAX_DEATHS, SETTLED, State
from service.ticketed import Ticketed

_log = logging.getLogger("foldserve.recovery")


def after_worker_death(dispatcher: Dispatcher, serial: int) -> list[Ticketed]:
    """Run again, or fail for good, what the worker with this serial number held; return what is run again."""
    dispatcher.receive()
    again: list[Ticketed] = []
    arena = dispatcher.arena
    for request in list(dispatcher.in_flight.values()):
        assert request.place is not None
        state = State(int(arena.state[request.place.slot]))
        if state == State.QUEUED or int(arena.worker[request.place.slot]) != serial:
            continue
        if state == State.DONE:
            # It finished, and died before its record was sent.
            dispatcher.settle(request, None)
        elif (state == State.TAKEN or state in SETTLED) and _retry(dispatcher, request):
            again.append(request)
    return again + after_any_death(dispatcher)


def _retry(dispatcher: Dispatcher, request: Ticketed) -> bool:
    assert request.place is not None
    bystander = request.place.take_held()
    if request.given_up:
        dispatcher.settle(request, None)
        return False
    # Its batch had not begun: whatever killed the worker, it was not this request.
    request.deaths += not bystander
    if request.deaths >= MAX_DEATHS:
        _log.error(
            "request %s to %s/%s was being run at %d deaths of a worker: it gets model_crashed and is not tried again",
            request.request_id,
            request.lane.model,
            request.lane.version,
            request.deaths,
        )
        dispatcher.settle(
            request,
            ModelCrashed(
                f"the process that ran this request died, {request.deaths} times; the request is not tried again; "
                "check its values, and the server's log under the request id"
            ),
        )
        return False
    dispatcher.enqueue(request)
    return True


def after_any_death(dispatcher: Dispatcher) -> list[Ticketed]:
    """Queue again every request whose ticket died with its reader; return them.

    Under each queue's lock no worker is between reading a ticket and marking its slot, so a slot that says
    QUEUED and has no ticket in the pipe has lost it.
    """
    dispatcher.flush()
    lost: list[Ticketed] = []
    for lane, writer in zip(dispatcher.lanes, dispatcher.writers, strict=True):
        with writer.contents() as tickets:
            mine = tickets[tickets["api"] == dispatcher.index]
            waiting = set(zip(mine["slot"].tolist(), mine["attempt"].tolist(), strict=True))
            lost += [
                request
                for request in dispatcher.in_flight.values()
                if request.lane is lane
                and request.place is not None
                and dispatcher.arena.state[request.place.slot] == State.QUEUED
                and (request.place.slot, request.place.attempt) not in waiting
            ]
    for request in lost:
        dispatcher.enqueue(request)
    dispatcher.flush()
    return lost
