"""Signals to the server, and deaths of API servers, under load."""

import asyncio
import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from foldserve.service.metrics.process import descendants
from tests.e2e.server_process import ServerProcess, left_behind, serving, wait_gone
from tests.faults.support import (
    GATED,
    HANG,
    HELD_AT,
    LIMIT_S,
    Caller,
    SteadyLoad,
    client_ports,
    expected,
    make_repository,
    open_gate,
    until,
    use_faulty_backend,
)

pytestmark = pytest.mark.e2e


async def signal_in_run(server: ServerProcess, row: list[float]) -> Caller:
    """Send SIGTERM while the row's run goes on, and see it taken; the caller's answer is still to come."""
    caller = Caller(server.url)
    await caller.open()
    caller.send(row)
    labels = {"model": "linear", "version": "1"}
    await until(lambda: server.metric("foldserve_inflight_requests", **labels) == 1, "it runs")
    server.process.send_signal(signal.SIGTERM)
    await until(lambda: "stopping" in server.output, "the signal is taken")
    return caller


async def run_is_answered_after_sigterm(server: ServerProcess, backend: Path) -> None:
    row = [GATED, 1.0, 2.0, 3.0]
    caller = await signal_in_run(server, row)
    open_gate(backend)
    status, _, body = await asyncio.wait_for(caller.receive(), LIMIT_S)
    assert status == 200
    assert str(expected(row)[0]).encode() in body
    caller.close()


def test_sigterm_under_load_fails_no_accepted_request_and_ends_with_exit_0(tmp_path: Path) -> None:
    async def run() -> None:
        async with SteadyLoad(server.url, 32) as load, httpx.AsyncClient(timeout=LIMIT_S) as client:
            await until(lambda: load.right > 300, "load goes on")
            server.process.send_signal(signal.SIGTERM)
            # What a load balancer does: it turns away when the server says that it is not ready any more.
            until_s = time.monotonic() + LIMIT_S
            while (await client.get(f"{server.url}/v2/health/ready")).status_code == 200:
                assert time.monotonic() < until_s
            before = load.right
            await until(lambda: load.right > before + 100, "still served in the grace time")
            await load.stop()
        assert load.wrong == []
        assert load.broken == []

    options = ("--drain-grace", "5", "--api-servers", "2")
    with serving(make_repository(tmp_path / "repository"), tmp_path / "output", *options) as server:
        server.wait_until("/v2/health/ready", 200)
        pids = server.processes()
        asyncio.run(run())
        assert server.process.wait(LIMIT_S) == 0
        wait_gone(pids)
        assert left_behind() == []
        assert "Traceback" not in server.output


def test_run_is_answered_after_sigterm_and_a_second_signal_waits_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_faulty_backend(tmp_path / "backend", monkeypatch)
    repository = make_repository(tmp_path / "repository")

    async def broken_off() -> None:
        caller = await signal_in_run(server, [HANG, 1.0, 2.0, 3.0])
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises((ConnectionError, EOFError)):
            await asyncio.wait_for(caller.receive(), LIMIT_S)
        caller.close()

    with serving(repository, tmp_path / "first") as server:
        server.wait_until("/v2/health/ready", 200)
        asyncio.run(run_is_answered_after_sigterm(server, tmp_path / "backend"))
        assert server.process.wait(LIMIT_S) == 0
    options = ("--drain-grace", "600", "--run-limit", "600")
    with serving(repository, tmp_path / "second", *options) as server:
        server.wait_until("/v2/health/ready", 200)
        pids = server.processes()
        asyncio.run(broken_off())
        server.process.wait(LIMIT_S)
        wait_gone(pids)


def test_sigterm_while_another_worker_still_loads_answers_what_was_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_faulty_backend(tmp_path / "backend", monkeypatch)
    monkeypatch.setenv(HELD_AT, "2")

    options = ("--workers-per-device", "2")
    with serving(make_repository(tmp_path / "repository"), tmp_path / "output", *options) as server:
        server.wait_until("/v2/health/ready", 200)
        pids = server.processes()
        asyncio.run(run_is_answered_after_sigterm(server, tmp_path / "backend"))
        assert server.process.wait(LIMIT_S) == 0
        wait_gone(pids)


def test_killed_api_server_breaks_its_own_connections_alone_and_a_new_one_serves(tmp_path: Path) -> None:
    async def run() -> None:
        async with SteadyLoad(server.url, 32) as load:
            await until(lambda: load.right > 300, "load goes on")
            servers = server.api_servers()
            assert len(servers) == 2
            own = {caller.own_port for caller in load.callers}
            victim = max(servers, key=lambda pid: len(client_ports(pid) & own))
            held = client_ports(victim) & own
            await asyncio.to_thread(os.kill, victim, signal.SIGKILL)
            await until(lambda: len(load.broken) == len(held), "its connections break")
            await until(
                lambda: victim not in (found := server.api_servers()) and len(found) == 2,
                "a new one is there",
            )
            async with SteadyLoad(server.url, 32) as more:
                await until(lambda: more.right > 300, "new connections are served")
            assert (more.wrong, more.broken) == ([], [])
        assert load.wrong == []
        assert set(load.broken) == held

    with serving(
        make_repository(tmp_path / "repository"), tmp_path / "output", "--api-servers", "2"
    ) as server:
        server.wait_until("/v2/health/ready", 200)
        asyncio.run(run())
        assert server.end(signal.SIGTERM) == 0


def test_processes_killed_again_and_again_leave_no_zombie_and_no_descriptor(tmp_path: Path) -> None:
    rows = [[float(number), 0.0, 0.0, 0.0] for number in range(60_000)]
    large = httpx.Request("POST", "http://x", json={"inputs": rows}).content

    def all_at_work() -> int:
        """Have the processes that help an API server started. Returns: descriptors of the supervisor."""
        server.wait_until("/v2/health/ready", 200)
        server.wait_until("/metrics", 200)
        answer = server.post("/predict/linear", content=large, headers={"content-type": "application/json"})
        assert answer.status_code == 200
        return len(os.listdir(f"/proc/{server.process.pid}/fd"))

    with serving(make_repository(tmp_path / "repository"), tmp_path / "output") as server:
        held = all_at_work()
        for _ in range(3):
            (api_server,) = server.api_servers()
            helpers = set(descendants(api_server))
            assert len(helpers) == 2
            for pid in [api_server, *server.workers()]:
                os.kill(pid, signal.SIGKILL)
            server.until(lambda gone={api_server, *helpers}: not gone & set(descendants(server.process.pid)))
            assert all_at_work() == held
        assert server.end(signal.SIGHUP) == 0


def test_worker_and_api_server_killed_in_the_same_moment_both_come_back(tmp_path: Path) -> None:
    async def run() -> None:
        async with SteadyLoad(server.url, 16) as load:
            await until(lambda: load.right > 200, "load goes on")
            (worker,), victim = server.workers(), server.api_servers()[0]

            def kill_both() -> None:
                os.kill(worker, signal.SIGKILL)
                os.kill(victim, signal.SIGKILL)

            await asyncio.to_thread(kill_both)
            await until(
                lambda: victim not in (found := server.api_servers()) and len(found) == 2,
                "a new one is there",
            )
            async with SteadyLoad(server.url, 16) as more:
                await until(lambda: more.right > 300, "new connections are served")
            assert (more.wrong, more.broken) == ([], [])
        assert load.wrong == []

    with serving(
        make_repository(tmp_path / "repository"), tmp_path / "output", "--api-servers", "2"
    ) as server:
        server.wait_until("/v2/health/ready", 200)
        asyncio.run(run())
        assert server.end(signal.SIGTERM) == 0


def test_killed_parent_under_load_takes_every_process_with_it(tmp_path: Path) -> None:
    async def run() -> None:
        async with SteadyLoad(server.url, 16) as load:
            await until(lambda: load.right > 100, "load goes on")
            server.process.kill()
            await until(lambda: len(load.broken) == 16, "all connections break")
        assert load.wrong == []

    with serving(make_repository(tmp_path / "repository"), tmp_path / "output") as server:
        server.wait_until("/v2/health/ready", 200)
        pids = server.processes()
        asyncio.run(run())
        server.process.wait(LIMIT_S)
        wait_gone(pids)
        assert left_behind() == []
