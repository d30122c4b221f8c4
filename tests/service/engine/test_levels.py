"""What a request of one priority level waits for, is refused for, and leaves for the others."""

import time

import pytest

from foldserve.service.errors import BadRequest, DeadlinePassed, QueueFull
from tests.service.engine.test_recovery import on_loop
from tests.service.engine_rig import Rig


@on_loop
async def test_rows_of_lower_levels_fill_no_bound_of_a_higher_one() -> None:
    rig = Rig(api_servers=2, max_rows=8, levels=3)
    for api in (0, 1):
        rig.ask(1.0, 2.0, 3.0, 4.0, api=api, priority=3)
    with pytest.raises(QueueFull):
        rig.ask(1.0, priority=3)
    middle = [rig.ask(1.0, 2.0, 3.0, 4.0, api=api, priority=2) for api in (0, 1)]
    with pytest.raises(QueueFull):
        rig.ask(1.0, priority=2)
    assert not any(request.ends for request in middle)
    for _ in range(8):
        rig.ask(1.0, priority=1)
    with pytest.raises(QueueFull):
        rig.ask(1.0, priority=1)


@on_loop
async def test_bytes_of_lower_levels_fill_no_bound_of_a_higher_one() -> None:
    rig = Rig(max_bytes=64, levels=2)  # a row has 8
    for _ in range(8):
        rig.ask(1.0, priority=2)
    with pytest.raises(QueueFull):
        rig.ask(1.0, priority=2)
    rig.ask(1.0, priority=1)


@on_loop
async def test_forecast_counts_what_goes_before_and_not_what_comes_after() -> None:
    rig = Rig(workers=1, levels=2, max_batch_size=8)
    worker = rig.new_worker()
    worker.loops[0]._times.add(1.0, 8)
    for _ in range(80):
        rig.ask(1.0, priority=2)
    soon_ns = 3_000_000_000
    queue = rig.dispatcher.queues[0]
    queue.doubted_ns = time.monotonic_ns()  # one a second is admitted whatever the forecast says
    with pytest.raises(DeadlinePassed):
        rig.ask(1.0, priority=2, deadline_ns=time.monotonic_ns() + soon_ns)
    rig.ask(1.0, priority=1, deadline_ns=time.monotonic_ns() + soon_ns)


def count_admitted(rig: Rig, priority: int) -> int:
    """How many requests are taken before one is refused."""
    for count in range(200):
        try:
            rig.ask(1.0, priority=priority)
        except QueueFull:
            return count
    raise AssertionError("none was refused")


@pytest.mark.parametrize("size", [{"slots": 32}, {"data_bytes": 32 * 2048}])
@on_loop
async def test_backlog_of_bulk_leaves_memory_for_higher_levels(size: dict[str, int]) -> None:
    rig = Rig(levels=3, **size)
    admitted = [count_admitted(rig, priority) for priority in (3, 2, 1)]
    assert admitted[0] > 20
    assert admitted[1] > 0
    assert admitted[2] > 0


@on_loop
async def test_counts_of_all_levels_end_at_nothing() -> None:
    rig = Rig(workers=1, levels=3, max_batch_size=4)
    asked = [rig.ask(*range(1 + at % 9), priority=1 + at % 3) for at in range(30)]
    for request in asked[::4]:
        rig.dispatcher.cancel(request)
    queue = rig.dispatcher.queues[0]
    assert queue.levels[0].rows < queue.levels[1].rows < queue.levels[2].rows
    rig.work(rig.new_worker())
    rig.dispatcher.flush()
    assert [(level.rows, level.nbytes, level.large) for level in queue.levels] == [(0, 0, 0)] * 3
    assert not any(rig.board.queued_rows[0, 0, level] for level in range(3))
    assert rig.all_free()


@on_loop
async def test_tickets_that_their_pipe_has_no_room_for_keep_their_level() -> None:
    rig = Rig(workers=1, levels=2, slots=8192, data_bytes=1 << 25, max_rows=8192, age_s=600.0)
    bulk = [rig.ask(1.0, priority=2, flush=False) for _ in range(5000)]
    rig.dispatcher.flush()
    queue = rig.dispatcher.queues[0]
    assert [level.writer.overflow for level in queue.levels] == [False, True]
    high = rig.ask(2.0, priority=1)
    worker = rig.new_worker()
    worker.loops[0].step(wait=False)
    rig.dispatcher.receive()
    assert high.right
    while any(not request.ends for request in bulk):
        for level in queue.levels:
            rig.dispatcher._await_writable(level)
        rig.work(worker)
    assert all(request.right for request in bulk)


@on_loop
async def test_priority_that_the_model_does_not_have_is_refused_with_its_levels() -> None:
    one, three = Rig().dispatcher.queues[0], Rig(levels=3, default_level=1).dispatcher.queues[0]
    assert [three.level_of(priority, "it").index for priority in (0, 1, 2, 3)] == [1, 0, 1, 2]
    assert [one.level_of(priority, "it").index for priority in (0, 1, 7)] == [0, 0, 0]
    with pytest.raises(
        BadRequest, match=r"X-Priority is 4 and model 'm0' has priority levels 1 to 3 .*; send one"
    ):
        three.level_of(4, "X-Priority")
