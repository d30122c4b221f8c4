"""One worker dies in the moment in which another has a ticket in its hands: each request is run and answered once.

Whoever finds out which tickets died must not write one anew that another instance has just looked at: the slot would be
run twice, and freed under a writer.
"""

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from foldserve.service.engine.recovery import LostTickets, retry_held
from foldserve.service.ipc.scoreboard import SETTLE_NS
from foldserve.service.ipc.slots.slot_state import State
from foldserve.service.worker import ticket_consumer
from tests.service.engine.test_recovery import on_loop
from tests.service.engine_rig import Rig, RigWorker


class Death:
    """Another worker dies, once, when begin() is called; its recovery looks at once, and then by itself."""

    def __init__(self, rig: Rig, doomed: RigWorker) -> None:
        self.rig, self.doomed = rig, doomed
        self.search: LostTickets | None = None

    def begin(self) -> None:
        if self.search is None:
            self.rig.worker_dies(self.doomed)
            self.search = LostTickets(self.rig.dispatchers[0])
            retry_held(self.rig.dispatchers[0], self.doomed.incarnation)
            until_ns = time.monotonic_ns() + 2 * SETTLE_NS
            while time.monotonic_ns() < until_ns:
                pass  # now nothing but the other's marking can keep it
            self.search.check()
            self.search.check_later()

    async def over(self) -> None:
        assert self.search is not None
        while not self.search.done:
            await asyncio.sleep(0.001)  # it looks again by itself


def between_look_and_mark(death: Death, worker: RigWorker, patch: pytest.MonkeyPatch) -> None:
    set_state = ticket_consumer.set_state

    def later(memory: memoryview, header: int, state: int) -> None:
        if state == State.TAKEN:
            death.begin()
        set_state(memory, header, state)

    patch.setattr(ticket_consumer, "set_state", later)


def between_read_and_look(death: Death, worker: RigWorker, patch: pytest.MonkeyPatch) -> None:
    mark = worker.consumers[0].mark

    def later(tickets: Any) -> Any:
        death.begin()
        return mark(tickets)

    patch.setattr(worker.consumers[0], "mark", later)


def in_the_run(death: Death, worker: RigWorker, patch: pytest.MonkeyPatch) -> None:
    worker.sessions[0].on_run = lambda x: death.begin()


@pytest.mark.parametrize("moment", [between_read_and_look, between_look_and_mark, in_the_run])
@on_loop
async def test_tickets_in_another_workers_hands_are_run_and_answered_once(moment: Any) -> None:
    rig = Rig(workers=3)
    doomed, other = rig.new_worker(0), rig.new_worker(1)
    asked = [rig.ask(value) for value in (1.0, 2.0, 3.0)]
    death = Death(rig, doomed)
    with pytest.MonkeyPatch.context() as patch:
        moment(death, other, patch)
        other.loops[0].step(wait=False)
    await death.over()
    following = [rig.ask(value) for value in (4.0, 5.0, 6.0)]  # in the same slots, if one was freed too early
    third = rig.new_worker(2)
    rig.work(third)
    rig.work(other)
    assert all(request.right for request in (*asked, *following))
    rows = np.concatenate([batch[:, 0] for worker in (other, third) for batch in worker.sessions[0].batches])
    assert sorted(rows.tolist()) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert rig.all_free()
