"""`foldserve serve` as a user runs it: real processes, real HTTP, real signals.

One server with two API servers is shared by the tests that only send requests.
"""

import asyncio
import io
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import onnxruntime as ort
import pytest

from tests.e2e.server_process import (
    START_LIMIT_S,
    ServerProcess,
    free_port,
    left_behind,
    serving,
    wait_gone,
)
from tests.service.repositories import (
    TABLE,
    save_endless,
    save_exported,
    save_linear,
    save_lookup,
    save_scripted,
)

pytestmark = pytest.mark.e2e


def make_repository(folder: Path) -> Path:
    """linear (exported by foldserve) and lookup (bare ONNX, fails on large indices)."""
    (folder / "linear" / "1").mkdir(parents=True)
    save_exported(folder / "linear" / "1")
    save_lookup(folder / "lookup" / "1" / "model.onnx")
    (folder / "lookup" / "config.yaml").write_text("max_queue_delay_ms: 200\n")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For servers that only start and end: no worker of it loads torch, which takes seconds."""
    return make_repository(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """linear, lookup and scripted (TorchScript)."""
    folder = make_repository(tmp_path_factory.mktemp("repository"))
    save_scripted(folder / "scripted")
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    output = tmp_path_factory.mktemp("server") / "output"
    with serving(repository, output, "--api-servers", "2") as running:
        running.wait_until("/v2/health/ready", 200)
        yield running


@pytest.fixture(scope="module")
def linear(repository: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(repository / "linear" / "1" / "model.onnx"))


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 4)).astype(np.float32)


# Answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 8, 21])
def test_json_raw_and_npy_agree_with_onnxruntime_for_any_rows(
    server: ServerProcess, linear: ort.InferenceSession, count: int
) -> None:
    x = rows(count)
    (expected,) = linear.run(None, {"x": x})
    url = f"{server.url}/predict/linear"
    as_json = httpx.post(url, json={"inputs": x.tolist()}).json()
    raw = httpx.post(url, content=x.tobytes(), headers={"content-type": "application/octet-stream"})
    file = io.BytesIO()
    np.save(file, x)
    npy = httpx.post(url, content=file.getvalue(), headers={"content-type": "application/x-npy"})
    answers = [
        np.float32(as_json["outputs"]["y"]),
        np.frombuffer(raw.content, np.float32).reshape(-1, 3),
        np.load(io.BytesIO(npy.content)),
    ]
    for answer in answers:
        # The same runtime in batches of other sizes: sums of 4 products may round otherwise in the last bit.
        np.testing.assert_allclose(answer, expected, rtol=1e-6, atol=1e-6)


def test_torchscript_answers_the_same_as_onnx(server: ServerProcess) -> None:
    x = rows(5).tolist()
    answers = [
        server.post(f"/predict/{model}", json={"inputs": x}).json()["outputs"]["y"]
        for model in ("linear", "scripted")
    ]
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-6, atol=1e-6)


def test_info_names_every_model_with_its_state(server: ServerProcess) -> None:
    models = {model["name"]: model["ready"] for model in server.get("/info").json()["models"]}
    assert models == {"linear": True, "lookup": True, "scripted": True}


def test_litserves_own_routes_are_not_served(server: ServerProcess) -> None:
    assert server.get("/").json() == {"status": "alive"}  # KServe v1, and not LitServe
    assert server.get("/health").json()["ready"] is True
    assert server.post("/linear@1", json={}).json()["code"] == "not_found"


# Batches -----------------------------------------------------------------------------------------------


async def lookup_all(url: str, indices: list[list[int]]) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=len(indices))
    async with httpx.AsyncClient(limits=limits, timeout=START_LIMIT_S) as client:
        requests = [client.post(f"{url}/predict/lookup", json={"inputs": [row]}) for row in indices]
        return await asyncio.gather(*requests)


def test_requests_that_come_together_run_in_shared_batches(server: ServerProcess) -> None:
    before = server.metric("foldserve_batch_rows_count", model="lookup", version="1")
    answers = asyncio.run(lookup_all(server.url, [[i % 10, 3] for i in range(40)]))
    for i, answer in enumerate(answers):
        np.testing.assert_array_equal(answer.json()["outputs"]["y"], [TABLE[[i % 10, 3]]])
    batches = server.metric("foldserve_batch_rows_count", model="lookup", version="1") - before
    assert batches <= 20
    assert any('desc="1"' not in answer.headers["server-timing"] for answer in answers)


def test_one_request_that_breaks_the_run_fails_alone(server: ServerProcess) -> None:
    indices = [[i % 10] for i in range(32)]
    indices[7] = [999]
    answers = asyncio.run(lookup_all(server.url, indices))
    for i, answer in enumerate(answers):
        if i == 7:
            assert (answer.status_code, answer.json()["code"]) == (500, "model_failed")
        else:
            np.testing.assert_array_equal(answer.json()["outputs"]["y"], [[TABLE[i % 10]]])


def test_requests_of_other_lengths_do_not_fail_each_other(server: ServerProcess) -> None:
    indices = [list(range(1 + i % 4)) for i in range(24)]
    for row, answer in zip(indices, asyncio.run(lookup_all(server.url, indices)), strict=True):
        np.testing.assert_array_equal(answer.json()["outputs"]["y"], [TABLE[row]])


# Metrics -----------------------------------------------------------------------------------------------


def test_counts_are_exact_from_either_api_server(server: ServerProcess) -> None:
    labels = {"model": "scripted", "version": "1", "protocol": "json"}
    before = server.metric("foldserve_requests_total", code="200", **labels)
    bad_before = server.metric("foldserve_requests_total", code="400", **labels)
    for _ in range(20):  # a connection each, so that both API servers get some
        assert server.post("/predict/scripted", json={"inputs": rows(2).tolist()}).is_success
    assert server.post("/predict/scripted", json={"inputs": [[1]]}).status_code == 400
    for _ in range(10):
        metrics = server.metrics()

        def count(
            name: str, of: dict[tuple[str, tuple[tuple[str, str], ...]], float] = metrics, **more: str
        ) -> float:
            return of.get((name, tuple(sorted(more.items()))), 0.0)

        assert count("foldserve_requests_total", code="200", **labels) - before == 20
        assert count("foldserve_requests_total", code="400", **labels) - bad_before == 1
        assert count("foldserve_queue_rows", model="scripted", version="1") == 0
        assert count("foldserve_inflight_requests", model="scripted", version="1") == 0


def test_metrics_pass_promtool(server: ServerProcess, promtool: str) -> None:
    import subprocess

    text = server.get("/metrics").content
    check = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert check.returncode == 0, check.stderr.decode()


# Start and end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_server_with_exit_0_and_nothing_left(
    small: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with serving(small, tmp_path / "output", "--api-servers", "2") as running:
        running.wait_until("/v2/health/ready", 200)
        running.until(lambda: len(running.api_servers()) == 2)
        pids = running.processes()
        assert len(pids) == 5  # parent, resource tracker, worker, 2 API servers
        # To the whole group, as a terminal's Ctrl-C goes: only the supervisor may act on it.
        os.killpg(running.process.pid, number)
        assert running.process.wait(START_LIMIT_S) == 0
        wait_gone(pids)
        assert left_behind() == []
        assert "Traceback" not in running.output


def test_signal_while_models_load_ends_the_server_with_exit_0(small: Path, tmp_path: Path) -> None:
    with serving(small, tmp_path / "output") as running:
        running.until(lambda: "device: cpu" in running.output)
        pids = running.processes()
        os.killpg(running.process.pid, signal.SIGINT)
        assert running.process.wait(START_LIMIT_S) == 0
        wait_gone(pids)
        assert left_behind() == []
        assert "Traceback" not in running.output


def test_request_in_flight_is_answered_after_sigterm(small: Path, tmp_path: Path) -> None:
    with serving(small, tmp_path / "output") as running:
        running.wait_until("/v2/health/ready", 200)
        body = b'{"inputs": [[1, 2]]}'
        with socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2]))) as connection:
            head = f"POST /predict/lookup HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
            request = f"{head}content-type: application/json\r\n\r\n".encode() + body
            # Two in one packet: when the first is answered, the server has most of the second.
            connection.sendall(request + request[:-1])
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            running.process.send_signal(signal.SIGTERM)
            running.until(lambda: "stopping" in running.output)
            connection.sendall(body[-1:])
            answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200")
        assert running.process.wait(START_LIMIT_S) == 0


def test_killed_parent_takes_every_process_with_it_and_leaves_nothing(small: Path, tmp_path: Path) -> None:
    with serving(small, tmp_path / "first") as running:
        running.wait_until("/v2/health/ready", 200)
        pids = running.processes()
        running.process.kill()
        running.process.wait()
        wait_gone(pids)
        assert left_behind() == []


def test_killed_worker_comes_back_and_its_model_serves_again(small: Path, tmp_path: Path) -> None:
    with serving(small, tmp_path / "output") as running:
        running.wait_until("/v2/health/ready", 200)
        workers = running.workers()
        assert len(workers) == 1
        os.kill(workers[0], signal.SIGKILL)
        running.until(lambda: set(running.workers()) - set(workers))
        running.wait_until("/v2/health/ready", 200)
        for model, inputs in (("linear", [[1, 2, 3, 4]]), ("lookup", [[1]])):
            assert running.post(f"/predict/{model}", json={"inputs": inputs}).is_success
        assert running.metric("foldserve_worker_restarts_total", device="cpu") == 1


def test_model_that_disagrees_with_its_reference_is_not_ready_and_others_are_served(tmp_path: Path) -> None:
    for name, error in (("good", 0.0), ("off", 1e-3)):
        (tmp_path / "repository" / name / "1").mkdir(parents=True)
        save_exported(tmp_path / "repository" / name / "1", name, error=error)
    with serving(tmp_path / "repository", tmp_path / "output") as running:
        running.until(lambda: "NOT READY" in running.output)
        assert running.get("/v2/health/ready").status_code == 503
        assert running.post("/predict/good", json={"inputs": [[1, 2, 3, 4]]}).is_success
        refused = running.post("/predict/off", json={"inputs": [[1, 2, 3, 4]]})
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        info = running.get("/info").text
        assert "does not agree with its reference" in info
        assert running.end(signal.SIGTERM) == 0


def test_start_ends_with_exit_1_and_the_reason_when_no_model_can_be_served(tmp_path: Path) -> None:
    (tmp_path / "repository" / "broken" / "1").mkdir(parents=True)
    save_exported(tmp_path / "repository" / "broken" / "1", "broken")
    (tmp_path / "repository" / "broken" / "1" / "model.onnx").write_bytes(b"not a model")
    with serving(tmp_path / "repository", tmp_path / "output") as running:
        assert running.process.wait(START_LIMIT_S) == 1
        assert "the manifest says" in running.output
        assert "no model of" in running.output
        assert "Traceback" not in running.output
        assert left_behind() == []


def test_busy_port_is_a_clear_error_with_exit_2(tmp_path: Path) -> None:
    import subprocess
    import sysconfig

    save_linear(tmp_path / "linear" / "1" / "model.onnx")
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        command = [Path(sysconfig.get_path("scripts")) / "foldserve", "serve", tmp_path, "--device", "cpu"]
        done = subprocess.run(
            [*map(str, command), "--port", str(port)], capture_output=True, text=True, check=False
        )
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_broken_models_and_folders_that_are_none_cost_nobody_else(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    save_linear(repository / "good" / "1" / "model.onnx")
    for name in ("lost+found", "__MACOSX", "incoming/1", "good/__pycache__"):
        (repository / name).mkdir(parents=True)
    save_linear(repository / "cut" / "1" / "model.onnx")
    (repository / "cut" / "1" / "manifest.json").write_text('{"format_version": 1')
    save_linear(repository / "fixed" / "1" / "model.onnx", rows=1)
    save_linear(repository / "two" / "1" / "model.onnx")
    save_linear(repository / "two" / "2" / "model.onnx", rows=1)
    (repository / "two" / "config.yaml").write_text("version_policy: all\n")
    with serving(repository, tmp_path / "log") as server:
        server.wait_until("/v2/health/live", 200)
        server.until(lambda: "serves http" in server.output)
        row = {"inputs": [[1, 0, 0, 0]]}
        assert server.post("/predict/good", json=row).status_code == 200
        assert server.post("/predict/two", json=row).json()["version"] == "1"
        for path in ("/predict/cut", "/predict/fixed", "/predict/two/versions/2", "/predict/cut/versions/1"):
            answer = server.post(path, json=row)
            assert (answer.status_code, answer.json()["code"]) == (503, "not_ready"), path
        assert server.post("/predict/incoming", json=row).status_code == 404
        assert server.post("/predict", json=row).status_code == 404
        health = server.get("/health")
        assert health.status_code == 503
        assert "cannot be served: cut, fixed, two/2; GET /info says why" in health.json()["error"]
        told = {broken["name"]: broken["problem"] for broken in server.get("/info").json()["broken"]}
        assert list(told) == ["cut", "fixed", "two/2"]
        assert "manifest.json of cut/1 is not JSON" in told["cut"]
        assert "expected a dynamic dim 0" in told["fixed"]
        assert str(repository) not in "".join(told.values())
        assert server.output.count("NOT READY: ") == 3
        assert "folder 'lost+found' of the repository is skipped" in server.output
        assert "Traceback" not in server.output


def test_strict_server_ends_with_exit_2_for_any_broken_model(tmp_path: Path) -> None:
    save_linear(tmp_path / "good" / "1" / "model.onnx")
    (tmp_path / "good" / "lost+found").mkdir()
    save_linear(tmp_path / "bad" / "1" / "model.onnx", rows=1)
    with serving(tmp_path, tmp_path / "log", "--strict") as server:
        assert server.process.wait(120) == 2
    assert "foldserve serve: bad/1/model.onnx: input 'x' has shape [1, 4]" in server.output


def test_log_in_json_is_one_object_a_line_from_every_process_with_what_is_served(tmp_path: Path) -> None:
    save_lookup(tmp_path / "repository/lookup/1/model.onnx")
    with serving(tmp_path / "repository", tmp_path / "log", "--log-format", "json", "--access-log") as server:
        server.wait_until("/v2/health/ready", 200)
        assert server.post("/predict/lookup", json={"inputs": [[99]]}).status_code == 500
        server.until(lambda: '"status":500' in server.output)
        assert server.end(signal.SIGTERM) == 0
    lines = [json.loads(line) for line in server.output.splitlines()]
    records = [line for line in lines if "message" in line]
    assert {line["path"] for line in lines if "message" not in line} == {
        "/v2/health/ready",
        "/predict/lookup",
    }
    assert any(f"serves {server.url} on cpu" in line["message"] for line in records)
    assert any(line["message"].startswith("lookup/1 onnxruntime batch 32 ready in ") for line in records)
    assert {line["process"] for line in records if "traceback" in line} == {"inference-worker"}


def test_repository_of_broken_models_only_ends_with_exit_2_and_all_problems(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_linear(tmp_path / name / "1" / "model.onnx", rows=1)
    with serving(tmp_path, tmp_path / "log") as server:
        assert server.process.wait(120) == 2
    assert "a/1/model.onnx" in server.output
    assert "b/1/model.onnx" in server.output


def test_model_that_loads_for_ever_holds_back_none_and_is_given_up_at_the_limit(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    save_endless(repository / "a_endless")
    save_linear(repository / "good" / "1" / "model.onnx")
    with serving(repository, tmp_path / "log", "--load-limit", "15") as server:
        server.wait_until("/v2/health/live", 200)
        row = {"inputs": [[1, 0, 0, 0]]}
        server.until(lambda: server.post("/predict/good", json=row).status_code == 200)
        problem = server.get("/info").json()["models"][0]["versions"][0]["manifest"]["problem"]
        assert problem == "loading"
        server.until(lambda: "serves http" in server.output)
        assert "NOT READY: loading took longer than 15 s on cpu" in server.output
        assert server.post("/predict/a_endless", json=row).status_code == 503
        assert server.post("/predict/good", json=row).status_code == 200
        assert server.end(signal.SIGTERM) == 0
