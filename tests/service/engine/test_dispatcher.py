"""An API server's half: tickets out, answers in, deadlines, cancels, room, shares."""

import asyncio
import logging
import re
import time

import numpy as np
import pytest

from foldserve.service.errors import DeadlinePassed, Internal, NotReady, QueueFull, ServiceError, TooLarge
from foldserve.service.ipc.slots.slot_state import State
from tests.service.engine.test_recovery import on_loop
from tests.service.engine_rig import DYNAMIC, FIXED, MINUTE_NS, RecordedRequest, Rig


@on_loop
async def test_requests_of_one_turn_travel_together_and_come_back_right() -> None:
    rig = Rig()
    asked = [rig.ask(float(i), flush=False) for i in range(5)]
    await asyncio.sleep(0)  # the end of the turn
    worker = rig.new_worker()
    worker.loops[0].step(wait=False)
    await asyncio.sleep(0.01)  # the reader's turn
    assert all(request.right for request in asked)
    assert worker.metrics.batches == [(5, 0, "drained")]
    assert rig.all_free()


@on_loop
async def test_queue_of_full_rows_refuses_over_all_api_servers() -> None:
    rig = Rig(api_servers=2, max_rows=4)
    rig.ask(1.0, 2.0, 3.0, api=0)
    rig.ask(1.0, api=1)
    with pytest.raises(QueueFull):
        rig.ask(1.0, api=1)


@on_loop
async def test_cancel_and_expiry_make_room_on_the_board_at_once() -> None:
    rig = Rig(api_servers=2, max_rows=4)
    first = rig.ask(1.0, 2.0, api=0)
    second = rig.ask(1.0, 2.0, api=0)
    rig.dispatchers[0].cancel(first)
    await asyncio.sleep(0)
    assert rig.board.queued_rows[0, 0, 0] == 2
    second.deadline_ns = 1
    rig.dispatchers[0].watchdog.expire()
    await asyncio.sleep(0)
    assert (rig.board.queued_rows[0, 0, 0], rig.board.queued_bytes[0, 0, 0]) == (0, 0)
    rig.ask(1.0, 2.0, 3.0, 4.0, api=1)


@on_loop
async def test_deadline_is_answered_in_time_by_one_timer_for_many_requests() -> None:
    rig = Rig()
    began = time.monotonic()
    soon = [rig.ask(1.0, deadline_ns=time.monotonic_ns() + 500_000_000) for _ in range(50)]
    later = rig.ask(1.0)
    while not all(request.ends for request in soon):
        await asyncio.sleep(0.001)
        assert time.monotonic() - began < 30.0
    assert time.monotonic() - began >= 0.5
    assert all(isinstance(request.ends[0], DeadlinePassed) for request in soon)
    assert later.ends == []
    worker = rig.new_worker()
    worker.loops[0].step(wait=False)
    rig.dispatcher.receive()
    assert worker.sessions[0].batches[0].shape == (1, 2)  # late ones took no place in the batch
    assert later.right
    assert rig.all_free()


@on_loop
async def test_idle_dispatcher_has_no_timer() -> None:
    rig = Rig()
    rig.ask(1.0)
    rig.new_worker().loops[0].step(wait=False)
    rig.dispatcher.receive()
    rig.dispatcher.watchdog.check()
    assert rig.dispatcher.watchdog._timer is None


@on_loop
async def test_cancelled_while_running_is_freed_when_the_worker_is_done_with_it() -> None:
    rig = Rig()

    def cancel(x: np.ndarray) -> None:
        rig.dispatcher.cancel(request)
        assert rig.arena.state[0] == State.TAKEN

    request = rig.ask(1.0)
    rig.new_worker(on_run=cancel).loops[0].step(wait=False)
    rig.dispatcher.receive()
    assert request.ends == []
    assert rig.all_free()


@on_loop
async def test_cancelled_while_its_output_overflow_is_reported_is_not_run_again() -> None:
    rig = Rig(DYNAMIC)
    request = rig.ask(1.0)
    worker = rig.new_worker(on_run=lambda x: np.zeros((1, 5000), np.float32))
    worker.loops[0].step(wait=False)
    rig.dispatcher.cancel(request)
    rig.dispatcher.receive()
    assert rig.all_free()
    assert len(worker.sessions[0].batches) == 1


@on_loop
async def test_answers_that_outgrow_their_room_are_run_once_more_and_then_known() -> None:
    rig = Rig(DYNAMIC)
    wide = np.arange(5000, dtype=np.float32)[None]
    worker = rig.new_worker(on_run=lambda x: np.repeat(wide, len(x), axis=0))
    for runs in (2, 3):  # the second request of such inputs fits at once
        request = rig.ask(1.0)
        for _ in range(2):
            worker.loops[0].step(wait=False)
            rig.dispatcher.receive()
            rig.dispatcher.flush()
        np.testing.assert_array_equal(request.y, wide)
        assert len(worker.sessions[0].batches) == runs
    assert rig.all_free()


@on_loop
async def test_answer_that_no_arena_can_hold_is_too_large_for_ever() -> None:
    rig = Rig(DYNAMIC, data_bytes=1 << 16)
    request = rig.ask(1.0)
    rig.new_worker(on_run=lambda x: np.zeros((1, 1 << 16), np.float32)).loops[0].step(wait=False)
    rig.dispatcher.receive()
    (error,) = request.ends
    assert isinstance(error, TooLarge)
    assert "and its answer 262" in str(error)
    assert rig.all_free()


@on_loop
async def test_answer_that_never_fits_does_not_shut_out_smaller_ones_of_such_inputs() -> None:
    rig = Rig(DYNAMIC, data_bytes=1 << 16)
    columns = [1 << 16, 5000]
    worker = rig.new_worker(on_run=lambda x: np.zeros((len(x), columns.pop(0)), np.float32))
    too_large = rig.ask(1.0)
    rig.work(worker)
    assert isinstance(too_large.ends[0], TooLarge)
    columns.append(5000)  # once more, with room
    request = rig.ask(1.0)
    rig.work(worker)
    assert request.ends == [None]
    assert rig.all_free()


@on_loop
async def test_answer_that_fits_an_otherwise_empty_arena_is_given_at_once() -> None:
    rig = Rig(DYNAMIC, data_bytes=1 << 16)
    wide = np.zeros((1, 10_000), np.float32)
    request = rig.ask(1.0, length=3000)  # 12 KB, and four times as much for the outputs: nearly all there is
    rig.work(rig.new_worker(on_run=lambda x: wide))
    np.testing.assert_array_equal(request.y, wide)
    assert rig.all_free()


@on_loop
async def test_guess_of_an_answers_size_shuts_out_no_request_that_fits() -> None:
    rig = Rig(DYNAMIC, data_bytes=1 << 16)
    request = rig.ask(
        1.0, length=7000
    )  # 28 KB, and as much for the answer; four times as much would never fit
    rig.work(rig.new_worker())
    assert request.right
    assert rig.all_free()


@on_loop
async def test_request_that_an_empty_arena_cannot_hold_is_too_large_and_told_what_fits() -> None:
    rig = Rig(data_bytes=1 << 16, max_batch_size=100_000, max_rows=100_000)
    with pytest.raises(
        TooLarge, match=r"the request takes 80000 bytes and its answer \d+.*send (\d+) rows"
    ) as refused:
        rig.ask(*range(10_000))
    fitting = int(re.search(r"send (\d+) rows", str(refused.value))[1])  # type: ignore[index]
    assert fitting * 16 > (1 << 16) - 1024  # 16 bytes a row, but for the alignment
    rig.ask(*range(fitting))


@on_loop
async def test_request_that_finds_no_room_because_of_others_is_to_come_again() -> None:
    rig = Rig(data_bytes=1 << 16, max_batch_size=100_000, max_rows=100_000)
    rig.ask(*range(2_000))
    with pytest.raises(QueueFull, match="try again later"):
        rig.ask(*range(3_000))


@on_loop
async def test_shapes_of_which_the_room_is_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foldserve.service.engine.memory.output_sizes._MOST_SHAPES", 10)
    rig = Rig(DYNAMIC)
    worker = rig.new_worker(on_run=lambda x: np.zeros((len(x), 5000), np.float32))
    for length in range(1, 40):
        rig.ask(1.0, length=length)
        for _ in range(2):
            worker.loops[0].step(wait=False)
            rig.dispatcher.receive()
            rig.dispatcher.flush()
        assert len(rig.dispatcher.queues[0].row_output_bytes) <= 10
    assert rig.all_free()


@on_loop
async def test_answer_that_cannot_be_made_does_not_take_others_with_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig()
    asked = [rig.ask(float(i)) for i in range(3)]
    noted: list[ServiceError | None] = []

    def broken(error: ServiceError | None) -> None:
        noted.append(error)
        if error is None:
            raise RuntimeError("unencodable")

    asked[1].completed = broken  # type: ignore[method-assign]
    rig.new_worker().loops[0].step(wait=False)
    with caplog.at_level(logging.ERROR):
        rig.dispatcher.receive()
    assert asked[0].right
    assert asked[2].right
    assert [type(error) for error in noted] == [type(None), Internal]
    assert rig.all_free()


@on_loop
async def test_tickets_past_a_full_pipe_go_on_when_it_has_room_again() -> None:
    rig = Rig(slots=6000, data_bytes=1 << 24, max_rows=6000, max_batch_size=512)
    asked = [rig.ask(float(i % 7), flush=False) for i in range(5000)]
    rig.dispatcher.flush()
    assert rig.dispatcher.queues[0].levels[0].writer.overflow
    worker = rig.new_worker()
    for _ in range(200):
        worker.loops[0].step(wait=False)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if not rig.dispatcher.in_flight:
            break
    assert all(request.right for request in asked)
    assert not rig.dispatcher._overflowing
    assert rig.all_free()


@on_loop
async def test_busy_model_leaves_room_for_another() -> None:
    rig = Rig(FIXED, FIXED, slots=64, max_rows=1000)
    refused = 0
    for _ in range(64):
        try:
            rig.ask(1.0, row=0)
        except QueueFull:
            refused += 1
    assert refused > 0
    for _ in range(5):
        rig.ask(1.0, row=1)


@on_loop
async def test_hanging_run_is_reported_while_requests_are_in_flight_alone() -> None:
    rig = Rig()
    rig.run_limit_s = 0.01
    dispatcher = rig.dispatchers[0] = rig.new_dispatcher(0)
    rig.board.step_since_ns[1, 0] = time.monotonic_ns() - 20_000_000
    dispatcher.watchdog.check()
    assert rig.run_timeouts == []
    rig.ask(1.0)
    dispatcher.watchdog.check()
    assert rig.run_timeouts == [1]


@on_loop
async def test_epochs_wrap_without_an_error() -> None:
    rig = Rig()
    rig.board.epoch[0] = 256 * 3 + 5
    rig.dispatchers[0] = rig.new_dispatcher(0)
    request = rig.ask(1.0)
    rig.new_worker().loops[0].step(wait=False)
    rig.dispatcher.receive()
    assert request.right


@on_loop
async def test_load_tells_the_batches_of_all_workers() -> None:
    rig = Rig()
    request = rig.ask(1.0, 2.0)
    load = rig.dispatcher.load(rig.dispatcher.queues[0], rig.dispatcher.queues[0].levels[0])
    assert (load.rows, load.nbytes, load.run_time.known) == (2, 16, False)
    rig.new_worker().loops[0].step(wait=False)
    rig.dispatcher.receive()
    load = rig.dispatcher.load(rig.dispatcher.queues[0], rig.dispatcher.queues[0].levels[0])
    assert (load.rows, load.nbytes, load.run_time.known) == (0, 0, True)
    assert request.stages_s[0] > 0


# Models that are unloaded ------------------------------------------------------------------------------------


@on_loop
async def test_queue_that_is_closed_takes_nothing_new_and_is_forgotten_when_what_it_had_is_over() -> None:
    rig = Rig(workers=1)
    worker = rig.new_worker()
    dispatcher, queue = rig.dispatcher, rig.dispatcher.queues[0]
    kept, left = rig.ask(1.0), rig.ask(2.0)
    dispatcher.cancel(left)
    drained: list[bool] = []
    dispatcher.close_queue(queue, lambda: drained.append(True))
    assert not dispatcher.ready(queue)
    assert not dispatcher.loaded(queue)
    late = RecordedRequest(queue, np.float32([[3.0, 3.0]]))
    dispatcher.put(late, {"x": late.x}, 1)
    with pytest.raises(NotReady, match=r"model 'm0' version 1 was unloaded while this request came"):
        dispatcher.submit(late, time.monotonic_ns(), time.monotonic_ns() + MINUTE_NS)
    dispatcher.release(late)
    assert drained == []
    rig.work(worker)
    assert kept.right
    assert (drained, dispatcher.queues) == ([True], {})
    assert rig.all_free()


@on_loop
async def test_queue_that_is_closed_with_nothing_in_it_is_forgotten_at_once_and_its_row_taken_again() -> None:
    rig = Rig(workers=1)
    drained: list[bool] = []
    rig.dispatcher.close_queue(rig.dispatcher.queues[0], lambda: drained.append(True))
    assert drained == [True]
    rig.dispatcher.add_queue(rig.new_queue(0))
    worker = rig.new_worker()
    request = rig.ask(4.0)
    rig.work(worker)
    assert request.right
