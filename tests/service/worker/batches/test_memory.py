"""A device without room for a batch: run in smaller pieces, nobody fails, and later batches are no larger."""

import logging

import numpy as np
import pytest

from foldserve.service.backends.base import DeviceLost, OutOfMemory
from foldserve.service.errors import ModelFailed
from foldserve.service.worker.batches.oom_backoff import FIRST_WAIT_S
from foldserve.service.worker.model import ModelBatchLimit
from tests.service.engine.test_recovery import on_loop
from tests.service.engine_rig import DYNAMIC, Rig, RigWorker


class Room:
    """A device with room for so many rows, padding included."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __call__(self, x: np.ndarray) -> None:
        if len(x) > self.rows:
            raise OutOfMemory(f"no room for {len(x)} rows")


def sizes(worker: RigWorker) -> list[int]:
    """Rows of every run so far, failed ones too; forgets them."""
    found = [len(batch) for batch in worker.sessions[0].batches]
    worker.sessions[0].batches.clear()
    return found


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize(
    ("buckets", "rows", "runs", "batch_limits"),
    [((), 8, [8, 4, 2, 2, 2, 2], [4, 2]), ((1, 3, 8), 7, [8, 3, 3, 1], [3])],
)
@on_loop
async def test_batch_without_room_is_run_in_smaller_pieces_and_nobody_fails(
    pinned: bool, buckets: tuple[int, ...], rows: int, runs: list[int], batch_limits: list[int]
) -> None:
    rig = Rig(max_batch_size=8)
    worker = rig.new_worker(on_run=Room(3), buckets=buckets, pinned=pinned)
    asked = [rig.ask(0.0, 1.0), rig.ask(2.0), rig.ask(*map(float, range(3, rows)))]
    rig.work(worker)
    assert all(request.right for request in asked)
    assert sizes(worker) == runs
    assert worker.batch_limits == batch_limits
    assert rig.all_free()


@pytest.mark.parametrize("pinned", [False, True])
@on_loop
async def test_single_request_of_many_rows_is_run_in_pieces_too(pinned: bool) -> None:
    rig = Rig(max_batch_size=8)
    worker = rig.new_worker(on_run=Room(5), buckets=(2, 4, 8), pinned=pinned)
    small, large = rig.ask(*map(float, range(7))), rig.ask(*map(float, range(100, 121)))
    rig.work(worker)
    assert small.right
    assert large.right
    assert sizes(worker) == [8, 4, 4, 4, 4, 4, 4, 4, 2]


@on_loop
async def test_no_later_batch_goes_over_the_batch_limit() -> None:
    rig = Rig(max_batch_size=8)
    worker = rig.new_worker(on_run=Room(4))
    for _ in range(3):
        asked = [rig.ask(float(i)) for i in range(8)]
        rig.work(worker)
        assert all(request.right for request in asked)
    assert sizes(worker) == [8, 4, 4, *([4, 4] * 2)]
    assert worker.retried == [8]


@on_loop
async def test_batches_after_the_batch_limit_fell_keep_to_it() -> None:
    rig = Rig(max_batch_size=8)
    worker = rig.new_worker(on_run=Room(4))
    asked = [rig.ask(*map(float, range(5))) for _ in range(2)]
    rig.work(worker)
    assert all(request.right for request in asked)
    assert sizes(worker) == [5, 2, 2, 1, 2, 2, 1]


@on_loop
async def test_only_requests_whose_rows_are_run_again_count_as_retried() -> None:
    rig = Rig(max_batch_size=8)

    def fails_late(x: np.ndarray) -> None:
        if len(x) == 8 or (len(x) > 2 and x[0, 0] == 4):
            raise OutOfMemory("no room")

    worker = rig.new_worker(on_run=fails_late)
    asked = [rig.ask(0.0, 1.0), rig.ask(2.0, 3.0), rig.ask(4.0), rig.ask(5.0, 6.0, 7.0)]
    rig.work(worker)
    assert all(request.right for request in asked)
    assert sizes(worker) == [8, 4, 4, 2, 2]
    assert worker.retried == [4, 2]


@on_loop
async def test_request_of_which_not_one_row_has_room_fails_with_a_text_that_says_so() -> None:
    rig = Rig(max_batch_size=8)

    def no_room_for_13(x: np.ndarray) -> None:
        if (x == 13).any():
            raise OutOfMemory("BFCArena: failed to allocate")

    worker = rig.new_worker(on_run=no_room_for_13)
    asked = [rig.ask(float(i), float(i)) for i in (11, 12, 13, 14)]
    rig.work(worker)
    (error,) = asked[2].ends
    assert isinstance(error, ModelFailed)
    assert (
        "cuda:0 is out of memory: there is not enough for this request, not even in pieces of 1 row"
        in str(error)
    )
    assert all(request.right for request in asked if request is not asked[2])
    assert rig.all_free()


@on_loop
async def test_each_lowering_is_one_warning_that_names_model_device_rows_and_mends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig(max_batch_size=8)
    worker = rig.new_worker(on_run=Room(4))
    for i in range(16):
        rig.ask(float(i))
    with caplog.at_level(logging.WARNING, "foldserve.worker"):
        rig.work(worker)
    (record,) = caplog.records
    text = record.getMessage()
    assert "model m0: cuda:0 does not have enough memory for a batch of 8 rows (no room for 8 rows)" in text
    assert "batches of 4 at most" in text
    assert "max_batch_size" in text
    assert "fewer instances" in text
    assert "session.memory_limit_bytes" in text


@on_loop
async def test_batch_limit_rises_when_it_is_time_and_batches_are_as_large_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(max_batch_size=8)
    room = Room(4)
    worker = rig.new_worker(on_run=room)
    batch_limits = worker.loops[0]._runner._batch_limits
    now_s = [0.0]
    monkeypatch.setattr(batch_limits, "_clock", lambda: now_s[0])

    def turn() -> list[int]:
        asked = [rig.ask(float(i)) for i in range(8)]
        while not all(request.ends for request in asked):
            rig.work(worker)
        assert all(request.right for request in asked)
        return sizes(worker)

    assert turn() == [8, 4, 4]
    now_s[0] += FIRST_WAIT_S
    assert turn() == [4, 4]  # the first batch of these was taken below the old batch limit
    room.rows = 8
    assert turn() == [8]
    now_s[0] += FIRST_WAIT_S
    assert turn() == [8]
    assert not batch_limits.lowered
    assert worker.batch_limits == [4, 8]


@on_loop
async def test_long_rows_of_one_client_leave_the_batches_of_short_rows_as_they_are() -> None:
    rig = Rig(DYNAMIC, max_batch_size=8)

    def little_room(x: np.ndarray) -> None:
        if x.size > 40:
            raise OutOfMemory("no room")

    worker = rig.new_worker(on_run=little_room)
    long_rows = rig.ask(*map(float, range(8)), length=20)
    rig.work(worker)
    short_rows = rig.ask(*map(float, range(8)), length=5)
    rig.work(worker)
    again = rig.ask(*map(float, range(8)), length=20)
    rig.work(worker)
    assert all(request.right for request in (long_rows, short_rows, again))
    assert sizes(worker) == [8, 4, *[2] * 4, 8, *[2] * 4]
    assert worker.batch_limits == [4, 2]
    assert worker.loops[0]._runner.max_batch_size == 8


@on_loop
async def test_outputs_that_the_session_writes_over_at_its_next_run_are_kept() -> None:
    rig = Rig(max_batch_size=8)
    memory = np.zeros((8, 2), np.float32)

    def into_the_same_memory(x: np.ndarray) -> np.ndarray:
        np.add(x, 1, out=memory[: len(x)])
        return memory[: len(x)]

    worker = rig.new_worker(on_run=into_the_same_memory, buckets=(4, 8))
    request = rig.ask(*map(float, range(19)))
    rig.work(worker)
    assert request.right


@on_loop
async def test_pieces_whose_outputs_differ_in_their_dims_make_no_answer() -> None:
    rig = Rig(DYNAMIC, max_batch_size=4)
    request = rig.ask(*map(float, range(6)), length=3)
    worker = rig.new_worker(on_run=lambda x: np.zeros((len(x), len(x)), np.float32))
    rig.work(worker)
    (error,) = request.ends
    assert isinstance(error, ModelFailed)
    assert "rows of [2] in one piece of the request and of [4] in another" in str(error)


# The session's own memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 4, 8, 11, 19])
@on_loop
async def test_whatever_runs_passes_through_the_sessions_own_memory(rows: int) -> None:
    rig = Rig(max_batch_size=8)
    seen: list[bool] = []
    worker = rig.new_worker(
        on_run=lambda x: seen.append(np.shares_memory(x, worker.sessions[0].host["x"][: len(x)])),
        buckets=(4, 8),
        pinned=True,
    )
    request = rig.ask(*map(float, range(rows)))
    rig.work(worker)
    assert request.right
    assert len(seen) == -(-rows // 8)
    assert all(seen)


@on_loop
async def test_without_such_memory_a_request_that_fills_its_batch_is_run_where_it_lies() -> None:
    rig = Rig(max_batch_size=8)
    seen: list[bool] = []
    worker = rig.new_worker(
        on_run=lambda x: seen.append(x.flags.owndata or x.flags.writeable), buckets=(4, 8)
    )
    arena = np.frombuffer(worker.shared.arenas[0], np.uint8)
    worker.sessions[0].on_run = lambda x: seen.append(np.shares_memory(x, arena))
    request = rig.ask(*map(float, range(8)))
    rig.work(worker)
    assert request.right
    assert seen == [True]


# A lost device ----------------------------------------------------------------------------------------------


@on_loop
async def test_lost_device_settles_nothing_and_ends_the_loop() -> None:
    rig = Rig(max_batch_size=8)

    def lost(x: np.ndarray) -> None:
        raise DeviceLost("CUDA error 719")

    worker = rig.new_worker(on_run=lost)
    asked = [rig.ask(float(i)) for i in range(4)]
    with pytest.raises(DeviceLost):
        rig.work(worker)
    assert [request.ends for request in asked] == [[]] * 4
    assert sizes(worker) == [4]  # not halved: it is no request's fault


# What the scoreboard shows ---------------------------------------------------------------------------------------


@on_loop
async def test_the_board_shows_the_lowest_batch_limit_of_a_models_instances() -> None:
    board = Rig().board
    limit = ModelBatchLimit(board, worker=1, row=0, max_batch_size=8)
    shown = []
    for instance, rows in ((0, 4), (1, 2), (1, 8), (0, 8)):
        limit.moved(instance, rows)
        shown.append(board.batch_limit_rows[1, 0])
    assert shown == [4, 2, 4, 0]
