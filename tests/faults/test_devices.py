"""What a GPU can do to a worker, done by a backend of the tests: no room for a batch, or the device lost under load."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.server_process import ServerProcess, serving
from tests.faults.support import (
    FULL_AT,
    LIMIT_S,
    LOST_AT,
    ROOM,
    RUN_S,
    SteadyLoad,
    make_repository,
    until,
    use_faulty_backend,
)

pytestmark = pytest.mark.e2e

LABELS = {"model": "linear", "version": "1"}


@contextlib.contextmanager
def faulty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], *options: str
) -> Iterator[ServerProcess]:
    use_faulty_backend(tmp_path / "backend", monkeypatch)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    repository = make_repository(tmp_path / "repository", "max_batch_size: 32\nwarmup: false\n")
    with serving(repository, tmp_path / "output", "--request-timeout-ms", "0", *options) as server:
        server.wait_until("/v2/health/ready", 200)
        yield server


async def serves_through_three_restarts(server: ServerProcess, why: str) -> int:
    """Load it until three workers have ended and the next one serves. Returns: how many were answered rightly."""
    async with SteadyLoad(server.url, 32) as load:
        restarts = partial(server.metric, "foldserve_worker_restarts_total", device="cpu")
        until_s = time.monotonic() + LIMIT_S
        while await asyncio.to_thread(restarts) < 3:  # in a thread: the load must go on meanwhile
            assert time.monotonic() < until_s, why
        before = load.right
        await until(lambda: load.right > before, "the next one serves")
    assert load.wrong == []
    assert load.broken == []
    return load.right


def test_device_lost_again_and_again_under_load_costs_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A request that was being run at a death is run alone the next time: a worker must come further than those.
    with faulty(tmp_path, monkeypatch, {RUN_S: "0.005", LOST_AT: "100"}) as server:
        assert asyncio.run(serves_through_three_restarts(server, "three workers lost their device")) >= 300
        assert "device cpu is lost: CUDA error 719" in server.output
        assert "ended with code 69" in server.output
        assert "Traceback" not in server.output
        assert server.metric("foldserve_retried_total", **LABELS) > 0
        assert server.end(signal.SIGTERM) == 0


def test_device_without_room_for_the_next_worker_is_tried_again_and_costs_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {RUN_S: "0.005", LOST_AT: "100", FULL_AT: "2,3"}
    with faulty(tmp_path, monkeypatch, environment) as server:
        asyncio.run(serves_through_three_restarts(server, "one worker lost its device, two found no room"))
        assert (
            "model linear version 1 was served on cpu, which does not have enough memory for it now"
            in server.output
        )
        assert server.output.count("ended with code 75") == 2
        assert "Traceback" not in server.output
        assert server.end(signal.SIGTERM) == 0


def test_device_without_room_for_a_full_batch_costs_no_request_and_the_ceiling_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with SteadyLoad(server.url, 32) as load:
            await until(lambda: load.right >= 500, "load goes on")
        assert load.wrong == []
        assert load.broken == []

    with faulty(tmp_path, monkeypatch, {RUN_S: "0.005", ROOM: "5"}) as server:
        assert server.metric("foldserve_batch_ceiling_rows", **LABELS) == 32
        asyncio.run(run())
        rows = [[float(i), 1.0, 2.0, 3.0] for i in range(100)]
        answer = server.post("/predict/linear", json={"inputs": rows})
        assert answer.is_success
        assert len(answer.json()["outputs"]["y"]) == 100
        ceiling = server.metric("foldserve_batch_ceiling_rows", **LABELS)
        assert 1 <= ceiling <= 5
        (version,) = server.get("/info").json()["models"][0]["versions"]
        assert version["workers"] == [
            {
                "device": "cpu",
                "ready": True,
                "batch_buckets": [],
                "batch_ceiling_rows": ceiling,
                "notes": ["a session of the tests"],
            }
        ]
        assert server.output.count("a session of the tests") == 1
        # Each lowering halves what failed, so there are few.
        assert 1 <= server.output.count("does not have enough memory for a batch of") <= 5
        assert server.metric("foldserve_worker_restarts_total", device="cpu") == 0
