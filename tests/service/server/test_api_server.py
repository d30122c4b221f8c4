"""The parts of an API server: lanes, exact paths, and what it does at each of the parent's messages."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from foldserve.service.codecs import BodyType
from foldserve.service.engine.served import ServedBy
from foldserve.service.ipc.control import MESSAGE, Word
from foldserve.service.ipc.resources import Sizes, Transport
from foldserve.service.ipc.scoreboard import RETURNING, Dimensions
from foldserve.service.ipc.slots.slot_state import State
from foldserve.service.metrics.recorder import Metrics
from foldserve.service.metrics.scrapes import Scrapes
from foldserve.service.protocols.predict import Plans
from foldserve.service.repository.index import ModelEntry, read_repository
from foldserve.service.server import api_server as module
from foldserve.service.server.api_server import (
    ApiServer,
    ServedDevices,
    make_api_server,
    make_lanes,
    make_plans,
    make_routes,
)
from foldserve.service.settings import ServeSettings, load_settings
from tests.service.repositories import metrics_of, sample, save_linear, save_lookup

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


@pytest.fixture
def entries(settings: ServeSettings) -> tuple[ModelEntry, ...]:
    return read_repository(settings.repository)


def plans_of(entries: Sequence[ModelEntry], settings: ServeSettings, metrics: Metrics | None = None) -> Plans:
    return make_plans(make_lanes(entries, settings, workers=1), settings, metrics or metrics_of(*VERSIONS))


# Lanes and routes -------------------------------------------------------------------------------------------


def test_every_version_has_a_lane_with_its_bounds_and_all_workers_instances(
    settings: ServeSettings, entries: tuple[ModelEntry, ...]
) -> None:
    lanes = make_lanes(entries, settings, workers=3)
    assert [(lane.index, lane.model, lane.version) for lane in lanes] == [
        (index, *version) for index, version in enumerate(VERSIONS)
    ]
    assert (lanes[0].bounds.max_rows, lanes[0].bounds.max_bytes) == (99, 12345)
    assert [lane.instances for lane in lanes] == [6, 6, 3]


def test_a_lane_has_the_models_own_time_from_being_queued(
    entries: tuple[ModelEntry, ...], settings: ServeSettings
) -> None:
    bounded = load_settings({"repository": str(settings.repository), "request_timeout_ms": 1500}, {})
    assert make_lanes(entries, bounded, workers=1)[0].timeout_s == 2.0


@pytest.mark.parametrize("default_model", [None, "linear", "lookup"])
def test_fast_path_has_each_version_each_default_version_and_the_default_model(
    settings: ServeSettings, entries: tuple[ModelEntry, ...], default_model: str | None
) -> None:
    routes = make_routes(entries, plans_of(entries, settings), default_model)
    found = {route.path: route.plans[0].served[:2] for route in routes}
    expected = {
        "/predict/linear": ("linear", "2"),
        "/predict/linear/versions/1": ("linear", "1"),
        "/predict/linear/versions/2": ("linear", "2"),
        "/predict/lookup": ("lookup", "1"),
        "/predict/lookup/versions/1": ("lookup", "1"),
    }
    if default_model is not None:
        expected["/predict"] = expected[f"/predict/{default_model}"]
    assert found == expected


def test_only_model_is_the_default_model(settings: ServeSettings, entries: tuple[ModelEntry, ...]) -> None:
    routes = make_routes(entries[1:], plans_of(entries[1:], settings), None)
    assert "/predict" in [route.path for route in routes]


def test_each_plans_answers_count_under_its_own_model_and_protocol(
    settings: ServeSettings, entries: tuple[ModelEntry, ...]
) -> None:
    metrics = metrics_of(*VERSIONS)
    plans = plans_of(entries, settings, metrics)
    plans["linear", "1"][BodyType.NPY].counter(0.001, 2, *[0.0001] * 6)
    labels = {"model": "linear", "version": "1", "protocol": "npy", "code": "200"}
    assert sample(metrics, "foldserve_requests_total", **labels) == 1


# Messages ---------------------------------------------------------------------------------------------------


class Parent:
    """The writing end of an API server's lifeline, and what was done at its messages."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read_fd, self.write_fd = os.pipe()
        self.done: list[tuple[str, int]] = []
        self.stop = asyncio.Event()
        self.metrics = metrics_of(*VERSIONS)
        lane = SimpleNamespace(model="linear", version="2")
        done = self.done

        def after_worker_death(dispatcher: object, serial: int) -> list[Any]:
            done.append(("worker", serial))
            if serial == 13:
                raise ValueError("unlucky")
            return [SimpleNamespace(lane=lane)] * 3

        monkeypatch.setattr(module.recovery, "after_worker_death", after_worker_death)

    def tell(self, *messages: tuple[Word, int]) -> None:
        os.write(self.write_fd, b"".join(MESSAGE.pack(*message) for message in messages))

    async def listened(self) -> None:
        """Let an API server hear all that was told, until it is told to stop."""
        nothing: Any = None
        board = SimpleNamespace(answer=lambda is_worker, index: self.done.append(("alive", index)))
        dispatcher: Any = SimpleNamespace(board=board, index=5)
        ApiServer(dispatcher, nothing, nothing, nothing, self.metrics).listen(self.read_fd, self.stop.set)
        await asyncio.wait_for(self.stop.wait(), 10)
        asyncio.get_running_loop().remove_reader(self.read_fd)

    def close(self) -> None:
        os.close(self.write_fd)


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch) -> Parent:
    return Parent(monkeypatch)


def test_each_message_is_acted_on_in_order_however_they_come_together(parent: Parent) -> None:
    parent.tell((Word.WORKER_DIED, 7), (Word.ARE_YOU_ALIVE, 0), (Word.WORKER_DIED, 9), (Word.STOP, 0))
    asyncio.run(parent.listened())
    assert parent.done == [("worker", 7), ("alive", 5), ("worker", 9)]


def test_message_that_cannot_be_acted_on_does_not_take_the_next_along(parent: Parent) -> None:
    parent.tell((Word.WORKER_DIED, 13), (Word.WORKER_DIED, 7), (Word.STOP, 0))
    asyncio.run(parent.listened())
    assert parent.done == [("worker", 13), ("worker", 7)]


def test_requests_that_are_run_again_count_as_retried(parent: Parent) -> None:
    parent.tell((Word.WORKER_DIED, 7), (Word.STOP, 0))
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
    settings: ServeSettings, entries: tuple[ModelEntry, ...]
) -> None:
    transport = Transport(
        Dimensions(api_servers=2, workers=2, models=3, instances=5), Sizes(16, 2**20), readers=[2] * 3
    )
    metrics = metrics_of(*VERSIONS)
    board = transport.board.map()
    board.ready[0, 2] = 1
    board.ceiling_rows[0, 2], board.ceiling_rows[1, 2], board.ceiling_rows[1, 1] = 8, 4, 2

    async def scrape() -> str:
        server = make_api_server(1, transport, entries, settings, metrics, DEVICES)
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
    settings: ServeSettings, entries: tuple[ModelEntry, ...]
) -> None:
    transport = Transport(
        Dimensions(api_servers=1, workers=2, models=3, instances=5), Sizes(16, 2**20), readers=[2] * 3
    )
    board = transport.board.map()
    board.ready[0, 1], board.ready[1, 1] = 1, RETURNING
    board.ceiling_rows[0, 1] = 4
    board.write_remarks(0, 1, ["TF32 is on"])

    async def ask() -> Sequence[ServedBy]:
        server = make_api_server(0, transport, entries, settings, metrics_of(*VERSIONS), DEVICES)
        return server.app.status.served_by("linear", "2")

    assert asyncio.run(ask()) == [
        ServedBy("cuda:1", True, (1, 2, 4, 8, 16), 4, ("TF32 is on",)),
        ServedBy("cpu", False, (), 16),
    ]
