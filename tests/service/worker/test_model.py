"""A model in a worker: what the scoreboard and the log learn, and which buckets and memory its instances get."""

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foldserve.service.backends import LoadError
from foldserve.service.backends.base import DeviceLost, InsufficientMemory, SessionOptions
from foldserve.service.ipc.resources import Sizes, Transport
from foldserve.service.ipc.scoreboard import READY, RESTARTING, Dimensions
from foldserve.service.repository.index import read_repository
from foldserve.service.repository.model_version import versions_of
from foldserve.service.worker import model as module
from foldserve.service.worker.instance import Instance
from foldserve.service.worker.model import LoadedModel, WorkerParts
from foldserve.service.worker.ticket_consumer import WorkerMemory
from tests.service.engine_rig import FakeSession
from tests.service.repositories import metrics_of, sample, save_linear


class Loading:
    """In load_model's place: makes sessions, or raises what is in their place."""

    def __init__(self, *made: Any) -> None:
        self.made = list(made)
        self.threads: list[int] = []

    def __call__(self, *_: object) -> Any:
        self.threads.append(threading.get_ident())
        made = self.made.pop(0)
        if isinstance(made, BaseException):
            raise made
        return made


class Rig:
    """One worker, the second of two, with one model."""

    def __init__(self, folder: Path, config: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
        save_linear(folder / "linear" / "1" / "model.onnx")
        (folder / "linear" / "config.yaml").write_text(config)
        (self.version,) = versions_of(read_repository(folder))
        self.monkeypatch = monkeypatch
        transport = Transport(Dimensions(api_servers=1, workers=2, models=1, instances=4), Sizes(16, 2**20))
        self.board = transport.board.map()
        self.models = transport.models.map()
        self.key = self.version.add_to(self.models)
        self.metrics = metrics_of(("linear", "1"))
        arenas = [arena.map().bytes for arena in transport.arenas]
        shared = WorkerMemory(
            7, 1, arenas, self.board, self.models, [pipe.writer.fd for pipe in transport.done]
        )
        self.worker = WorkerParts(device, transport, self.metrics, shared)

    def model(self) -> LoadedModel:
        numbers = range(self.version.config.instances)
        return LoadedModel(self.worker, self.key, self.version, SessionOptions(), numbers)

    def load(self, *made: Any) -> tuple[list[Instance], Loading]:
        loading = Loading(*made)
        self.monkeypatch.setattr(module, "load_model", loading)
        version = self.model()
        version.load()
        instances = list(version._loaded)
        for instance in instances:
            instance.drop()
        return instances, loading


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Rig]:
    return lambda config, device="cuda:0": Rig(tmp_path, config, device, monkeypatch)


def test_every_instance_loads_in_a_thread_of_its_own_and_their_notes_are_told_once(
    rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture
) -> None:
    made = rig("instances: 2\n")
    sessions = [FakeSession(notes=("TF32 is on", "plain runs")), FakeSession(notes=("TF32 is on",))]
    with caplog.at_level(logging.INFO, "foldserve.worker"):
        instances, loading = made.load(*sessions)
    assert len(instances) == len(set(loading.threads)) == 2
    assert threading.get_ident() not in loading.threads
    assert made.board.notes(1, 0) == ["TF32 is on", "plain runs"]
    assert [record.getMessage() for record in caplog.records] == [
        "model linear version 1 on cuda:0: TF32 is on",
        "model linear version 1 on cuda:0: plain runs",
    ]
    assert sample(made.metrics, "foldserve_model_load_seconds", model="linear", version="1") > 0


def test_model_is_ready_when_its_instances_serve_and_not_when_it_is_loaded(rig: Callable[..., Rig]) -> None:
    made = rig("")
    made.monkeypatch.setattr(module, "load_model", Loading(FakeSession()))
    version = made.model()
    version.load()
    (instance,) = version._loaded
    assert made.board.ready[1, 0] == 0
    assert repr(version) == "<LoadedModel linear/1 in row 0.0 on cuda:0: 1 of 1 instances loaded>"
    seen: list[int] = []
    made.monkeypatch.setattr(instance, "serve", lambda: seen.append(made.board.ready[1, 0]))
    version.serve()
    assert (seen, made.board.ready[1, 0]) == ([0], READY)
    instance.drop()


def test_model_that_did_not_load_is_not_made_ready(rig: Callable[..., Rig]) -> None:
    made = rig("")
    made.monkeypatch.setattr(module, "load_model", Loading(LoadError("too little memory")))
    version = made.model()
    version.load()
    version.serve()
    assert made.board.ready[1, 0] == 0


@pytest.mark.parametrize(
    ("config", "device", "most"),
    [("max_batch_size: 24\n", "cuda:0", 24), ("batch_buckets: [4, 6]\n", "cpu", 6)],
)
def test_session_is_asked_for_memory_for_the_largest_batch(
    rig: Callable[..., Rig], config: str, device: str, most: int
) -> None:
    session = FakeSession(pinned=True)
    rig(config, device).load(session)
    assert len(session.host["x"]) == most


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (LoadError("no room for the smallest batch"), "no room for the smallest batch"),
        (ValueError("odd"), "loading failed unexpectedly; the server's log says why, under error id "),
    ],
)
def test_model_of_which_one_instance_cannot_load_is_not_served_and_the_others_are_dropped(
    rig: Callable[..., Rig], error: Exception, note: str
) -> None:
    made = rig("instances: 2\n")
    made.board.ready[1, 0] = READY  # of the worker before
    instances, loading = made.load(FakeSession(), error)
    assert instances == []
    assert len(loading.threads) == 2
    assert made.board.ready[1, 0] == 0
    assert made.board.load_error(1, 0).startswith(note)


def test_reason_of_an_earlier_failure_is_taken_back(rig: Callable[..., Rig]) -> None:
    made = rig("")
    made.load(LoadError("too little memory"))
    made.load(FakeSession())
    assert made.board.load_error(1, 0) == ""


@pytest.mark.parametrize(
    ("before", "error", "ends"),
    [
        (RESTARTING, InsufficientMemory("CUDA failure 2: out of memory"), True),
        (RESTARTING, LoadError("another file"), False),
        (
            0,
            InsufficientMemory("CUDA failure 2: out of memory"),
            False,
        ),  # never had it, or tried too often: others are served
    ],
)
def test_worker_without_room_for_a_model_that_the_one_before_had_ends_to_be_tried_again(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, before: int, error: LoadError, ends: bool
) -> None:
    class Ended(BaseException):
        pass

    ended: list[tuple[object, ...]] = []

    def end(*why: object) -> None:
        ended.append(why)
        raise Ended

    monkeypatch.setattr(module, "end_without_room", end)
    made = rig("")
    made.board.ready[1, 0] = before
    with pytest.raises(Ended) if ends else contextlib.nullcontext():
        made.load(error)
    assert ended == ([("cuda:0", ("linear", "1"), error)] if ends else [])
    assert made.board.ready[1, 0] == (RESTARTING if ends else 0)


def test_memory_of_a_model_that_is_not_served_is_free_for_the_next(rig: Callable[..., Rig]) -> None:
    class Holding(FakeSession):
        """Is held by the error that its use raises, which is its own cause."""

        notes = ()

    held: list[weakref.ref[Holding]] = []

    def fails(*_: object) -> None:
        session = Holding()
        held.append(weakref.ref(session))
        error = LoadError("it does not agree with its reference")
        raise error from error

    made = rig("instances: 2\n")
    first = FakeSession()
    held_first = weakref.ref(first)
    made.monkeypatch.setattr(module, "load_model", lambda *_, left=[first]: left.pop() if left else fails())
    del first
    version = made.model()
    version.load()
    assert version._loaded == []
    assert [memory() for memory in (*held, held_first)] == [None, None]


def test_device_lost_while_loading_ends_the_worker(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(BaseException):
        pass

    def end(device: str, error: DeviceLost) -> None:
        assert (device, str(error)) == ("cuda:0", "CUDA error 700")
        raise Ended

    monkeypatch.setattr(module, "end_without_device", end)
    with pytest.raises(Ended):
        rig("").load(DeviceLost("CUDA error 700"))
