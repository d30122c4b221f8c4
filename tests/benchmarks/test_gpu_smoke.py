"""The whole of benchmarks/gpu on the CPU: all of it but CUDA itself."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import records
from benchmarks.gpu.in_process import WAYS
from benchmarks.gpu.records import Cell, Failure, Killed, Machine, Served
from benchmarks.serving.workloads import ROOT

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc"),
]

LIMIT_S = 300.0
"""Of the whole run, which is half a minute on an idle machine."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    assert "Machine and versions" not in run_gpu(folder / "all", folder / "out", "--parts", "export")
    return folder / "all"


def command(repository: Path, out: Path, *options: str) -> list[str]:
    words = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--device",
        "cpu",
        "--networks",
        "mlp",
        "--batches",
        "1,4",
    ]
    words += ["--out", str(out), "--repository", str(repository), "--seconds", "0.5"]
    # No compiler behind torch.compile: that it is asked rightly is what counts here, not what it makes of it.
    words += ["--api-servers", "1", "--connections", "1,8", "--compile-backend", "eager"]
    return [*words, "--kills", "1", "--kill-seconds", "6", "--resume", *options]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run_gpu(repository: Path, out: Path, *options: str) -> str:
    done = subprocess.run(
        command(repository, out, *options),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_part_is_measured_and_a_second_run_goes_on_where_the_first_was_cut_off(
    repository: Path, tmp_path: Path
) -> None:
    results = tmp_path / "out" / "results.jsonl"
    # First all that needs no server, then everything: only the rest is measured.
    run_gpu(repository, tmp_path / "out", "--parts", "export,in-process,torchscript,compile")
    alone = [one for one in records.read([results]) if isinstance(one, Cell)]
    text = run_gpu(repository, tmp_path / "out")
    found = records.read([results])
    assert [one for one in found if isinstance(one, Failure)] == []
    assert [one for one in found if isinstance(one, Cell)] == alone
    assert {(one.way, one.batch) for one in alone} == {(way, batch) for way in WAYS for batch in (1, 4)}
    assert all(one.rows_s > 0 and 0 < one.p50_ms <= one.p99_ms and one.cpu_s > 0 for one in alone)

    loads = [one for one in found if isinstance(one, Served)]
    assert [(one.api_servers, one.connections) for one in loads] == [(1, 1), (1, 8)]
    for one in loads:
        assert one.rows_s > 0
        assert 0 < one.api_cores < 2  # one thread works there; a second may clean up
        assert one.worker_cores > 0
        assert (one.refused, one.failed) == (0, 0)

    (kill,) = [one for one in found if isinstance(one, Killed)]
    assert (kill.kills, kill.refused, kill.failed, kill.unanswered) == (1, 0, 0, 0)
    assert kill.answered > 0
    # A worker imports its runtime anew, which is no matter of milliseconds; meanwhile requests waited.
    assert kill.back_s > 0.1
    assert kill.slowest_ms > 100

    (machine,) = {one.device for one in found if isinstance(one, Machine)}
    assert machine == "none"
    assert (tmp_path / "out" / "report.md").read_text() == text
    for head in ("without a server", "served", "A worker killed under load", "Promised and measured"):
        assert head in text


def processes_of(folder: Path) -> list[int]:
    """Those whose command line names the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def test_a_run_that_is_told_to_end_leaves_no_server_behind(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--parts", "served", "--seconds", "60")
    with subprocess.Popen(command(repository, out, *options), cwd=ROOT, env=environment()) as process:
        until_s = time.monotonic() + LIMIT_S
        while len(processes_of(out / "repositories")) < 2:  # the server and its API server
            assert process.poll() is None
            assert time.monotonic() < until_s
            time.sleep(0.1)  # between two looks
        process.terminate()
        assert process.wait(LIMIT_S) == 128 + signal.SIGTERM
    assert processes_of(out) == []
