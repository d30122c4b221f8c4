"""Whoever reads the log, or does not: the server answers. And what an answer leaves out stands in the log."""

import contextlib
import os
import re
import signal
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.server_process import ServerProcess, free_port, serving, wait_gone
from tests.service.repositories import save_linear, save_lookup

JSON = {"content-type": "application/json"}
INTERNAL = re.compile(r"77|Gather|index|indices|__torch__|forward|onnxruntime|/|line \d|Error\b")
"""What texts of runtimes hold."""


@contextlib.contextmanager
def logging_to(repository: Path, stdout: int | None, stderr: int | None) -> Iterator[ServerProcess]:
    """A server with these as its stdout and stderr (None: closed), and an access log."""
    port = free_port()
    command = [str(Path(sysconfig.get_path("scripts")) / "foldserve"), "serve", str(repository)]
    command += ["--port", str(port), "--device", "cpu", "--access-log"]
    if stdout is None:
        command = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command]
    process = subprocess.Popen(command, stdout=stdout, stderr=stderr, start_new_session=True)
    try:
        yield ServerProcess(process, port, Path(os.devnull))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    save_linear(tmp_path / "repository/linear/1/model.onnx")
    save_lookup(tmp_path / "repository/lookup/1/model.onnx")
    return tmp_path / "repository"


def ask(server: ServerProcess, many: int = 1) -> None:
    """Requests that are answered, and as many that fail with a traceback in the log."""
    for _ in range(many):
        right = server.post("/predict/linear", content=b'{"inputs": [[1, 2, 3, 4]]}', headers=JSON)
        assert right.status_code == 200
        failing = server.post("/predict/lookup", content=b'{"inputs": [[99]]}', headers=JSON)
        assert failing.status_code == 500


def worker_dies(server: ServerProcess) -> None:
    """Every process has something to log, and goes on."""
    (worker,) = server.workers()
    os.kill(worker, signal.SIGKILL)
    wait_gone([worker])
    server.wait_until("/v2/health/ready", 200)


@pytest.mark.parametrize("reader", ["stalled", "gone", "full disk", "closed"])
def test_server_serves_and_ends_in_order_whatever_its_log_is_written_to(
    repository: Path, reader: str
) -> None:
    read, write = os.pipe()
    if reader == "full disk":
        os.close(write)
        write = os.open("/dev/full", os.O_WRONLY)
    if reader == "gone":
        os.close(read)
    # Already full: the first line that anybody waits for would be the last.
    if reader == "stalled":
        os.set_blocking(write, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(write, b"x" * 4096)
        os.set_blocking(write, True)
    streams = (None, None) if reader == "closed" else (write, write)
    with logging_to(repository, *streams) as server:
        server.wait_until("/v2/health/ready", 200)
        ask(server, 30)
        worker_dies(server)
        ask(server)
        assert server.end(signal.SIGTERM) == 0
    os.close(write)
    if reader != "gone":
        os.close(read)


def test_exit_code_of_a_wrong_setting_does_not_depend_on_who_reads(repository: Path) -> None:
    with (
        open("/dev/full", "wb") as full,
        logging_to(repository / "nothing", full.fileno(), full.fileno()) as server,
    ):
        assert server.process.wait(60) == 2


@contextlib.contextmanager
def piped(repository: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server whose log goes through a pipe into a file."""
    with (tmp_path / "log").open("wb") as file:
        reader = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file)
        assert reader.stdin is not None
        with logging_to(repository, reader.stdin.fileno(), reader.stdin.fileno()) as server:
            server.wait_until("/v2/health/ready", 200)
            yield server
        reader.stdin.close()
        reader.wait()


def pump(server: ServerProcess) -> int:
    (pid,) = (pid for pid in server.processes() if b"logs/pump.py" in command_line(pid))
    return pid


def test_process_that_writes_the_log_is_started_again(repository: Path, tmp_path: Path) -> None:
    with piped(repository, tmp_path) as server:
        os.kill(pump(server), signal.SIGKILL)
        server.until(lambda: "was started again" in (tmp_path / "log").read_text())
        ask(server)
        server.until(lambda: "lookup failed on one request" in (tmp_path / "log").read_text())
        assert server.end(signal.SIGTERM) == 0


def test_process_that_writes_the_log_may_stop(repository: Path, tmp_path: Path) -> None:
    with piped(repository, tmp_path) as server:
        os.kill(pump(server), signal.SIGSTOP)
        ask(server, 30)
        assert server.end(signal.SIGTERM) == 0


def test_a_log_file_is_written_without_a_process_in_between(repository: Path, tmp_path: Path) -> None:
    with serving(repository, tmp_path / "log") as server:
        server.wait_until("/v2/health/ready", 200)
        ask(server)
        assert "lookup failed on one request" in server.output
        assert not [pid for pid in server.processes() if b"logs/pump.py" in command_line(pid)]


def command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def save_scripted_lookup(folder: Path) -> None:
    """The lookup model as TorchScript."""
    import torch

    (folder / "1").mkdir(parents=True)
    module = torch.jit.trace(torch.nn.Embedding(10, 2), torch.zeros(1, 2, dtype=torch.int64))
    torch.jit.save(module, str(folder / "1/model.pt"))
    (folder / "config.yaml").write_text(
        "backend: torchscript\nsignature:\n  inputs: [{name: index, datatype: INT64, shape: [-1, 2]}]\n"
        "  outputs: [{name: y, datatype: FP32, shape: [-1, 2, 2]}]\n"
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch 2.13 calls TorchScript deprecated
@pytest.mark.parametrize("way", ["/predict/{}", "/predict/{}?version=1"])  # the fast path, the ASGI path
def test_failing_model_is_told_by_an_id_under_which_the_log_tells_all(tmp_path: Path, way: str) -> None:
    repository = tmp_path / "repository"
    save_lookup(repository / "onnx/1/model.onnx")
    save_scripted_lookup(repository / "torchscript")
    with serving(repository, tmp_path / "log") as server:
        server.wait_until("/v2/health/ready", 200)
        ids = []
        for model in ("onnx", "torchscript"):
            for _ in range(30):  # more than are logged one by one
                answer = server.post(way.format(model), content=b'{"inputs": [[1, 77]]}', headers=JSON)
                assert (answer.status_code, answer.json()["code"]) == (500, "model_failed")
                told = answer.json()["error"]
                told, _, error_id = told.rpartition(" ")
                assert not INTERNAL.search(told)
                ids.append(error_id)
        assert server.end(signal.SIGTERM) == 0
        assert len(set(ids)) == 60
        assert all(error_id in server.output for error_id in ids)
        assert server.output.count("Traceback") <= 6
        assert max(map(len, server.output.splitlines())) < 4096


def test_model_that_cannot_be_loaded_is_told_without_the_folders_of_the_server(tmp_path: Path) -> None:
    repository = tmp_path / "hidden-folder/repository"
    save_linear(repository / "good/1/model.onnx")
    for name, content in {
        "cut": (repository / "good/1/model.onnx").read_bytes()[:-9],
        "odd": b"no model",
    }.items():
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1/model.onnx").write_bytes(content)
        signature = "{name: x, datatype: FP32, shape: [-1, 4]}"
        (repository / name / "config.yaml").write_text(
            f"signature:\n  inputs: [{signature}]\n  outputs: [{signature.replace('x,', 'y,')}]\n"
        )
    external(repository / "external/1")
    with serving(repository, tmp_path / "log") as server:
        server.wait_until("/v2/health/live", 200)
        row = b'{"inputs": [[1, 2, 3, 4]]}'
        server.until(lambda: server.post("/predict/good", content=row, headers=JSON).status_code == 200)
        pages = [server.get(path).text for path in ("/info", "/docs", "/v2/health/ready", "/metrics")]
        assert not [page for page in pages if "hidden-folder" in page or "onnxruntime_src" in page]

        def problems_now() -> dict[str, str]:
            return {
                model["name"]: model["versions"][0]["manifest"]["problem"]
                for model in server.get("/info").json()["models"]
                if not model["ready"]
            }

        server.until(
            lambda: "loading" not in problems_now().values()
        )  # each is served as soon as it is loaded
        problems = problems_now()
        assert set(problems) == {"cut", "odd", "external"}
        for name, problem in problems.items():
            assert problem.startswith(f"{name}/1/model.onnx is not a model that onnxruntime can load")
            whole = f"{repository}/{name}/1/model.onnx"
            server.until(lambda whole=whole: whole in server.output)  # what is logged comes through a pipe


def external(folder: Path) -> None:
    """A model whose weights shall lie in a file outside of its folder: onnxruntime names both folders."""
    import onnx

    save_linear(folder / "model.onnx")
    model = onnx.load(folder / "model.onnx")
    (weight,) = model.graph.initializer
    weight.raw_data = np.zeros(12, "f4").tobytes()
    onnx.external_data_helper.set_external_data(weight, location="../../outside.bin")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder.parent / "config.yaml").write_text(
        "signature:\n  inputs: [{name: x, datatype: FP32, shape: [-1, 4]}]\n"
        "  outputs: [{name: y, datatype: FP32, shape: [-1, 3]}]\n"
    )


def test_scrapes_survive_what_happens_to_the_process_that_writes_them(
    repository: Path, tmp_path: Path
) -> None:
    with serving(repository, tmp_path / "log", "--api-servers", "1") as server:
        server.wait_until("/v2/health/ready", 200)
        ask(server)
        assert (
            server.metric(
                "foldserve_requests_total", model="lookup", version="1", protocol="json", code="500"
            )
            == 1
        )
        (exporter,) = exporters(server)
        os.kill(exporter, signal.SIGKILL)
        assert server.get("/metrics").status_code == 200
        (exporter,) = exporters(server)
        os.kill(exporter, signal.SIGSTOP)
        answer = server.get("/metrics")
        assert (answer.status_code, answer.json()["code"]) == (503, "metrics_unavailable")
        assert server.get("/v2/health/live").status_code == 200
        assert server.wait_until("/metrics", 200).text.count("# TYPE foldserve_") > 10
        left = server.processes()
        (api_server,) = server.api_servers()
        os.kill(api_server, signal.SIGKILL)
        wait_gone([api_server, *exporters(server)])
        server.wait_until("/metrics", 200)
        left += server.processes()
        server.end(signal.SIGKILL)
        wait_gone(left)


def exporters(server: ServerProcess) -> list[int]:
    return [pid for pid in server.processes() if b"foldserve.service.metrics.exporter" in command_line(pid)]
