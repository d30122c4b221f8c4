"""A batch's numbers: gathered, padded, split, halved, scattered."""

import numpy as np
import pytest

from foldserve.service.errors import ModelFailed
from tests.service.engine.test_recovery import on_loop
from tests.service.engine_rig import DYNAMIC, Rig


@on_loop
async def test_rows_are_padded_up_to_the_bucket_with_a_row_that_the_model_takes() -> None:
    rig = Rig()
    worker = rig.new_worker(buckets=(4, 8))
    asked = [rig.ask(1.0, 2.0), rig.ask(3.0)]
    worker.loops[0].turn(wait=False)
    rig.dispatcher.receive()
    assert all(request.right for request in asked)
    assert worker.sessions[0].batches[0][:, 0].tolist() == [1, 2, 3, 3]
    assert worker.metrics.batches == [(3, 1, "drained")]


@on_loop
async def test_request_above_the_batch_size_is_split_and_rejoined() -> None:
    rig = Rig(max_batch_size=8)
    worker = rig.new_worker(buckets=(4, 8))
    request = rig.ask(*map(float, range(19)))
    rig.work(worker)
    assert request.right
    assert [len(batch) for batch in worker.sessions[0].batches] == [8, 8, 4]
    assert worker.metrics.batches == [(8, 0, "full"), (8, 0, "full"), (3, 1, "full")]


@on_loop
async def test_only_the_guilty_request_fails(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(max_batch_size=32)

    def fail(x: np.ndarray) -> None:
        if (x == 13).any():
            raise ValueError("index 13 is out of range")

    worker = rig.new_worker(on_run=fail)
    asked = [rig.ask(float(i)) for i in range(32)]
    worker.loops[0].turn(wait=False)
    worker.loops[0].turn(wait=False)
    rig.dispatcher.receive()
    for i, request in enumerate(asked):
        if i == 13:
            (error,) = request.ends
            assert isinstance(error, ModelFailed)
            assert "index 13" not in str(error)
            error_id = str(error).rpartition(" ")[2]
            assert f"error id {error_id}: index 13 is out of range" in caplog.text
        else:
            assert request.right
    assert sum(worker.retried) > 0
    assert rig.all_free()


@on_loop
async def test_text_of_an_error_is_cut_to_the_room_that_every_place_has() -> None:
    rig = Rig()

    def fail(x: np.ndarray) -> None:
        raise ValueError("é" * 5000)

    other = rig.ask(7.0)
    request = rig.ask(1.0)
    worker = rig.new_worker(on_run=fail)
    worker.loops[0].turn(wait=False)
    worker.sessions[0].on_run = lambda x: None
    rig.dispatcher.receive()
    (error,) = request.ends
    assert len(str(error).encode()) < 1100
    assert isinstance(other.ends[0], ModelFailed)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 3), np.float32),  # wider than declared: it would end in the next request's slot
        np.zeros((1, 2), np.float64),
        np.zeros((2, 2), np.float32),
        np.zeros((), np.float32),
    ],
)
@on_loop
async def test_output_that_is_not_what_the_signature_says_fails_the_request(wrong: np.ndarray) -> None:
    rig = Rig()
    request = rig.ask(1.0)
    rig.new_worker(on_run=lambda x: wrong).loops[0].turn(wait=False)
    rig.dispatcher.receive()
    (error,) = request.ends
    assert isinstance(error, ModelFailed)
    assert "the signature says FP32 [-1, 2]" in str(error)


@on_loop
async def test_dynamic_outputs_have_each_requests_own_shape() -> None:
    rig = Rig(DYNAMIC)
    asked = [rig.ask(1.0, 2.0, length=5), rig.ask(3.0, length=5)]
    worker = rig.new_worker()
    worker.loops[0].turn(wait=False)
    rig.dispatcher.receive()
    assert all(request.right for request in asked)
    assert len(worker.sessions[0].batches) == 1


@on_loop
async def test_a_run_is_marked_on_the_board_while_it_lasts() -> None:
    rig = Rig(workers=1)
    seen: list[int] = []
    worker = rig.new_worker(on_run=lambda x: seen.append(rig.board.step_since_ns[0, 0]))
    rig.ask(1.0)
    worker.loops[0].turn(wait=False)
    assert seen[0] > 0
    assert rig.board.step_since_ns[0, 0] == 0
