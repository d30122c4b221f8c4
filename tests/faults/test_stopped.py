"""Processes that are stopped, not dead: idle, with the turn to read a queue, or API servers. Nobody waits long."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server_process import ServerProcess, serving, wait_gone
from tests.faults.support import SteadyLoad, make_repository, until
from tests.service.repositories import save_linear

pytestmark = pytest.mark.e2e

ROW = {"inputs": [[1.0, 2.0, 3.0, 4.0]]}


@contextlib.contextmanager
def two_models(tmp_path: Path, *options: str) -> Iterator[ServerProcess]:
    repository = make_repository(tmp_path / "repository", "")
    save_linear(repository / "second" / "1" / "model.onnx")
    with serving(repository, tmp_path / "output", *options) as server:
        server.wait_until("/v2/health/ready", 200)
        yield server


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def let_go(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_two_workers_serve_two_models_under_load_and_none_of_them_dies(tmp_path: Path) -> None:
    """Record locks between processes with threads gave EDEADLK here, and each time a worker died."""
    with two_models(tmp_path, "--workers-per-device", "2") as server:

        async def load() -> None:
            async with (
                SteadyLoad(server.url, 8, "linear") as first,
                SteadyLoad(server.url, 8, "second") as second,
            ):
                await until(lambda: min(first.right, second.right) > 3000, "3,000 answers of each model")
            assert first.wrong == second.wrong == []
            assert first.broken == second.broken == []

        asyncio.run(load())
        assert server.metric("foldserve_worker_restarts_total", device="cpu") == 0


@pytest.mark.parametrize("which", [0, 1])
def test_worker_stopped_while_idle_holds_up_nobody_when_another_serves(tmp_path: Path, which: int) -> None:
    with two_models(tmp_path, "--workers-per-device", "2", "--run-limit", "3600") as server:
        workers = server.workers()
        assert len(workers) == 2
        stop(workers[which])
        try:
            for name in ("linear", "second", "linear", "second"):
                # The turn to read may be the stopped one's: the other has it after a second or so.
                assert server.post(f"/predict/{name}", json=ROW).status_code == 200
        finally:
            let_go(workers)
        assert server.metric("foldserve_worker_restarts_total", device="cpu") == 0
        for name in ("linear", "second"):
            assert server.post(f"/predict/{name}", json=ROW).status_code == 200


def test_worker_stopped_while_idle_is_replaced_though_nobody_asks_anything(tmp_path: Path) -> None:
    with two_models(tmp_path, "--run-limit", "2") as server:
        workers = server.workers()
        stop(workers[0])
        wait_gone(workers)
        server.wait_until("/v2/health/ready", 200)
        assert server.post("/predict/linear", json=ROW).status_code == 200
        assert "has not answered for more than 2 s" in server.output


def test_api_server_that_is_stopped_is_replaced(tmp_path: Path) -> None:
    with two_models(tmp_path, "--run-limit", "2") as server:
        api_servers = server.api_servers()
        server.until(lambda: server.metric("foldserve_model_ready", model="linear", version="1") == 1)
        stop(api_servers[0])
        wait_gone(api_servers)
        server.wait_until("/v2/health/ready", 200)
        assert server.post("/predict/linear", json=ROW).status_code == 200


def test_one_worker_stopped_and_another_killed_leaves_the_api_servers_alive_and_the_requests_answered(
    tmp_path: Path,
) -> None:
    """A recovery that waits on the event loop for a process that is stopped would stop all clients."""
    with two_models(
        tmp_path, "--workers-per-device", "3", "--api-servers", "2", "--run-limit", "3600"
    ) as server:
        workers = server.workers()
        stop(workers[0])
        os.kill(workers[1], signal.SIGKILL)
        try:
            for name in ("linear", "second") * 3:
                assert server.get("/v2/health/live").status_code == 200
                assert server.post(f"/predict/{name}", json=ROW).status_code == 200
        finally:
            let_go(workers)
