"""A worker dies at every point where it can; no request is lost, answered twice, or given another's numbers."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from foldserve.service.engine import recovery
from foldserve.service.errors import ModelCrashed
from foldserve.service.ipc.fence import Fence
from foldserve.service.ipc.slots.slot_state import MOVES, State
from foldserve.service.worker import ticket_consumer
from tests.service.engine_rig import DYNAMIC, Rig, RigWorker, WorkerKilled


def on_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """The engine's API server side lives on an event loop."""
    import functools
    import inspect

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    run.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    return run


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop go on until something is so."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)  # between two looks


def dies(worker: RigWorker, rig: Rig) -> None:
    """Turn the worker until it dies, and do what the supervisor does."""
    with pytest.raises(WorkerKilled):
        worker.loops[0].step(wait=False)
    rig.worker_dies(worker)


def after_read(worker: RigWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> bool:
        raise WorkerKilled

    monkeypatch.setattr(worker.consumers[0], "_mark", die)


def after_mark(worker: RigWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> None:
        raise WorkerKilled

    monkeypatch.setattr(worker.loops[0], "_run", die)


def mid_run(worker: RigWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(x: np.ndarray) -> None:
        raise WorkerKilled

    worker.sessions[0].on_run = die


def after_done_before_record(worker: RigWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> None:
        raise WorkerKilled

    monkeypatch.setattr(ticket_consumer, "send_done", die)


def after_record(worker: RigWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(count: int) -> None:
        raise WorkerKilled

    monkeypatch.setattr(worker.consumers[0], "completed", die)


POINTS = [after_read, after_mark, mid_run, after_done_before_record, after_record]


@pytest.mark.parametrize("point", POINTS)
@on_loop
async def test_death_at_any_point_costs_no_request(point: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        rig = Rig()
        first = rig.new_worker()
        asked = [rig.ask(value) for value in (1.0, 2.0, 3.0)]
        point(first, patch)
        dies(first, rig)
    await rig.recover(first)
    rig.work(rig.new_worker())
    assert all(request.right for request in asked)
    assert rig.all_free()


@pytest.mark.parametrize("point", POINTS)
@on_loop
async def test_death_at_any_point_costs_no_request_of_any_level_and_no_order(point: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        rig = Rig(levels=3, max_batch_size=2, age_s=3600)
        first = rig.new_worker()
        asked = [(at % 3, rig.ask(float(at), priority=1 + at % 3)) for at in range(18)]
        point(first, patch)
        dies(first, rig)
    await rig.recover(first)
    rig.work(second := rig.new_worker())
    assert all(request.right for _, request in asked)
    ran = [int(value) % 3 for batch in second.sessions[0].batches for value in batch[:, 0]]
    # Those of the batch that is run again are alone, as suspects may be, and whole: what is left is in order.
    assert ran[2:] == sorted(ran[2:])
    assert rig.all_free()


@on_loop
async def test_what_a_dead_worker_held_is_queued_again_at_once() -> None:
    rig = Rig()
    worker = rig.new_worker(on_run=lambda x: (_ for _ in ()).throw(WorkerKilled()))
    request = rig.ask(1.0)
    dies(worker, rig)
    assert recovery.after_worker_death(rig.dispatcher, worker.incarnation) == [request]
    rig.dispatcher.flush()
    rig.work(rig.new_worker(1))  # no time has passed
    assert request.right


@pytest.mark.parametrize("point", POINTS)
@on_loop
async def test_another_worker_alive_keeps_what_it_holds(point: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        rig = Rig()
        doomed, other = rig.new_worker(0), rig.new_worker(1)
        others = [rig.ask(value) for value in (10.0, 20.0)]

        def die_meanwhile(x: np.ndarray) -> None:
            mine.extend(rig.ask(value) for value in (1.0, 2.0))
            point(doomed, patch)
            dies(doomed, rig)
            patch.undo()

        mine: list[Any] = []
        other.sessions[0].on_run = die_meanwhile
        other.loops[0].step(wait=False)
    await rig.recover(doomed)
    other.sessions[0].on_run = lambda x: None
    rig.work(other)
    assert all(request.right for request in others)
    assert all(request.right for request in mine)
    assert rig.all_free()


@on_loop
async def test_a_request_that_kills_its_worker_twice_fails_alone() -> None:
    rig = Rig()

    def poisoned(x: np.ndarray) -> None:
        if (x == 13).any():
            raise WorkerKilled

    asked = [rig.ask(float(value)) for value in range(8, 16)]
    crashes = 0
    for _ in range(12):
        worker = rig.new_worker(on_run=poisoned)
        try:
            rig.work(worker)
        except WorkerKilled:
            crashes += 1
            rig.worker_dies(worker)
            await rig.recover(worker)
        rig.dispatcher.receive()
        if all(request.ends for request in asked):
            break
    assert crashes == 2
    for request in asked:
        if request.x[0, 0] == 13:
            assert [type(end) for end in request.ends] == [ModelCrashed]
        else:
            assert request.right
    assert rig.all_free()


@on_loop
async def test_batches_that_had_not_begun_are_no_suspects() -> None:
    rig = Rig(DYNAMIC)
    worker = rig.new_worker(on_run=lambda x: (_ for _ in ()).throw(WorkerKilled()))
    large, begun = rig.ask(*range(20), length=3), rig.ask(2.0, length=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.loops[0], "_run_on", lambda large: None)
        worker.loops[0].step(wait=False)  # it has the large request, and would now run the first part of it
    dies(worker, rig)
    await rig.recover(worker)
    assert (begun.crashes, large.crashes) == (1, 0)
    assert not rig.arena.waiting.any()


@on_loop
async def test_given_up_requests_of_a_dead_worker_are_freed_and_not_run_again() -> None:
    rig = Rig()
    worker = rig.new_worker(on_run=lambda x: (_ for _ in ()).throw(WorkerKilled()))
    request = rig.ask(1.0)
    dies(worker, rig)
    rig.dispatcher.cancel(request)
    assert await rig.recover(worker) == []
    assert request.ends == []
    assert rig.all_free()


@on_loop
async def test_late_ticket_dropped_by_a_worker_that_dies_before_its_record_is_not_lost() -> None:
    with pytest.MonkeyPatch.context() as patch:
        rig = Rig()
        worker = rig.new_worker()
        request = rig.ask(1.0)
        rig.dispatcher.cancel(request)  # the worker will find it given up
        after_done_before_record(worker, patch)
        dies(worker, rig)
    await rig.recover(worker)
    assert rig.all_free()


@on_loop
async def test_output_overflow_whose_record_was_lost_is_run_again() -> None:
    with pytest.MonkeyPatch.context() as patch:
        rig = Rig(DYNAMIC, data_bytes=1 << 22)
        wide = np.full((1, 5000), 7, np.float32)
        worker = rig.new_worker(on_run=lambda x: wide)
        request = rig.ask(1.0)
        after_done_before_record(worker, patch)
        dies(worker, rig)
    await rig.recover(worker)
    rig.work(rig.new_worker(on_run=lambda x: wide))  # it outgrows its place, and then fits
    assert request.ends == [None]
    np.testing.assert_array_equal(request.y, wide)
    assert rig.all_free()


@on_loop
async def test_fence_stands_while_a_worker_holds_old_tickets_and_falls_with_the_worker() -> None:
    rig = Rig()
    seen: list[bool] = []

    def look(x: np.ndarray) -> None:
        rig.board.epoch[0] += 1
        fence = Fence(rig.board, rig.transport.done[0].reader)
        seen.append(fence.passed())
        fences.append(fence)
        raise WorkerKilled

    fences: list[Fence] = []
    worker = rig.new_worker(on_run=look)
    rig.ask(1.0)
    with pytest.raises(WorkerKilled):
        worker.loops[0].step(wait=False)
    assert seen == [False]
    assert not fences[0].passed()  # dead, and not yet cleared: it must not hang on it, only say so
    rig.worker_dies(worker)
    await until(fences[0].passed)


@on_loop
async def test_next_life_of_an_api_server_drops_old_tickets_and_old_records() -> None:
    rig = Rig()
    rig.ask(1.0)
    rig.ask(2.0)
    rig.new_worker().loops[0].step(wait=False)
    rig.ask(3.0)  # its ticket stays in the pipe
    asyncio.get_running_loop().remove_reader(rig.transport.done[0].reader.fd)
    rig.board.epoch[0] += 1
    await until(Fence(rig.board, rig.transport.done[0].reader).passed)
    rig.dispatchers[0] = rig.new_dispatcher(0)
    request = rig.ask(4.0)
    worker = rig.new_worker()
    worker.loops[0].step(wait=False)
    rig.dispatcher.receive()
    assert request.right
    assert [batch[:, 0].tolist() for batch in worker.sessions[0].batches] == [[4.0]]
    assert rig.all_free()


def test_every_move_that_recovery_makes_is_in_the_table() -> None:
    for before in (State.TAKEN, State.FAILED, State.OUTPUT_OVERFLOW, State.QUEUED):
        assert (before, State.QUEUED) in MOVES
