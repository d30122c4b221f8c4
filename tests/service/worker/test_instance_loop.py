"""The life of an instance: batches, a large request between them, and what the forecast learns."""

import time

import numpy as np

from foldserve.service.engine.admission import Load
from foldserve.service.ipc.slots.slot_state import State
from tests.service.engine.test_recovery import on_loop
from tests.service.engine_rig import FIXED, Rig


def load(rig: Rig) -> Load:
    """What an API server sees of the queue."""
    queue = rig.dispatcher.queues[0]
    return rig.dispatcher.load(queue, queue.default_level)


@on_loop
async def test_large_request_is_run_a_batch_at_a_time_with_others_between() -> None:
    rig = Rig(workers=1, max_batch_size=4)
    worker = rig.new_worker()
    large = rig.ask(*range(10))
    worker.loops[0].step(wait=False)
    small = [rig.ask(100.0 + i) for i in range(3)]
    worker.loops[0].step(wait=False)
    rig.dispatcher.receive()
    assert all(request.right for request in small)  # answered while the large one is half done
    assert large.ends == []
    rig.work(worker)
    assert large.right
    assert [len(batch) for batch in worker.sessions[0].batches] == [4, 3, 4, 2]
    assert rig.all_free()


@on_loop
async def test_large_request_whose_client_left_is_dropped_between_two_batches_of_it() -> None:
    rig = Rig(workers=1, max_batch_size=2)
    worker = rig.new_worker()
    large = rig.ask(*range(100))
    worker.loops[0].step(wait=False)
    rig.dispatcher.cancel(large)
    rig.work(worker)
    assert len(worker.sessions[0].batches) == 1
    assert large.ends == []
    assert rig.all_free()


@on_loop
async def test_large_request_whose_deadline_passes_is_dropped_between_two_batches_of_it() -> None:
    rig = Rig(workers=1, max_batch_size=2)
    deadline_ns = time.monotonic_ns() + 50_000_000
    worker = rig.new_worker(on_run=lambda x: time.sleep(0.06))  # longer than there is time
    large = rig.ask(*range(100), deadline_ns=deadline_ns)
    rig.work(worker)
    assert len(worker.sessions[0].batches) == 1
    assert [end is not None and end.code for end in large.ends] == ["deadline_passed"]
    assert rig.all_free()


@on_loop
async def test_large_request_of_a_dead_api_server_is_dropped_and_lets_the_fence_pass() -> None:
    from foldserve.service.ipc.fence import Fence
    from tests.service.engine.test_recovery import until

    rig = Rig(workers=1, max_batch_size=2, api_servers=2)
    worker = rig.new_worker()
    rig.ask(*range(100))
    worker.loops[0].step(wait=False)
    rig.board.epoch[0] += 1
    fence = Fence(rig.board, rig.transport.done[0].reader)
    await until(lambda: rig.board.markings_are_over(fence._since_ns))
    assert not fence.passed()
    rig.ask(1.0, api=1)
    worker.loops[0].step(wait=False)
    assert fence.passed()
    assert len(worker.sessions[0].batches) == 2


@on_loop
async def test_second_large_request_waits_for_the_first_and_small_ones_for_neither() -> None:
    rig = Rig(workers=1, max_batch_size=2)
    worker = rig.new_worker()
    first, second = rig.ask(*range(6)), rig.ask(*range(10, 16))
    small = rig.ask(99.0)
    for _ in range(3):
        worker.loops[0].step(wait=False)
    rig.dispatcher.receive()
    assert small.right
    rig.work(worker)
    assert first.right
    assert second.right
    assert rig.all_free()


@on_loop
async def test_model_that_fails_on_a_large_request_fails_that_one_alone() -> None:
    rig = Rig(workers=1, max_batch_size=2)

    def fail(x: np.ndarray) -> None:
        if (x == 13).any():
            raise ValueError("thirteen")

    worker = rig.new_worker(on_run=fail)
    large, small = rig.ask(*range(10, 20)), rig.ask(1.0)
    rig.work(worker)
    assert [end is not None and end.code for end in large.ends] == ["model_failed"]
    assert small.right
    assert rig.all_free()


@on_loop
async def test_worker_that_dies_between_two_batches_of_a_large_request_costs_it_no_death() -> None:
    rig = Rig(max_batch_size=2)
    worker = rig.new_worker(0)
    large = rig.ask(*range(5))
    worker.loops[0].step(wait=False)
    rig.worker_dies(worker)
    assert await rig.recover(worker) == [large]
    assert large.crashes == 0
    rig.work(rig.new_worker(1))
    assert large.right
    assert rig.all_free()


@on_loop
async def test_instance_shows_every_step_of_its_work_so_that_one_that_is_stuck_is_found() -> None:
    rig = Rig(workers=1)
    seen: list[list[int]] = []
    worker = rig.new_worker(on_run=lambda x: seen.append(rig.board.overdue_workers(time.monotonic_ns() + 1)))
    rig.ask(1.0)
    rig.work(worker)
    assert seen == [[0]]
    assert rig.board.overdue_workers(time.monotonic_ns() + 1) == []
    assert rig.board.all_busy_since_ns() == [0]


@on_loop
async def test_two_models_share_nothing_but_the_process() -> None:
    rig = Rig(FIXED, FIXED)
    worker = rig.new_worker()
    first, second = rig.ask(1.0, row=0), rig.ask(2.0, row=1)
    worker.loops[1].step(wait=False)
    rig.dispatcher.receive()
    assert second.right
    assert first.ends == []
    worker.loops[0].step(wait=False)
    rig.dispatcher.receive()
    assert first.right


@on_loop
async def test_requests_given_up_while_an_earlier_batch_ran_take_no_place() -> None:
    rig = Rig(workers=1, max_batch_size=2)

    def give_up(x: np.ndarray) -> None:
        if x[0, 0] == 1:
            rig.dispatcher.cancel(third)

    worker = rig.new_worker(on_run=give_up)
    rig.ask(1.0, 1.0)
    third = rig.ask(3.0, 3.0)
    rig.work(worker)
    assert [batch[0, 0] for batch in worker.sessions[0].batches] == [1.0]
    assert rig.all_free()
    assert rig.arena.state[0] == State.FREE


@on_loop
async def test_board_learns_what_batches_take_and_forgets_it_when_the_worker_dies() -> None:
    rig = Rig(workers=1, max_batch_size=8)
    worker = rig.new_worker(on_run=lambda x: time.sleep(0.002 * len(x)))
    for rows in (1, 8, 1, 8):
        rig.ask(*range(rows))
        rig.work(worker)
    run_time = load(rig).run_time
    assert 0.016 <= run_time.of(8) / 1e9 < 1.0  # at least what it sleeps; above, only how busy the machine is
    assert run_time.of(1) < run_time.of(8)
    rig.worker_dies(worker)
    assert not rig.dispatcher.load(
        rig.dispatcher.queues[0], rig.dispatcher.queues[0].levels[0]
    ).run_time.known


@on_loop
async def test_one_slow_batch_shuts_out_nobody_with_a_deadline() -> None:
    rig = Rig(workers=1)
    pauses = [0.2]
    worker = rig.new_worker(on_run=lambda x: time.sleep(pauses.pop() if pauses else 0.001))
    first = rig.ask(1.0)
    rig.work(worker)
    assert first.right
    soon_ns = 150_000_000  # less than the slow one took, and far more than any other takes
    for _ in range(3):
        request = rig.ask(1.0, deadline_ns=time.monotonic_ns() + soon_ns)
        rig.work(worker)
        assert (
            request.right or request.ends[0].code == "deadline_passed"
        )  # a machine that is busy for so long
    assert load(rig).run_time.of(1) < 200_000_000
