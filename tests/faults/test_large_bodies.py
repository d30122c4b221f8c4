"""Large bodies on a real server hold up nobody, and the death of the process that reads them costs nobody."""

import asyncio
import io
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.e2e.server_process import ServerProcess, alive, left_behind, serving, wait_gone
from tests.faults.support import LIMIT_S, make_repository, until
from tests.service.repositories import WEIGHT

pytestmark = pytest.mark.e2e

ROWS = np.random.default_rng(7).integers(-8, 8, (30_000, 4)).astype("f4") / 4
JSON, RAW, NPY = "application/json", "application/octet-stream", "application/x-npy"
LIMIT_BYTES = 4 * 2**20


def as_json(rows: np.ndarray) -> bytes:
    return json.dumps({"inputs": rows.tolist()}).encode()


def as_npy(rows: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, rows)
    return file.getvalue()


def helpers(server: ServerProcess) -> list[int]:
    """The codec processes."""
    return [
        pid
        for pid in alive(server.processes())
        if b"codec_process.helper" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def make_large_repository(folder: Path) -> Path:
    return make_repository(folder, "queue: {max_rows: 10000000, max_bytes: 1000000000}\n")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    repository = make_large_repository(tmp_path / "repository")
    with serving(repository, tmp_path / "output", "--max-json-bytes", str(LIMIT_BYTES)) as running:
        running.wait_until("/v2/health/ready", 200)
        yield running
        assert "Traceback" not in running.output


def numbers(answer: httpx.Response) -> np.ndarray:
    kind = answer.headers["content-type"]
    if kind == JSON:
        return np.array(answer.json()["outputs"]["y"], "f4")
    if kind == NPY:
        return np.load(io.BytesIO(answer.content))
    return np.frombuffer(answer.content, "f4").reshape(-1, WEIGHT.shape[1])


@pytest.mark.parametrize("long", [{}, {"trailer": "x"}], ids=["short", "long"])
def test_large_bodies_of_every_type_are_answered_in_every_type(server: ServerProcess, long) -> None:
    rows = np.tile(ROWS, (8, 1))  # 3.7 MB of numbers
    bodies = {JSON: as_json(ROWS), RAW: rows.tobytes(), NPY: as_npy(rows)}
    for kind, body in bodies.items():
        sent = ROWS if kind == JSON else rows
        for accept in bodies:
            headers = {"content-type": kind, "accept": accept, **long}
            answer = server.post("/predict/linear", content=body, headers=headers)
            assert answer.status_code == 200, answer.text
            assert answer.headers["content-type"] == accept
            np.testing.assert_allclose(numbers(answer), sent @ WEIGHT, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("long", [{}, {"trailer": "x"}], ids=["short", "long"])
def test_json_above_its_limit_is_refused_with_another_way_to_send_it(server: ServerProcess, long) -> None:
    body = as_json(np.tile(ROWS, (8, 1)))
    assert len(body) > LIMIT_BYTES
    answer = server.post("/predict/linear", content=body, headers={"content-type": JSON, **long})
    assert answer.status_code == 413
    for part in (str(LIMIT_BYTES), "--max-json-bytes", NPY, RAW):
        assert part in answer.json()["error"]
    raw = server.post("/predict/linear", content=bytes(LIMIT_BYTES + 16), headers={"content-type": RAW})
    assert raw.status_code == 200


@pytest.mark.parametrize("long", [{}, {"trailer": "x"}], ids=["short", "long"])
def test_everybody_is_answered_while_a_large_body_is_being_read(server: ServerProcess, long) -> None:
    """However long it takes: the process that reads it is stopped meanwhile."""

    async def run() -> None:
        headers = {"content-type": JSON, **long}
        async with httpx.AsyncClient(base_url=server.url, timeout=LIMIT_S, verify=False) as client:
            await client.post("/predict/linear", content=as_json(ROWS), headers=headers)
            (pid,) = helpers(server)
            os.kill(pid, signal.SIGSTOP)
            large = asyncio.create_task(
                client.post("/predict/linear", content=as_json(ROWS), headers=headers)
            )
            for _ in range(20):
                assert (await client.get("/v2/health/live")).status_code == 200
                small = await client.post("/predict/linear", content=as_json(ROWS[:2]), headers=headers)
                assert small.status_code == 200
            assert not large.done()
            os.kill(pid, signal.SIGCONT)
            assert (await large).status_code == 200

    asyncio.run(run())


def test_killing_the_process_that_reads_large_bodies_costs_no_request(server: ServerProcess) -> None:
    async def run() -> None:
        wrong: list[object] = []
        answered = 0
        ending = asyncio.Event()

        async def ask(number: int, client: httpx.AsyncClient) -> None:
            nonlocal answered
            while not ending.is_set():
                rows = ROWS[number * 1000 : number * 1000 + 8000 + number]
                answer = await client.post(
                    "/predict/linear", content=as_json(rows), headers={"content-type": JSON}
                )
                if answer.status_code != 200 or not np.allclose(numbers(answer), rows @ WEIGHT, atol=1e-5):
                    wrong.append((answer.status_code, answer.text[:200]))
                answered += 1

        async with httpx.AsyncClient(base_url=server.url, timeout=LIMIT_S, verify=False) as client:
            callers = [asyncio.create_task(ask(number, client)) for number in range(6)]
            await until(lambda: answered > 5, "answers")
            for _ in range(5):
                for pid in helpers(server):
                    os.kill(pid, signal.SIGKILL)
                # What died with it is done first by the next one: no body meets two deaths.
                before = answered
                await until(lambda before=before: answered > before + 12, "answers go on")
            ending.set()
            await asyncio.gather(*callers)
        assert wrong == []

    asyncio.run(run())
    assert server.output.count("the codec process") == 5


@pytest.mark.parametrize("victim", ["API server", "parent"])
def test_the_process_dies_with_its_api_server(server: ServerProcess, victim: str) -> None:
    server.post("/predict/linear", content=as_json(ROWS), headers={"content-type": JSON})
    (pid,) = helpers(server)
    os.kill(pid, signal.SIGSTOP)  # it cannot see by itself that nobody is there any more
    if victim == "parent":
        pids = server.processes()
        server.process.kill()
        wait_gone(pids)
        return
    (api_server,) = server.api_servers()
    os.kill(api_server, signal.SIGKILL)
    wait_gone([pid, api_server])
    server.wait_until("/v2/health/ready", 200)
    again = server.post("/predict/linear", content=as_json(ROWS), headers={"content-type": JSON})
    np.testing.assert_allclose(numbers(again), ROWS @ WEIGHT, rtol=1e-5, atol=1e-5)


def test_sigterm_answers_the_large_bodies_that_are_under_way(tmp_path: Path) -> None:
    async def run(server: ServerProcess) -> None:
        headers = {"content-type": JSON}
        async with httpx.AsyncClient(base_url=server.url, timeout=LIMIT_S, verify=False) as client:
            await client.post("/predict/linear", content=as_json(ROWS), headers=headers)
            (pid,) = helpers(server)
            os.kill(pid, signal.SIGSTOP)
            asked = [
                asyncio.create_task(
                    client.post("/predict/linear", content=as_json(ROWS[at:]), headers=headers)
                )
                for at in range(3)
            ]
            for _ in range(10):
                assert (await client.get("/v2/health/live")).status_code == 200
            server.process.send_signal(signal.SIGTERM)
            await until(lambda: "stopping" in server.output, "the signal is taken")
            os.kill(pid, signal.SIGCONT)
            for at, task in enumerate(asked):
                np.testing.assert_allclose(numbers(await task), ROWS[at:] @ WEIGHT, rtol=1e-5, atol=1e-5)

    repository = make_large_repository(tmp_path / "repository")
    with serving(repository, tmp_path / "output") as server:
        server.wait_until("/v2/health/ready", 200)
        pids = server.processes()
        asyncio.run(run(server))
        assert server.process.wait(LIMIT_S) == 0
        wait_gone(pids)
        assert left_behind() == []
        assert "Traceback" not in server.output
