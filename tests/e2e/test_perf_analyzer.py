"""NVIDIA's perf_analyzer measures a real server: it reads metadata, configuration and statistics."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server_process import START_LIMIT_S, ServerProcess, serving
from tests.service.repositories import save_exported

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("repository")
    (folder / "linear" / "1").mkdir(parents=True)
    save_exported(folder / "linear" / "1")
    output = tmp_path_factory.mktemp("server") / "output"
    with serving(folder, output, "--client-shared-memory", grpc=True) as running:
        running.wait_until("/v2/health/ready", 200)
        yield running


def measure(program: str, server: ServerProcess, *options: str) -> str:
    """What it prints. One short window: whether the figures are steady is not asked."""
    command = [
        *(program, "-m", "linear"),
        *("--measurement-interval", "300", "--max-trials", "3", "--stability-percentage", "999", *options),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def number(text: str, name: str) -> float:
    found = re.search(rf"{name}: ([\d.]+)", text)
    assert found, text
    return float(found[1])


@pytest.mark.parametrize(("form", "rows"), [("binary", 3), ("json", 1), ("grpc", 2), ("stream", 2)])
def test_it_measures_and_shows_what_the_server_counted(
    perf_analyzer: str, server: ServerProcess, form: str, rows: int, tmp_path: Path
) -> None:
    options = ("-u", server.url.removeprefix("http://"), "-i", "http", "-b", str(rows))
    if form in ("binary", "json"):
        options += ("--input-tensor-format", form, "--output-tensor-format", form)
    else:
        options = ("-u", server.grpc, "-i", "grpc", "-b", str(rows))
        options += ("--streaming", "--async") if form == "stream" else ()
    text = measure(perf_analyzer, server, "--concurrency-range", "4", *options)
    client, on_server = text.split("Server:")
    assert number(client, "Throughput") > 0
    assert number(client, "Request count") > 0
    succeeded = number(on_server, "Successful request count")  # of other windows than the client's count
    assert succeeded > 0
    assert number(on_server, "Inference count") == rows * succeeded
    # A window begins and ends while requests are under way: four at a time.
    assert 0 < number(on_server, "Execution count") <= succeeded + 4
    assert re.search(r"queue \d+ usec \+ compute input \d+ usec \+ compute infer \d+ usec", on_server)


@pytest.mark.parametrize("form", ["http", "grpc"])
def test_it_passes_tensors_in_shared_memory(perf_analyzer: str, server: ServerProcess, form: str) -> None:
    address = server.grpc if form == "grpc" else server.url.removeprefix("http://")
    options = (
        "-u",
        address,
        "-i",
        form,
        "-b",
        "2",
        "--shared-memory",
        "system",
        "--output-shared-memory-size",
        "4096",
    )
    client, on_server = measure(perf_analyzer, server, "--concurrency-range", "2", *options).split("Server:")
    assert number(client, "Throughput") > 0
    assert number(on_server, "Inference count") == 2 * number(on_server, "Successful request count")
    assert server.get("/v2/systemsharedmemory/status").json() == []  # it has tidied up, CUDA's regions too
