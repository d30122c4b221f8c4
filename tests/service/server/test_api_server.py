"""The parts of an API server: queues, exact paths, and what it does at each of the parent's messages."""

import asyncio
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from foldserve.service.engine import recovery
from foldserve.service.engine.dispatcher import Dispatcher
from foldserve.service.engine.served import ServedBy
from foldserve.service.frontend.http1.heads.cache import Route
from foldserve.service.inference.plan import RequestPlan
from foldserve.service.ipc.control import CONTROL_STRUCT, ControlMessage
from foldserve.service.ipc.model_table import ModelState
from foldserve.service.ipc.resources import Sizes, Transport
from foldserve.service.ipc.scoreboard import RESTARTING, Dimensions
from foldserve.service.ipc.slots.slot_state import State
from foldserve.service.metrics.recorder import Metrics
from foldserve.service.metrics.scrapes import Scrapes
from foldserve.service.repository.index import read_repository
from foldserve.service.repository.model_version import versions_of
from foldserve.service.server.api_models import ApiModels
from foldserve.service.server.api_server import ApiServer, ServedDevices, make_api_server
from foldserve.service.setting_sources import load_settings
from foldserve.service.settings import ServeSettings
from tests.service.engine_rig import FIXED
from tests.service.repositories import metrics_of, model_version, sample, save_linear, save_lookup

VERSIONS = (("linear", "1"), ("linear", "2"), ("lookup", "1"))
DEVICES = ServedDevices(("cuda:1", "cpu"), {})


@pytest.fixture
def settings(tmp_path: Path) -> ServeSettings:
    for version in ("1", "2"):
        save_linear(tmp_path / "linear" / version / "model.onnx")
    (tmp_path / "linear" / "config.yaml").write_text(
        "version_policy: all\ninstances: 2\nmax_batch_size: 16\n"
        "queue: {max_rows: 99, max_bytes: 12345, timeout_ms: 2000}\n"
    )
    save_lookup(tmp_path / "lookup" / "1" / "model.onnx")
    return load_settings({"repository": str(tmp_path), "device": "cpu"}, {})


def transport_of(workers: int, settings: ServeSettings, api_servers: int = 1) -> Transport:
    """With the repository's models in the table."""
    versions = versions_of(read_repository(settings.repository))
    dimensions = Dimensions(api_servers, workers, models=len(versions), instances=5)
    transport = Transport(dimensions, Sizes(16, 2**20))
    for version in versions:
        version.add_to(transport.models.map())
    return transport


async def with_models(
    settings: ServeSettings, ask: Callable[[ApiModels], Any], workers: int = 1, metrics: Metrics | None = None
) -> Any:
    """What is asked of an API server's models."""
    transport = transport_of(workers, settings)
    arena, done = transport.arenas[0].map(), transport.done[0].reader.fd
    dispatcher = Dispatcher(0, arena, transport.board.map(), done, 60.0, lambda _: None, lambda _: None)
    return ask(ApiModels(transport, dispatcher, metrics or metrics_of(*VERSIONS), settings))


# Queues and routes -------------------------------------------------------------------------------------------


def test_every_version_has_a_queue_with_its_bounds_and_all_workers_instances(settings: ServeSettings) -> None:
    queues = asyncio.run(with_models(settings, lambda api: api.models.queues(), workers=3))
    assert [(queue.row, queue.model, queue.version) for queue in queues] == [
        (index, *version) for index, version in enumerate(VERSIONS)
    ]
    assert (queues[0].bounds.max_rows, queues[0].bounds.max_bytes) == (99, 12345)
    assert [queue.instances for queue in queues] == [6, 6, 3]


def test_a_queue_has_the_models_own_time_from_being_queued(settings: ServeSettings) -> None:
    assert asyncio.run(with_models(settings, lambda api: api.models.queues()))[0].timeout_s == 2.0


def of(route: Route) -> RequestPlan:
    plan = route.plan(0, 7, -1)  # JSON
    assert plan is not None
    return plan


@pytest.mark.parametrize("default_model", [None, "linear", "lookup"])
def test_fast_path_has_each_version_each_default_version_and_the_default_model(
    settings: ServeSettings, default_model: str | None
) -> None:
    routes = asyncio.run(with_models(settings, lambda api: api.routes(default_model)))
    found = {route.path: of(route).served[:2] for route in routes}
    expected = {
        "/predict/linear": ("linear", "2"),
        "/predict/linear/versions/1": ("linear", "1"),
        "/predict/linear/versions/2": ("linear", "2"),
        "/predict/lookup": ("lookup", "1"),
        "/predict/lookup/versions/1": ("lookup", "1"),
    }
    others = {path.replace("/predict", "/v2/models") + "/infer": of for path, of in expected.items()}
    others |= {path.replace("/predict", "/v1/models") + ":predict": of for path, of in expected.items()}
    if default_model is not None:
        others["/predict"] = others["/invocations"] = expected[f"/predict/{default_model}"]
    expected |= others
    assert found == expected


def test_only_model_is_the_default_model(settings: ServeSettings) -> None:
    shutil.rmtree(settings.repository / "linear")
    routes = asyncio.run(with_models(settings, lambda api: api.routes(None)))
    assert "/predict" in [route.path for route in routes]


def test_each_plans_answers_count_under_its_own_model_and_protocol(settings: ServeSettings) -> None:
    metrics = metrics_of(*VERSIONS)
    plans = asyncio.run(with_models(settings, lambda api: api.plans, metrics=metrics))
    plans["linear", "1"]["npy"].counter(0.001, 2, *[0.0001] * 6)
    labels = {"model": "linear", "version": "1", "protocol": "npy", "code": "200"}
    assert sample(metrics, "foldserve_requests_total", **labels) == 1


def test_version_that_is_unloaded_and_another_that_is_loaded_change_the_routes_once(
    settings: ServeSettings,
) -> None:
    def change(api: ApiModels) -> None:
        table = api._table
        gone = table.key(1)  # linear/2, the default
        table.move(1, ModelState.DRAINING)
        assert api.changed(1)
        assert not api.changed(1)
        routes = {route.path: of(route).served.version for route in api.routes(None)}
        assert routes["/predict/linear"] == "1"
        assert "/predict/linear/versions/2" not in routes
        board = api._dispatcher.board
        assert board.has_let_go(False, 0, 1, gone.generation)
        table.move(1, ModelState.UNLOADING)
        assert not api.changed(1)
        table.free(1)
        key = model_version("new", "1", FIXED).add_to(table)
        assert (key.row, key.generation) == (1, 1)
        assert not board.has_let_go(False, 0, 1, key.generation)
        assert api.changed(1)
        assert api.models.by_model["new"][0].queue.key == key
        assert "/predict/new" in [route.path for route in api.routes(None)]

    asyncio.run(with_models(settings, change))


# Messages ---------------------------------------------------------------------------------------------------


class Parent:
    """The writing end of an API server's lifeline, and what was done at its messages."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read_fd, self.write_fd = os.pipe()
        self.done: list[tuple[str, int]] = []
        self.stop = asyncio.Event()
        self.metrics = metrics_of(*VERSIONS)
        queue = SimpleNamespace(row=1)
        done = self.done

        def after_worker_death(dispatcher: object, incarnation: int) -> list[Any]:
            done.append(("worker", incarnation))
            if incarnation == 13:
                raise ValueError("unlucky")
            return [SimpleNamespace(queue=queue)] * 3

        monkeypatch.setattr(recovery, "after_worker_death", after_worker_death)

    def tell(self, *messages: tuple[ControlMessage, int]) -> None:
        os.write(self.write_fd, b"".join(CONTROL_STRUCT.pack(*message) for message in messages))

    async def listened(self) -> None:
        """Let an API server hear all that was told, until it is told to stop."""
        nothing: Any = None
        board = SimpleNamespace(answer=lambda is_worker, index: self.done.append(("alive", index)))
        dispatcher: Any = SimpleNamespace(board=board, index=5)

        def changed(row: int) -> None:
            self.done.append(("model", row))

        ApiServer(dispatcher, nothing, nothing, nothing, self.metrics, changed, nothing).listen(
            self.read_fd, self.stop.set
        )
        await asyncio.wait_for(self.stop.wait(), 10)
        asyncio.get_running_loop().remove_reader(self.read_fd)

    def close(self) -> None:
        os.close(self.write_fd)


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch) -> Parent:
    return Parent(monkeypatch)


def test_each_message_is_acted_on_in_order_however_they_come_together(parent: Parent) -> None:
    parent.tell(
        (ControlMessage.WORKER_DIED, 7),
        (ControlMessage.ARE_YOU_ALIVE, 0),
        (ControlMessage.MODEL_CHANGED, 2),
        (ControlMessage.WORKER_DIED, 9),
        (ControlMessage.STOP, 0),
    )
    asyncio.run(parent.listened())
    assert parent.done == [("worker", 7), ("alive", 5), ("model", 2), ("worker", 9)]


def test_message_that_cannot_be_acted_on_does_not_take_the_next_along(parent: Parent) -> None:
    parent.tell((ControlMessage.WORKER_DIED, 13), (ControlMessage.WORKER_DIED, 7), (ControlMessage.STOP, 0))
    asyncio.run(parent.listened())
    assert parent.done == [("worker", 13), ("worker", 7)]


def test_requests_that_are_run_again_count_as_retried(parent: Parent) -> None:
    parent.tell((ControlMessage.WORKER_DIED, 7), (ControlMessage.STOP, 0))
    asyncio.run(parent.listened())
    assert sample(parent.metrics, "foldserve_retried_total", model="linear", version="2") == 3


def test_api_server_ends_when_its_parent_is_gone(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = []

    def end(code: int) -> None:
        codes.append(code)
        parent.stop.set()

    monkeypatch.setattr(os, "_exit", end)
    parent.close()
    asyncio.run(parent.listened())
    assert set(codes) == {1}  # once in earnest; here the loop goes on


# The whole --------------------------------------------------------------------------------------------------


def test_scrape_through_any_api_server_sees_what_waits_in_all_of_them_and_who_is_ready(
    settings: ServeSettings,
) -> None:
    transport = transport_of(2, settings, api_servers=2)
    metrics = metrics_of(*VERSIONS)
    board = transport.board.map()
    board.ready[0, 2] = 1
    board.batch_limit_rows[0, 2], board.batch_limit_rows[1, 2], board.batch_limit_rows[1, 1] = 8, 4, 2

    async def scrape() -> str:
        server = make_api_server(1, transport, settings, metrics, DEVICES)
        other = transport.arenas[0].map()  # of an API server in another process
        for slot, (state, rows) in enumerate([(State.QUEUED, 5), (State.TAKEN, 7)]):
            other.state[slot], other.model[slot], other.rows[slot] = state, 2, rows
        scrapes = server.app.exposition
        assert isinstance(scrapes, Scrapes)
        text = (await scrapes(""))[0].decode()
        await scrapes.close()
        return text

    lines = asyncio.run(scrape()).splitlines()
    for name, value in (("queue_rows", 5), ("inflight_requests", 2), ("model_ready", 1)):
        assert f'foldserve_{name}{{model="lookup",version="1"}} {value}.0' in lines
        assert f'foldserve_{name}{{model="linear",version="2"}} 0.0' in lines
    for (model, version), rows in zip(VERSIONS, (16, 2, 4), strict=True):
        assert f'foldserve_batch_ceiling_rows{{model="{model}",version="{version}"}} {rows}.0' in lines


def test_each_workers_side_of_a_version_is_told(
    settings: ServeSettings,
) -> None:
    transport = transport_of(2, settings)
    board = transport.board.map()
    board.ready[0, 1], board.ready[1, 1] = 1, RESTARTING
    board.batch_limit_rows[0, 1] = 4
    board.write_notes(0, 1, ["TF32 is on"])

    async def ask() -> Sequence[ServedBy]:
        server = make_api_server(0, transport, settings, metrics_of(*VERSIONS), DEVICES)
        return server.app.status.served_by("linear", "2")

    assert asyncio.run(ask()) == [
        ServedBy("cuda:1", True, (1, 2, 4, 8, 16), 4, ("TF32 is on",)),
        ServedBy("cpu", False, (), 16),
    ]


def test_reason_why_a_model_is_not_served_is_told_also_when_it_comes_after_the_first_question(
    settings: ServeSettings,
) -> None:
    transport = transport_of(2, settings)

    async def ask() -> list[str]:
        status = make_api_server(0, transport, settings, metrics_of(*VERSIONS), DEVICES).app.status
        problems = []
        for reason in ("", "no memory", "no file"):
            transport.board.map().write_load_error(1, 2, reason)
            problems.append(status.models()["lookup"].versions["1"].manifest["problem"])
        return problems

    assert asyncio.run(ask()) == ["loading", "no memory", "no file"]
