"""Outputs of a long run are given out while the next one runs; whoever holds tickets meanwhile says so."""

import threading
import time
from typing import Any

import numpy as np
import pytest

from foldserve.service.ipc.fence import Fence
from foldserve.service.worker.batches.output_thread import OutputThread
from foldserve.service.worker.instance_loop import OVERLAPPED_NS
from tests.service.engine.test_recovery import on_loop
from tests.service.engine_rig import Rig, RigWorker, WorkerKilled

LONG_S = 2 * OVERLAPPED_NS / 1e9


def long_run(x: np.ndarray) -> None:
    time.sleep(LONG_S)  # what a run of the model takes


def learned(rig: Rig, **session: Any) -> RigWorker:
    """A worker that knows how long its runs take: one was given out at once."""
    worker = rig.new_worker(**{"on_run": long_run, **session})
    first = rig.ask(0.0)
    rig.work(worker)
    assert first.right
    return worker


@on_loop
async def test_outputs_are_given_out_while_the_next_batch_runs() -> None:
    rig = Rig(workers=1, max_batch_size=2)
    given = threading.Event()
    waited: list[bool] = []
    worker = learned(rig)
    loop = worker.loops[0]
    loop._output_thread = OutputThread(lambda batch: (loop._runner.give(batch), given.set())[0])
    first, second = [rig.ask(1.0), rig.ask(2.0)], [rig.ask(3.0), rig.ask(4.0)]
    loop.step(wait=False)
    rig.dispatcher.receive()
    assert not any(request.ends for request in first)  # the second batch waits, and is begun first
    worker.sessions[0].on_run = lambda x: waited.append(given.wait(20))
    loop.step(wait=False)
    assert waited == [True]
    rig.dispatcher.receive()
    assert all(request.right for request in first)
    rig.work(worker)
    assert all(request.right for request in second)
    assert rig.all_free()


@on_loop
async def test_outputs_are_given_out_at_once_when_nothing_waits() -> None:
    rig = Rig(workers=1, max_batch_size=2)
    worker = learned(rig)
    alone = rig.ask(1.0)
    worker.loops[0].step(wait=False)
    assert worker.loops[0].step(wait=False)
    rig.dispatcher.receive()
    assert alone.right
    assert not worker.loops[0].step(wait=False)
    assert worker.loops[0]._output_thread._thread is None


@on_loop
@pytest.mark.parametrize("why", ["short runs", "a window", "outputs that the next run overwrites"])
async def test_outputs_are_given_out_before_anything_else(why: str) -> None:
    rig = Rig(workers=1, max_batch_size=2)
    options = {"a window": {"window_s": 1e-6}}.get(why, {})
    worker = rig.new_worker(on_run=(lambda x: None) if why == "short runs" else long_run, **options)
    if why == "outputs that the next run overwrites":
        worker.sessions[0].keeps_outputs = False
    for _ in range(2):
        first = [rig.ask(1.0), rig.ask(2.0)]
        second = rig.ask(3.0)
        worker.loops[0].step(wait=False)
        rig.dispatcher.receive()
        assert all(request.right for request in first)
        rig.work(worker)
        assert second.right


@on_loop
async def test_outputs_that_are_an_inputs_own_memory_are_given_out_before_the_next_is_gathered() -> None:
    rig = Rig(workers=1, max_batch_size=2)

    def in_place(x: np.ndarray) -> np.ndarray:
        long_run(x)
        x += 1
        return x

    worker = rig.new_worker(on_run=in_place)
    requests = [rig.ask(float(i)) for i in range(8)]
    rig.work(worker)
    assert all(request.right for request in requests)


@on_loop
async def test_an_instance_that_never_rests_lets_the_fence_of_a_dead_api_server_pass() -> None:
    rig = Rig(workers=1, max_batch_size=1, api_servers=2)
    worker = learned(rig)
    requests = [rig.ask(float(i), api=1) for i in range(4)]
    worker.loops[0].step(wait=False)  # holds the first
    rig.board.epoch[0] += 1
    fence = Fence(rig.board, rig.transport.done[0].reader)
    assert not fence.passed()
    worker.loops[0].step(wait=False)  # holds the second alone, which came to its hands later
    assert worker.loops[0]._computed is not None
    assert fence.passed()
    rig.work(worker)
    del requests


@on_loop
@pytest.mark.parametrize("during", ["its run", "the next run"])
async def test_requests_whose_outputs_were_not_given_out_are_run_again_after_the_workers_death(
    during: str,
) -> None:
    rig = Rig(workers=1, max_batch_size=2)
    runs: list[int] = []

    def on_run(x: np.ndarray) -> None:
        long_run(x)
        runs.append(len(x))
        if len(runs) == (2 if during == "its run" else 3):
            raise WorkerKilled

    worker = learned(rig, on_run=on_run)
    requests = [rig.ask(float(i)) for i in range(4)]
    with pytest.raises(WorkerKilled):
        rig.work(worker)
    rig.worker_dies(worker)
    await rig.recover(worker)
    rig.work(rig.new_worker())
    assert all(request.right for request in requests)
    assert rig.all_free()


def deadly_run(x: np.ndarray) -> None:
    if 13.0 in x:
        raise WorkerKilled
    long_run(x)


@on_loop
async def test_a_crash_in_the_next_run_is_no_fault_of_requests_whose_outputs_were_not_given_out() -> None:
    rig = Rig(workers=1, max_batch_size=2)
    worker = learned(rig, on_run=deadly_run)
    dead = threading.Event()
    worker.loops[0]._output_thread = OutputThread(lambda batch: (dead.wait(20), None)[1])
    before, deadly = [rig.ask(1.0), rig.ask(2.0)], rig.ask(13.0)
    with pytest.raises(WorkerKilled):
        rig.work(worker)
    rig.worker_dies(worker)
    await rig.recover(worker)
    dead.set()
    assert [request.crashes for request in (*before, deadly)] == [0, 0, 1]
    rig.work(rig.new_worker())
    assert all(request.right for request in (*before, deadly))
    assert rig.all_free()


@on_loop
async def test_what_was_said_of_a_slots_last_request_is_not_said_of_its_next() -> None:
    rig = Rig(workers=1, max_batch_size=2, slots=1)
    worker = learned(rig, on_run=deadly_run)
    last = rig.ask(1.0)
    rig.work(worker)
    assert last.right
    deadly = rig.ask(13.0)
    with pytest.raises(WorkerKilled):
        rig.work(worker)
    rig.worker_dies(worker)
    await rig.recover(worker)
    assert deadly.crashes == 1


def test_what_giving_out_raises_is_raised_where_it_is_waited_for() -> None:
    def fail(batch: Any) -> None:
        raise OSError("the pipe is gone")

    thread = OutputThread(fail)
    nothing: Any = object()
    thread.begin(nothing)
    with pytest.raises(OSError, match="the pipe is gone"):
        thread.wait()
    thread.end()
    assert thread._thread is None
