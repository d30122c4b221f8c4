"""Models that are loaded and unloaded while a server serves, by real processes."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.server_process import STOP_LIMIT_S, ServerProcess, free_port, left_behind, wait_gone
from tests.faults import changing_models
from tests.faults.support import GATED, LIMIT_S, Caller, expected, open_gate, until, use_faulty_backend
from tests.service.repositories import WEIGHT, save_linear

pytestmark = pytest.mark.e2e

ROW = [1.0, 2.0, 3.0, 4.0]
FIRST, SECOND = {"model": "first", "version": "1"}, {"model": "second", "version": "1"}


class ChangingServer(ServerProcess):
    """A server that loads and unloads models when it is told to."""

    def tell(self, command: str) -> list[str]:
        """Have its supervisor do something. Returns: the words of its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command}\n".encode())
        self.process.stdin.flush()
        return self.process.stdout.readline().decode().split()

    def predict(self, model: str) -> list[float] | int:
        """The answer to ROW, or the status of the error."""
        answer = self.post(f"/predict/{model}", json={"inputs": [ROW]})
        outputs: list[float] = answer.json()["outputs"]["y"][0] if answer.status_code == 200 else []
        return outputs or answer.status_code


@contextlib.contextmanager
def changing_server(folder: Path, *options: str) -> Iterator[ChangingServer]:
    """Serve `linear`, with room for one model more."""
    save_linear(folder / "repository" / "linear" / "1" / "model.onnx")
    port, output = free_port(), folder / "log"
    command = [sys.executable, changing_models.__file__, str(folder / "repository"), str(port)]
    root = Path(changing_models.__file__).parents[2]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*command, "max_models", "2", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
    server = ChangingServer(process, port, output)
    with process:
        try:
            server.wait_until("/v2/health/ready", 200)
            assert process.stdout is not None
            while b"/v2/health/ready" not in process.stdout.readline():
                pass  # the block that says what is served
            yield server
        finally:
            if process.poll() is None:
                process.kill()


def of_every_api_server(server: ChangingServer, model: str, answer: list[float] | int) -> bool:
    """Whether the answer is this, each of many times: connections are spread over the API servers."""
    return all(server.predict(model) == answer for _ in range(8))


def test_row_of_the_table_is_loaded_served_drained_and_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_faulty_backend(tmp_path / "backend", monkeypatch)
    save_linear(tmp_path / "first" / "1" / "model.onnx")
    save_linear(tmp_path / "second" / "1" / "model.onnx", WEIGHT * 2)
    twice = (2 * np.float32(expected(ROW))).tolist()
    options = ["api_servers", "2", "workers_per_device", "2"]
    with changing_server(tmp_path, *options) as server:
        assert server.predict("first") == 404

        assert server.tell(f"load {tmp_path / 'first'}") == ["loaded", "1", "0"]
        server.until(lambda: of_every_api_server(server, "first", expected(ROW)))
        server.until(lambda: server.tell("look 1") == ["row", "READY", "0"])
        assert server.metric("foldserve_model_ready", **FIRST) == 1
        assert server.metric("foldserve_requests_total", protocol="json", code="200", **FIRST) >= 8

        asyncio.run(unload_while_a_request_runs(server, tmp_path / "backend"))
        server.until(lambda: server.tell("look 1") == ["row", "EMPTY", "1"])
        assert server.predict("linear") == expected(ROW)
        assert not [key for key in server.metrics() if ("model", "first") in key[1]]

        # Another model in the same row: a ticket of the last one finds its instances, and is void for them.
        assert server.tell(f"load {tmp_path / 'second'}") == ["loaded", "1", "1"]
        assert server.tell("old-ticket 1") == ["sent"]
        server.until(lambda: of_every_api_server(server, "second", twice))
        assert server.predict("first") == 404
        answered = server.metric("foldserve_requests_total", protocol="json", code="200", **SECOND)
        assert answered >= 8
        assert server.metric("foldserve_batch_rows_sum", **SECOND) == answered

        # Whoever is started again finds in the table what there is now, and not what there was at the start.
        for pid in [*server.workers(), *server.api_servers()]:
            os.kill(pid, signal.SIGKILL)
            wait_gone([pid])
        server.until(lambda: answers(server, "second") == twice)
        server.wait_until("/v2/health/ready", 200)
        assert of_every_api_server(server, "second", twice)
        assert of_every_api_server(server, "linear", expected(ROW))
        everyone = server.processes()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(STOP_LIMIT_S) == 0
    wait_gone(everyone)
    assert left_behind() == []
    assert "Traceback" not in server.output


async def unload_while_a_request_runs(server: ChangingServer, backend: Path) -> None:
    """Who is in a run is answered; who is still sending is told; the row is free when the last has left."""
    row = [GATED, *ROW[1:]]
    runs, sends = Caller(server.url, "first"), Caller(server.url, "first")
    await runs.open()
    await sends.open()
    runs.send(row)
    await until(lambda: server.metric("foldserve_inflight_requests", **FIRST) == 1, "it runs")
    body = b'{"inputs": [[1, 2, 3, 4]]}'
    head = "POST /predict/first HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    sends.writer.write((head % len(body)).encode() + body[:9])
    await sends.writer.drain()
    assert server.tell("unload 1") == ["unloading", "1"]
    await until(lambda: of_every_api_server(server, "first", 404), "nothing new is taken")
    assert server.tell("look 1") == ["row", "DRAINING", "0"]
    assert server.predict("linear") == expected(ROW)
    open_gate(backend)
    status, _, answer = await asyncio.wait_for(runs.receive(), LIMIT_S)
    assert (status, str(expected(row)[0]).encode() in answer) == (200, True)
    sends.writer.write(body[9:])
    status, _, answer = await asyncio.wait_for(sends.receive(), LIMIT_S)
    assert (status, b"was unloaded while this request came" in answer) == (503, True)
    runs.close()
    sends.close()


def answers(server: ChangingServer, model: str) -> list[float] | int:
    """As predict(), with 0 for a connection that breaks."""
    import httpx

    with contextlib.suppress(httpx.TransportError):
        return server.predict(model)
    return 0


def test_model_that_cannot_be_loaded_is_told_and_its_row_can_be_freed(tmp_path: Path) -> None:
    save_linear(tmp_path / "first" / "1" / "model.onnx")
    (tmp_path / "first" / "config.yaml").write_text("instances: 64\n")
    with changing_server(tmp_path) as server:
        assert server.tell(f"load {tmp_path / 'first'}") == ["loaded", "1", "0"]
        server.until(lambda: server.tell("look 1") == ["row", "FAILED", "0"])
        assert server.predict("first") == 503
        assert "it wants 64 instances, and the worker has room for" in server.get("/info").text
        server.tell("unload 1")
        server.until(lambda: server.tell("look 1") == ["row", "EMPTY", "1"])
        assert server.predict("linear") == expected(ROW)
