"""What an API server does with a request: admission, outcomes, deadlines, dead workers."""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import (
    DeadlinePassed,
    Internal,
    ModelCrashed,
    ModelFailed,
    NotReady,
    QueueFull,
    TooLarge,
)
from service.litserve_engine import DRAIN, REPORT_CHANGED, STOP, WORKER_DIED, LitServeEngine, notice
from service.metrics import Metrics
from service.outcome import Outcome, StageTimes
from service.repository import read_repository
from service.worker_report import WorkerReport, write_report
from tests.service.repositories import metrics_at, save_linear

KEY = ("linear", "1")
X = np.ones((2, 4), np.float32)
DONE = Outcome({"y": X}, None, StageTimes(run=0.5), batch_rows=2)


class Queue:
    """Takes requests; act() plays the worker."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.act: Callable[[str], None] = lambda uid: None

    def put(self, item: Any) -> None:
        self.items.append(item)
        asyncio.get_running_loop().call_soon(self.act, item[1])


class Setup:
    def __init__(self, folder: Path) -> None:
        save_linear(folder / "repository" / "linear" / "1" / "model.onnx")
        (folder / "repository" / "linear" / "config.yaml").write_text(
            "queue: {max_rows: 10, max_bytes: 100, timeout_ms: 5000}\nmax_batch_size: 4\n"
        )
        self.metrics: Metrics = metrics_at(folder, KEY, writers=("supervisor", "api-0", "worker"))
        self.worker_metrics = Metrics.attach(self.metrics.store.path, self.metrics.plan, "worker")
        self.buffer: dict[str, Any] = {}
        entries = read_repository(folder / "repository")
        self.engine = LitServeEngine(entries, self.metrics, {KEY: ("worker",)}, folder, self.buffer)
        self.queue = Queue()
        self.engine.queues[KEY] = self.queue
        self.folder = folder

    def ready(self, ready: bool = True) -> None:
        self.worker_metrics.model_loaded(*KEY, ready, 0.1)

    def infer(self, x: np.ndarray = X, timeout_s: float | None = None) -> Coroutine[Any, Any, Outcome]:
        return self.engine.infer(*KEY, {"x": x}, len(x), timeout_s)

    def answer(self, uid: str, response: Any = DONE, status: str = "OK") -> None:
        """What LitServe does with a worker's answer."""
        item = self.buffer[uid]
        item.response = (response, status)
        item.event.set()

    def at_rest(self) -> bool:
        return (
            not self.buffer
            and self.metrics.queue_rows(*KEY) == 0
            and self.metrics.queue_bytes(*KEY) == 0
            and self.metrics.store.total(
                self.metrics.store.layout.offsets["foldserve_inflight_requests"][KEY]
            )
            == 0
        )


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    made = Setup(tmp_path)
    made.ready()
    return made


def test_outcome_comes_back_and_nothing_is_left(setup: Setup) -> None:
    setup.queue.act = setup.answer
    assert asyncio.run(setup.infer()) is DONE
    response_queue_id, _, queued_s, queued = setup.queue.items[0]
    assert (response_queue_id, queued.rows) == (0, 2)
    assert queued.as_request(queued_s).deadline_s == pytest.approx(queued_s + 5.0)
    assert setup.at_rest()


def test_error_of_the_model_comes_back_in_the_outcome(setup: Setup) -> None:
    failed = Outcome(None, ModelFailed("no"))
    setup.queue.act = lambda uid: setup.answer(uid, failed)
    assert asyncio.run(setup.infer()) is failed


def test_rows_count_as_queued_until_a_worker_takes_them(setup: Setup) -> None:
    seen: list[float] = []

    def take(uid: str) -> None:
        seen.append(setup.metrics.queue_rows(*KEY))
        setup.buffer[uid].worker_id = 4711
        seen.append(setup.metrics.queue_rows(*KEY))
        setup.answer(uid)

    setup.queue.act = take
    asyncio.run(setup.infer())
    assert seen == [2, 0]
    assert setup.at_rest()


@pytest.mark.parametrize(("rows", "bytes_each"), [(9, 1), (1, 90)])
def test_full_queue_is_refused_by_rows_or_bytes_of_all_api_servers(
    setup: Setup, rows: int, bytes_each: int
) -> None:
    other = Metrics.attach(setup.metrics.store.path, setup.metrics.plan, "api-0")
    other.queued(*KEY, rows, rows * bytes_each)
    with pytest.raises(
        QueueFull, match=f"{rows} rows are waiting for model linear, which lets 10 rows and 100 bytes"
    ):
        asyncio.run(setup.infer())
    assert setup.queue.items == []


def test_retry_after_is_the_time_that_the_waiting_rows_take(setup: Setup) -> None:
    setup.queue.act = setup.answer
    asyncio.run(setup.infer())  # 0.5 s for 2 rows
    Metrics.attach(setup.metrics.store.path, setup.metrics.plan, "api-0").queued(*KEY, 10, 1)
    with pytest.raises(QueueFull) as caught:
        asyncio.run(setup.infer())
    assert caught.value.retry_after_s == pytest.approx(2.5)
    assert caught.value.headers() == {"Retry-After": "3"}


def test_request_that_can_never_fit_the_queue_is_too_large(setup: Setup) -> None:
    with pytest.raises(TooLarge, match="11 rows and 11 bytes of inputs; model linear takes at most 10 rows"):
        asyncio.run(setup.infer(np.ones((11, 1), np.int8)))


@pytest.mark.parametrize("timeout_s", [0.02, 60.0, None])
def test_deadline_is_the_shorter_of_the_requests_and_the_models(
    setup: Setup, timeout_s: float | None
) -> None:
    setup.queue.act = setup.answer
    asyncio.run(setup.infer(timeout_s=timeout_s))
    _, _, queued_s, queued = setup.queue.items[0]
    assert queued.deadline_s - queued_s == pytest.approx(min(timeout_s or 5.0, 5.0))


def test_unanswered_request_ends_at_its_deadline_and_leaves_nothing(setup: Setup) -> None:
    started_s = time.monotonic()
    with pytest.raises(DeadlinePassed, match="no answer within 20 ms"):
        asyncio.run(setup.infer(timeout_s=0.02))
    assert time.monotonic() - started_s < 2
    assert setup.at_rest()


def test_cancelled_request_leaves_nothing(setup: Setup) -> None:
    async def cancel() -> None:
        task = asyncio.create_task(setup.infer())
        while not setup.queue.items:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert setup.at_rest()


def test_request_for_a_model_that_is_not_ready_is_refused(setup: Setup) -> None:
    setup.ready(False)
    with pytest.raises(NotReady, match="model linear version 1 is not ready"):
        asyncio.run(setup.infer())


@pytest.mark.parametrize(("response", "status"), [(b"pickled", "ERROR"), (None, "OK")])
def test_answer_that_is_no_outcome_is_an_internal_error(setup: Setup, response: Any, status: str) -> None:
    setup.queue.act = lambda uid: setup.answer(uid, response, status)
    with pytest.raises(Internal):
        asyncio.run(setup.infer())


def test_queue_that_cannot_be_reached_is_an_internal_error_and_leaves_nothing(setup: Setup) -> None:
    def refuse(item: Any) -> None:
        raise ConnectionRefusedError

    setup.queue.put = refuse  # type: ignore[method-assign]
    with pytest.raises(Internal, match="lost its queue"):
        asyncio.run(setup.infer())
    assert setup.at_rest()


@pytest.mark.parametrize("notice_first", [True, False])
def test_requests_of_a_dead_worker_are_answered_and_others_wait_on(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, notice_first: bool
) -> None:
    monkeypatch.setattr("service.litserve_engine._LAST_ANSWERS_S", 0.01)
    read_end, write_end = os.pipe()
    os.write(write_end, notice(WORKER_DIED, 11))

    async def both() -> tuple[Outcome, Outcome]:
        lost, kept = asyncio.create_task(setup.infer()), asyncio.create_task(setup.infer())
        while len(setup.queue.items) < 2:
            await asyncio.sleep(0)
        (_, of_lost, *_), (_, of_kept, *_) = setup.queue.items
        setup.buffer[of_kept].worker_id = 22
        if notice_first:
            setup.engine.read_notices(read_end)
            setup.buffer[of_lost].worker_id = 11
        else:
            setup.buffer[of_lost].worker_id = 11
            setup.engine.read_notices(read_end)
        outcome = await lost
        assert not kept.done()
        setup.answer(of_kept)
        return outcome, await kept

    lost, kept = asyncio.run(both())
    assert isinstance(lost.error, ModelCrashed)
    assert kept is DONE
    os.close(read_end)
    os.close(write_end)


def test_answer_that_a_worker_gave_before_it_died_still_counts(setup: Setup) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, notice(WORKER_DIED, 11))

    def answer_from_the_dead(uid: str) -> None:
        setup.buffer[uid].worker_id = 11
        setup.engine.read_notices(read_end)
        setup.answer(uid)

    setup.queue.act = answer_from_the_dead
    assert asyncio.run(setup.infer()) is DONE
    os.close(read_end)
    os.close(write_end)


def test_draining_is_not_ready_and_serves_on(setup: Setup) -> None:
    read_end, write_end = os.pipe()
    assert setup.engine.ready()
    os.write(write_end, notice(DRAIN))
    setup.engine.read_notices(read_end)
    assert (setup.engine.ready(), setup.engine.draining()) == (False, True)
    setup.queue.act = setup.answer
    assert asyncio.run(setup.infer()) is DONE
    stopped: list[bool] = []
    setup.engine.stop = lambda: stopped.append(True)
    os.write(write_end, notice(STOP))
    setup.engine.read_notices(read_end)
    assert stopped == [True]
    os.close(read_end)
    os.close(write_end)


def test_models_tell_readiness_and_the_reason_against_it(setup: Setup) -> None:
    served = setup.engine.models()["linear"]
    assert (served.ready, served.default_version, served.versions["1"].max_batch_size) == (True, "1", 4)
    assert setup.engine.models() is setup.engine.models()
    setup.ready(False)
    assert setup.engine.models()["linear"].versions["1"].manifest["problem"] == "loading"
    write_report(setup.folder, "worker", WorkerReport(0.1, "no such kernel"))
    read_end, write_end = os.pipe()
    os.write(write_end, notice(REPORT_CHANGED))
    setup.engine.read_notices(read_end)
    assert setup.engine.models()["linear"].versions["1"].manifest["problem"] == "no such kernel"
    os.close(read_end)
    os.close(write_end)
