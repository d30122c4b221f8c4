"""What an instance takes, and what it drops, under the queue's lock."""

import time

import numpy as np

from service.errors import DeadlinePassed
from service.lifecycle import State
from tests.service.engine_rig import Rig
from tests.service.test_recovery import on_loop


@on_loop
async def test_take_counts_rows_and_not_requests() -> None:
    rig = Rig(max_batch_size=8)
    for _ in range(6):
        rig.ask(1.0, 2.0, 3.0, 4.0)
    taker = rig.new_worker().takers[0]
    taker._rows_per_ticket = 4.0
    assert sum(ticket.rows for ticket in taker.take(8)) == 8


@on_loop
async def test_taken_slots_carry_the_workers_serial_and_the_instance_is_busy() -> None:
    rig = Rig()
    rig.ask(1.0)
    worker = rig.new_worker()
    (ticket,) = worker.takers[0].take(8)
    assert rig.arena.state[ticket.slot] == State.TAKEN
    assert rig.arena.worker[ticket.slot] == worker.serial
    assert rig.board.busy_since_ns[0, 0] > 0
    worker.takers[0].idle()
    assert rig.board.busy_since_ns[0, 0] == 0


@on_loop
async def test_a_queue_is_read_in_a_step_that_the_board_shows_so_that_a_worker_stopped_in_it_is_ended() -> (
    None
):
    rig = Rig()
    rig.ask(1.0)
    taker = rig.new_worker().takers[0]
    read, hanging = taker.reader.read, []

    def read_and_look(at_most: int) -> bytes:
        hanging.append(rig.board.hanging(time.monotonic_ns() + 1))
        return read(at_most)

    taker.reader.read = read_and_look  # type: ignore[method-assign]
    taker.take(8)
    assert hanging == [[0]]
    assert rig.board.hanging(time.monotonic_ns() + 1) == []


@on_loop
async def test_taking_nothing_leaves_the_instance_idle() -> None:
    rig = Rig()
    assert rig.new_worker().takers[0].take(8) == []
    assert rig.board.all_busy_since_ns() == [0, 0]


@on_loop
async def test_late_and_given_up_requests_are_dropped_and_freed() -> None:
    rig = Rig()
    late, gone, good = (rig.ask(value) for value in (1.0, 2.0, 3.0))
    rig.dispatcher.cancel(gone)
    # The ticket in the pipe carries the deadline; it is written again with one that has passed.
    with rig.dispatcher.writers[0].contents() as tickets:
        changed = tickets.copy()
        changed["deadline_ns"][0] = 1
    worker = rig.new_worker()
    while worker.takers[0].reader.read(100):
        pass
    rig.dispatcher.writers[0].write(changed.tobytes())
    worker.loops[0].turn()
    rig.dispatcher.receive()
    assert isinstance(late.ends[0], DeadlinePassed)
    assert gone.ends == []
    assert good.right
    assert len(worker.sessions[0].batches[0]) == 1
    assert rig.all_free()


@on_loop
async def test_tickets_of_an_earlier_attempt_are_void() -> None:
    rig = Rig()
    request = rig.ask(1.0)
    rig.dispatcher.enqueue(request)  # as after a death: the first ticket still waits in the pipe
    rig.dispatcher.flush()
    worker = rig.new_worker()
    worker.loops[0].turn()
    rig.dispatcher.receive()
    assert request.right
    assert len(worker.sessions[0].batches) == 1
    assert len(worker.sessions[0].batches[0]) == 1


@on_loop
async def test_requests_given_up_while_an_earlier_batch_ran_take_no_place() -> None:
    rig = Rig(max_batch_size=2)

    def give_up(x: np.ndarray) -> None:
        if x[0, 0] == 1:
            rig.dispatcher.cancel(third)

    worker = rig.new_worker(on_run=give_up)
    rig.ask(1.0, 1.0)
    third = rig.ask(3.0, 3.0)
    worker.loops[0].turn()
    rig.dispatcher.receive()
    if rig.dispatcher.in_flight:
        worker.loops[0].turn()
        rig.dispatcher.receive()
    assert [batch[0, 0] for batch in worker.sessions[0].batches] == [1.0]
    assert rig.all_free()
