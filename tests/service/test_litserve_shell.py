"""The seams of LitServe that the shell is sewn to: each fails here when an update of LitServe moves it."""

import inspect
import pickle
from collections import deque
from pathlib import Path
from queue import Empty
from types import SimpleNamespace
from typing import Any

import litserve
import numpy as np
import pytest
from litserve.loops.base import _StopLoopError
from litserve.loops.loops import inference_worker
from litserve.server import ResponseBufferItem, response_queue_to_buffer
from litserve.utils import LitAPIStatus

from service.artifact import read_artifact
from service.backends import SessionOptions
from service.litserve_engine import OK, Queued, Waiting
from service.litserve_shell import FoldServer, FrontMiddleware, ModelApi, RowLoop, WorkerPlan, api_path
from tests.service.repositories import config, metrics_at, save_linear


def plan_in(folder: Path, **keys: object) -> WorkerPlan:
    save_linear(folder / "1" / "model.onnx")
    metrics = metrics_at(folder)
    settings = config(**{"max_batch_size": 4, **keys})
    return WorkerPlan(
        artifact=read_artifact(folder / "1", "linear", "1", settings),
        config=settings,
        options=SessionOptions(threads=1),
        metrics_path=metrics.store.path,
        metrics_plan=metrics.plan,
        writers=("one",),
        runtime=folder,
        log_level="warning",
    )


class Queue:
    """Holds items; like LitServe's queue, and raises `then` when it is empty."""

    def __init__(self, *rows: int, then: type[Exception] = Empty) -> None:
        self.items = deque((0, f"uid-{i}", float(i), Queued({}, count, None)) for i, count in enumerate(rows))
        self.then = then
        self.timeouts: list[float | None] = []

    def get(self, timeout: float | None = None) -> Any:
        self.timeouts.append(timeout)
        if not self.items:
            raise self.then
        return self.items.popleft()

    def get_nowait(self) -> Any:
        return self.get()


class Transport:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, item: Any, consumer_id: int) -> None:
        self.sent.append((consumer_id, item))


def take(api: ModelApi, queue: Queue) -> tuple[list[str], Transport]:
    transport = Transport()
    api.loop._restart_workers = True
    taken, late = api.loop.get_batch_requests(api, queue, transport)
    assert late == []
    return [uid for _, uid, _ in taken], transport


def test_litserve_is_the_version_whose_seams_were_read() -> None:
    assert litserve.__version__ == "0.2.19"


def test_methods_that_are_overridden_or_called_have_their_parameters() -> None:
    def parameters(function: Any) -> list[str]:
        return list(inspect.signature(function).parameters)

    server = litserve.LitServer
    assert parameters(server._init_manager) == ["self", "num_api_servers"]
    assert parameters(server.lifespan) == ["self", "app"]
    assert parameters(server.launch_inference_worker) == ["self", "lit_api"]
    assert parameters(server.launch_single_inference_worker) == ["self", "lit_api", "worker_id"]
    assert parameters(server._start_server) == [
        *("self", "port", "num_uvicorn_servers", "log_level", "sockets", "uvicorn_worker_type", "kwargs")
    ]
    assert parameters(RowLoop.__mro__[1].get_batch_requests) == [
        "self",
        "lit_api",
        "request_queue",
        "transport",
    ]
    assert parameters(inference_worker)[:3] == ["lit_api", "device", "worker_id"]
    assert 'os.environ["LITSERVE_WORKER_ID"] = str(worker_id)' in inspect.getsource(inference_worker)


def test_answers_reach_the_waiting_request_as_litserve_writes_them() -> None:
    source = inspect.getsource(response_queue_to_buffer)
    assert "response_item.worker_id = int(worker_id)" in source
    assert "response_item.response = response" in source
    assert OK == LitAPIStatus.OK
    for name in ("event", "response_queue", "worker_id", "response"):
        assert name in ResponseBufferItem.__dataclass_fields__
        assert hasattr(Waiting, name) or name in inspect.getsource(Waiting.__init__)


def test_server_is_built_with_our_front_outermost_and_one_api_per_version(tmp_path: Path) -> None:
    engine = SimpleNamespace(buffer={})
    front = object()
    server = FoldServer([plan_in(tmp_path)], ("cpu",), engine, front, None)
    outermost = server.app.user_middleware[0]
    assert (outermost.cls, outermost.kwargs) == (FrontMiddleware, {"front": front})
    assert server.devices == ["cpu"]
    assert server.response_buffer is engine.buffer
    assert server._inference_workers_config_for_api(api_path("linear", "1")) == ["cpu"]


def test_api_can_be_sent_to_a_worker(tmp_path: Path) -> None:
    again = pickle.loads(pickle.dumps(ModelApi(plan_in(tmp_path))))
    assert again.plan.artifact.signature.inputs[0].name == "x"
    assert isinstance(again.loop, RowLoop)


def test_loop_takes_what_waits_up_to_a_full_batch_of_rows(tmp_path: Path) -> None:
    api = ModelApi(plan_in(tmp_path))
    queue = Queue(1, 2, 1, 1)
    uids, _ = take(api, queue)
    assert uids == ["uid-0", "uid-1", "uid-2"]
    assert (len(queue.items), api.reason) == (1, "drained")


def test_loop_without_window_waits_for_the_first_request_only(tmp_path: Path) -> None:
    queue = Queue(1)
    uids, _ = take(ModelApi(plan_in(tmp_path)), queue)
    assert uids == ["uid-0"]
    assert queue.timeouts == [1.0, None]


def test_window_runs_from_the_first_request(tmp_path: Path) -> None:
    api = ModelApi(plan_in(tmp_path, max_queue_delay_ms=200))
    queue = Queue(1, 1)
    uids, _ = take(api, queue)
    assert (uids, api.reason) == (["uid-0", "uid-1"], "waited")
    first, *later = queue.timeouts
    assert first == 1.0
    assert all(timeout is not None and 0 < timeout <= 0.2 for timeout in later)


def test_idle_loop_sleeps_in_the_queue_and_returns_nothing(tmp_path: Path) -> None:
    queue = Queue()
    assert take(ModelApi(plan_in(tmp_path)), queue)[0] == []
    assert queue.timeouts == [1.0]


@pytest.mark.parametrize("gone", [EOFError, ConnectionResetError, BrokenPipeError])
def test_loop_ends_quietly_when_the_queue_is_gone(tmp_path: Path, gone: type[Exception]) -> None:
    with pytest.raises(_StopLoopError):
        take(ModelApi(plan_in(tmp_path)), Queue(then=gone))


def test_taken_requests_are_told_with_the_workers_process_id(tmp_path: Path) -> None:
    import os

    _, transport = take(ModelApi(plan_in(tmp_path)), Queue(1))
    ((consumer, (uid, (_, status, _, worker_id))),) = transport.sent
    assert (consumer, uid, status, worker_id) == (0, "uid-0", LitAPIStatus.START, os.getpid())


def test_worker_loads_reports_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.worker_report import read_report

    monkeypatch.setenv("LITSERVE_WORKER_ID", "0")
    monkeypatch.setattr("service.litserve_shell.die_with_parent", lambda: None)
    monkeypatch.setattr("service.litserve_shell.configure_logging", lambda level: None)
    api = ModelApi(plan_in(tmp_path))
    api.setup("cpu")
    report = read_report(tmp_path, "one")
    assert report is not None
    assert report.problem == ""
    queued = Queued({"x": np.ones((1, 4), np.float32)}, 1, None)
    outcomes = api.unbatch(api.predict(api.batch([api.decode_request((0.0, queued))])))
    assert outcomes[0].outputs is not None
    assert outcomes[0].outputs["y"].shape == (1, 3)


def test_worker_of_an_unfit_model_reports_why_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.worker_report import read_report

    monkeypatch.setenv("LITSERVE_WORKER_ID", "0")
    monkeypatch.setattr("service.litserve_shell.die_with_parent", lambda: None)
    monkeypatch.setattr("service.litserve_shell.configure_logging", lambda level: None)
    plan = plan_in(tmp_path)
    plan.artifact.file.write_bytes(b"not a model")
    with pytest.raises(SystemExit) as caught:
        ModelApi(plan).setup("cpu")
    assert caught.value.code == 0
    report = read_report(tmp_path, "one")
    assert report is not None
    assert "is not a model that onnxruntime can load" in report.problem
