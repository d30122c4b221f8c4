"""What an instance makes its own, and what it drops."""

import time

from foldserve.service.errors import DeadlinePassed
from foldserve.service.ipc.records import TICKET_STRUCT
from foldserve.service.ipc.slots.slot_state import State
from foldserve.service.worker.ticket_consumer import Ticket, TicketConsumer
from tests.service.engine.test_recovery import on_loop
from tests.service.engine_rig import RecordedRequest, Rig


def read(rig: Rig) -> list[Ticket]:
    """All tickets that wait for the first model, out of the pipe."""
    import os

    data = os.read(rig.transport.queues[0].levels[0].reader.fd, 1 << 18)
    return [Ticket._make(fields) for fields in TICKET_STRUCT.iter_unpack(data)]


@on_loop
async def test_marked_slots_carry_the_workers_incarnation_and_the_instance_is_busy_until_they_are_settled() -> (
    None
):
    rig = Rig()
    rig.ask(1.0)
    worker = rig.new_worker()
    consumer = worker.consumers[0]
    (ticket,) = consumer.mark(read(rig))
    assert rig.arena.state[ticket.slot] == State.TAKEN
    assert rig.arena.worker[ticket.slot] == worker.incarnation
    assert rig.board.busy_since_ns[0, 0] > 0
    consumer.rest()
    assert rig.board.busy_since_ns[0, 0] > 0
    consumer.completed(1)
    consumer.rest()
    assert rig.board.busy_since_ns[0, 0] == 0


@on_loop
async def test_marking_is_a_step_that_the_board_shows_and_that_ends() -> None:
    rig = Rig()
    rig.ask(1.0)
    consumer = rig.new_worker().consumers[0]
    seen: list[tuple[list[int], bool]] = []
    mark = consumer._mark

    def look(ticket: Ticket, now_ns: int, dropped: list[object]) -> bool:
        now_ns = time.monotonic_ns()
        seen.append((rig.board.overdue_workers(now_ns), rig.board.marking_since_ns[0, 0] > 0))
        return mark(ticket, now_ns, dropped)  # type: ignore[arg-type]

    consumer._mark = look  # type: ignore[method-assign,assignment]
    consumer.mark(read(rig))
    assert seen == [([0], True)]
    assert rig.board.marking_since_ns[0, 0] == 0
    assert rig.board.taken_ns[0, 0] > 0


@on_loop
async def test_marking_nothing_leaves_the_instance_idle() -> None:
    rig = Rig()
    request = rig.ask(1.0)
    assert request.allocation is not None
    request.allocation.void_attempt()
    consumer = rig.new_worker().consumers[0]
    assert consumer.mark(read(rig)) == []
    consumer.rest()
    assert rig.board.all_busy_since_ns() == [0, 0]
    assert rig.board.overdue_workers(time.monotonic_ns() + 1) == []


@on_loop
async def test_late_and_given_up_requests_are_dropped_and_freed() -> None:
    rig = Rig(workers=1)
    late, gone, good = (rig.ask(value) for value in (1.0, 2.0, 3.0))
    rig.dispatcher.cancel(gone)
    worker = rig.new_worker()
    tickets = read(rig)
    marked = worker.consumers[0].mark([tickets[0]._replace(deadline_ns=1), *tickets[1:]])
    assert [ticket.slot for ticket in marked] == [tickets[2].slot]
    rig.dispatcher.receive()
    assert isinstance(late.ends[0], DeadlinePassed)
    assert gone.ends == []
    assert good.ends == []
    assert list(rig.dispatcher.in_flight) == [tickets[2].slot]


@on_loop
async def test_tickets_of_an_earlier_attempt_are_void() -> None:
    rig = Rig(workers=1)
    request = rig.ask(1.0)
    rig.dispatcher.enqueue(request)  # as after a death: the first ticket still waits in the pipe
    rig.dispatcher.flush()
    worker = rig.new_worker()
    rig.work(worker)
    assert request.right
    assert [len(batch) for batch in worker.sessions[0].batches] == [1]


@on_loop
async def test_tickets_of_a_model_that_was_unloaded_are_void_for_the_next_one_in_its_row() -> None:
    rig = Rig(workers=1)
    request = rig.ask(1.0)
    shared = rig.new_worker().shared
    tickets = read(rig)
    assert TicketConsumer(shared, 0, 1, 0).mark(tickets) == []
    assert TicketConsumer(shared, 0, 0, 0).mark(tickets) == tickets
    assert request.ends == []


@on_loop
async def test_tickets_of_an_earlier_life_are_void_also_when_they_were_marked_before() -> None:
    rig = Rig(workers=1)
    rig.ask(1.0)
    rig.ask(2.0)
    consumer = rig.new_worker().consumers[0]
    tickets = read(rig)
    (marked,) = consumer.mark(tickets[:1])
    rig.board.epoch[0] += 1
    assert consumer.mark(tickets[1:]) == []
    assert consumer.still_wanted((marked,)) == []
    consumer.rest()
    assert rig.board.all_busy_since_ns() == [0]


@on_loop
async def test_ticket_is_somebodys_when_it_was_looked_at_before_it_was_made_void() -> None:
    """The moment that recovery waits for: looked at, not yet marked, and made void meanwhile."""
    rig = Rig(workers=1)
    request: RecordedRequest = rig.ask(1.0)
    worker = rig.new_worker()
    allocation = request.allocation
    assert allocation is not None
    consumer = worker.consumers[0]
    (ticket,) = read(rig)
    assert consumer.mark((ticket,)) == [ticket]
    allocation.void_attempt()
    computed = worker.loops[0]._runner.run((ticket,), 0)
    assert computed is not None
    worker.loops[0]._runner.give(computed)
    rig.dispatcher.receive()
    assert request.right
