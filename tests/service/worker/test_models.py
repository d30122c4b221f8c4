"""Which models a worker has: what the table holds now, whatever it held when the worker started."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from foldserve.service.backends import SessionOptions
from foldserve.service.ipc.model_table import ModelKey, ModelState
from foldserve.service.ipc.resources import Sizes, Transport
from foldserve.service.ipc.scoreboard import READY, Dimensions
from foldserve.service.server.model_control import ModelControl
from foldserve.service.worker import models as module
from foldserve.service.worker.model import WorkerParts
from foldserve.service.worker.models import WorkerModels
from foldserve.service.worker.ticket_consumer import WorkerMemory
from tests.service.engine_rig import FIXED, FakeSession
from tests.service.repositories import metrics_of, model_version


class Rig:
    """One of two workers, with real threads and pipes; its models are functions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, instances: int = 4, device: str = "cpu") -> None:
        self.transport = Transport(
            Dimensions(api_servers=1, workers=2, models=2, instances=instances), Sizes(16, 4096)
        )
        self.board = self.transport.board.map()
        self.metrics = metrics_of(("one", "1"), ("two", "1"))
        self.control = ModelControl(self.transport, self.board, self.metrics)
        monkeypatch.setattr("foldserve.service.worker.model.load_model", lambda *_: FakeSession())
        arenas = [arena.map().bytes for arena in self.transport.arenas]
        shared = WorkerMemory(7, 1, arenas, self.board, self.control.table, [])
        worker = WorkerParts(device, self.transport, self.metrics, shared)
        self.models = WorkerModels(worker, self.control.table, None, 1)

    def add(self, name: str, **keys: Any) -> ModelKey:
        return self.control.add(model_version(name, "1", FIXED, **keys))

    def unload(self, key: ModelKey) -> None:
        """As the supervisor does, when API servers have finished with it."""
        self.control.remove(key)
        self.models.changed(key.row)
        assert not self.lets_go(key), "it still serves what is under way"
        self.control.check([1], [])
        self.models.changed(key.row)

    def lets_go(self, key: ModelKey) -> bool:
        return self.board.has_let_go(True, 1, key.row, key.generation)


def until(condition: Callable[[], object]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)  # between two looks
    raise AssertionError("it did not come to be")


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


@pytest.mark.parametrize("instances", [1, 2])
def test_a_row_is_loaded_when_it_is_held_and_let_go_of_when_its_instances_have_ended(
    rig: Rig, instances: int
) -> None:
    for row, generation in ((0, 0), (1, 0), (0, 1)):
        key = rig.add("one", instances=instances)
        assert key == ModelKey(row, generation, "one", "1")
        rig.models.changed(key.row)
        until(lambda key=key: rig.board.ready[1, key.row] == READY)
        rig.unload(key)
        until(lambda key=key: rig.lets_go(key))
        assert rig.board.ready[1, key.row] == 0
        assert rig.metrics.load_seconds(key.row) == 0
        rig.control.check([1], [])
        assert rig.control.table.state[key.row] == ModelState.EMPTY
    assert sorted(rig.models._free) == [0, 1, 2, 3]


def test_a_worker_that_starts_loads_what_is_held_or_drained_and_lets_go_of_what_is_unloaded(rig: Rig) -> None:
    drained, unloaded = rig.add("one"), rig.add("two")
    rig.control.remove(drained)
    rig.control.table.move(unloaded.row, ModelState.UNLOADING)
    rig.board.ready[1, unloaded.row] = READY  # of the worker before
    loaded: list[bool] = []
    rig.models.load_held(lambda: loaded.append(True))
    until(lambda: loaded)
    assert [rig.board.ready[1, row] for row in (0, 1)] == [READY, 0]
    assert [rig.lets_go(key) for key in (drained, unloaded)] == [False, True]


def test_a_model_for_whose_instances_there_is_no_room_is_told_and_can_be_unloaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, instances=2)
    key = rig.add("one", instances=3)
    rig.models.changed(0)
    assert rig.board.load_error(1, 0).startswith("it wants 3 instances, and the worker has room for 2 more")
    rig.unload(key)
    until(lambda: rig.lets_go(key))
    assert sorted(rig.models._free) == [0, 1]


def test_a_model_that_is_unloaded_while_it_loads_is_let_go_of_and_never_served(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(threading.enumerate())
    go = threading.Event()

    def load(*_: object) -> FakeSession:
        go.wait(30)
        return FakeSession()

    monkeypatch.setattr("foldserve.service.worker.model.load_model", load)
    key = rig.add("one")
    rig.models.changed(0)
    rig.unload(key)
    until(lambda: rig.lets_go(key))
    go.set()
    until(lambda: set(threading.enumerate()) <= before)
    assert rig.board.ready[1, 0] == 0


@pytest.mark.parametrize(("workers", "threads"), [(1, 8), (3, 2), (20, 1)])
def test_models_workers_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, rig: Rig, workers: int, threads: int
) -> None:
    monkeypatch.setattr(module, "usable_cores", lambda: 8)
    rig.models._per_device = workers
    assert rig.models._options(model_version("one", "1", FIXED).config).threads == threads


def test_threads_of_config_yaml_are_kept(rig: Rig) -> None:
    given = model_version("one", "1", FIXED, session={"threads": 5}).config
    assert rig.models._options(given) == SessionOptions(threads=5)
