"""Workers die, crash, hang: no request fails for it but the one that did it, and no answer is another's."""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server_process import ServerProcess, serving
from tests.faults.support import (
    CRASH,
    GATED,
    HANG,
    LIMIT_S,
    RUN_S,
    SLOW,
    Caller,
    SteadyLoad,
    expected,
    make_repository,
    open_gate,
    until,
    until_restarted,
    use_faulty_backend,
)

pytestmark = pytest.mark.e2e


@contextlib.contextmanager
def faulty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, *options: str
) -> Iterator[ServerProcess]:
    use_faulty_backend(tmp_path / "backend", monkeypatch)
    options = ("--request-timeout-ms", "0", *options)
    with serving(make_repository(tmp_path / "repository", config), tmp_path / "output", *options) as server:
        server.wait_until("/v2/health/ready", 200)
        yield server


async def ask_together(
    url: str, rows: list[list[float]]
) -> list[tuple[int, dict[str, str], dict[str, object]]]:
    callers = [Caller(url) for _ in rows]
    for caller in callers:
        await caller.open()
    answers = await asyncio.gather(
        *(caller.ask(row, f"x-request-id: row-{row[0]:g}") for caller, row in zip(callers, rows, strict=True))
    )
    for caller in callers:
        caller.close()
    return answers


def test_worker_killed_five_times_under_load_costs_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(server: ServerProcess) -> None:
        async with SteadyLoad(server.url, 32) as load:
            for death in range(1, 6):
                before, (worker,) = load.right, server.workers()
                await until(lambda before=before: load.right > before + 300, "load goes on")
                # In a thread: the requests of this loop's turn are in flight meanwhile.
                await asyncio.to_thread(os.kill, worker, signal.SIGKILL)
                await until_restarted(server, count=1, deaths=death)
        assert load.wrong == []
        assert load.broken == []
        assert load.right >= 1500
        retried = server.metric("foldserve_retried_total", model="linear", version="1")
        assert retried > 0

    monkeypatch.setenv(RUN_S, "0.005")
    with faulty(tmp_path, monkeypatch, "") as server:
        asyncio.run(run(server))
        assert server.end(signal.SIGTERM) == 0


def test_killing_one_of_two_workers_at_random_moments_is_not_noticed_behind_two_api_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = random.Random(7)

    async def run(server: ServerProcess) -> None:
        async with SteadyLoad(server.url, 32) as load:
            for death in range(1, 5):
                worker = chosen.choice(server.workers())
                await asyncio.sleep(chosen.random() * 0.5)  # the random moment
                await asyncio.to_thread(os.kill, worker, signal.SIGKILL)
                before = load.right
                # The other worker serves on: no answer waits for the restart.
                await until(lambda before=before: load.right > before + 100, "the other worker serves")
                await until_restarted(server, count=2, deaths=death)
        assert load.wrong == []
        assert load.broken == []

    options = ("--workers-per-device", "2", "--api-servers", "2")
    monkeypatch.setenv(RUN_S, "0.005")
    with faulty(tmp_path, monkeypatch, "", *options) as server:
        asyncio.run(until_restarted(server, count=2, deaths=0))
        asyncio.run(run(server))


def test_request_that_crashes_the_process_gets_500_after_two_deaths_and_its_neighbours_their_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty(tmp_path, monkeypatch, "max_queue_delay_ms: 300\n") as server:
        rows = [[float(i), 1.0, 2.0, 3.0] for i in range(31)]
        answers = asyncio.run(ask_together(server.url, [*rows, [CRASH, 1.0, 2.0, 3.0]]))
        for row, (status, _, answer) in zip(rows, answers[:-1], strict=True):
            assert (status, answer.get("outputs")) == (200, {"y": [expected(row)]})
        status, headers, answer = answers[-1]
        assert (status, answer["code"]) == (500, "model_crashed")
        assert f"request {headers['x-request-id']} to linear/1 was running at 2 crashes" in server.output
        assert server.metric("foldserve_worker_restarts_total", device="cpu") == 2


def test_run_past_its_limit_ends_the_worker_and_only_the_request_that_hangs_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty(tmp_path, monkeypatch, "", "--run-limit", "1") as server:
        rows = [[HANG, 0.0, 0.0, 0.0], *([float(i), 1.0, 2.0, 3.0] for i in range(4))]
        answers = asyncio.run(ask_together(server.url, rows))
        assert (answers[0][0], answers[0][2]["code"]) == (500, "model_crashed")
        for row, (status, _, answer) in zip(rows[1:], answers[1:], strict=True):
            assert (status, answer.get("outputs")) == (200, {"y": [expected(row)]})
        assert "has been busy with one step for more than 1 s" in server.output


def test_client_that_leaves_the_queue_frees_its_place_before_any_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(server: ServerProcess) -> None:
        slow, *others = [Caller(server.url) for _ in range(6)]
        for caller in (slow, *others):
            await caller.open()
        slow.send([GATED, 0.0, 0.0, 0.0])
        await until(lambda: server.metric("foldserve_inflight_requests", **labels) == 1, "slow one runs")
        for caller in others:
            caller.send([1.0, 2.0, 3.0, 4.0])
        await until(lambda: server.metric("foldserve_queue_rows", **labels) == 5, "five wait")
        for caller in others:
            caller.close()
        await until(lambda: server.metric("foldserve_queue_rows", **labels) == 0, "none waits")
        assert server.metric("foldserve_inflight_requests", **labels) == 1  # the slow one still runs
        open_gate(tmp_path / "backend")
        assert (await asyncio.wait_for(slow.receive(), LIMIT_S))[0] == 200
        slow.close()

    labels = {"model": "linear", "version": "1"}
    with faulty(tmp_path, monkeypatch, "") as server:
        asyncio.run(run(server))
        assert server.post("/predict/linear", json={"inputs": [[1, 2, 3, 4]]}).is_success
        assert server.metric("foldserve_batch_rows_sum", **labels) == 2  # the slow one and the last
        assert server.metric("foldserve_inflight_requests", **labels) == 0


def test_offered_load_above_the_bound_gets_429_with_retry_after_and_the_accepted_their_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = "max_batch_size: 4\nqueue: {max_rows: 20}\n"
    with faulty(tmp_path, monkeypatch, config) as server:
        rows = [[SLOW, float(i), 2.0, 3.0] for i in range(60)]
        answers = asyncio.run(ask_together(server.url, rows))
        statuses = [status for status, _, _ in answers]
        assert set(statuses) == {200, 429}
        assert statuses.count(200) >= 20
        for row, (status, headers, answer) in zip(rows, answers, strict=True):
            if status == 200:
                assert answer["outputs"] == {"y": [expected(row)]}
            else:
                assert answer["code"] == "queue_full"
                assert int(headers["retry-after"]) >= 1
