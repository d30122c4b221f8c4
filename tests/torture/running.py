"""A server for one part of the torture: it must come up, be whole again at the end, and end in order."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

from tests.e2e.server_process import STOP_LIMIT_S, ServerProcess, serving, wait_gone
from tests.torture import models
from tests.torture.counts import Counts
from tests.torture.family import Family

WORKERS: Final = 2
OPTIONS: Final = ("--api-servers", "2", "--workers-per-device", str(WORKERS))
"""Of every server here."""
_SPARE_DESCRIPTORS: Final = 24
"""That may be more than before without being lost ones: sockets of the last scrapes, caches."""


@contextlib.contextmanager
def running(repository: Path, output: Path, counts: Counts, *options: str) -> Iterator[Family]:
    """The server, ready with all its workers. Its deaths are counted; at the end it is ended, if it is still there."""
    with serving(repository, output, *options) as server:
        server.wait_until("/v2/health/ready", 200)
        server.until(lambda: _ready_workers(server) >= WORKERS)
        with Family(server, counts) as family:
            yield family
        if server.process.poll() is None:
            end(server, counts)


def port_of(server: ServerProcess) -> int:
    """Where it listens."""
    return int(server.url.rpartition(":")[2])


def check_calm(server: ServerProcess, counts: Counts, served: tuple[str, ...]) -> None:
    """What was killed is there again, nothing is left of the requests, and every model answers rightly."""
    try:
        server.until(lambda: _ready_workers(server) >= WORKERS)
        server.wait_until("/v2/health/ready", 200)
        server.until(lambda: not _left_in_gauges(server))
    except AssertionError:
        counts.add(
            "broken_promises",
            f"not calm: {_ready_workers(server)} workers are ready, {_left_in_gauges(server)} requests under way",
        )
    for number, model in enumerate(served):
        request = models.good(model, number, Random(number))
        kind = {
            "content-type": request.kind,
            "accept": models.JSON,
            **dict(h.split(": ") for h in request.headers),
        }
        answer = server.post(f"/predict/{model}", content=request.body, headers=kind)
        assert request.y is not None
        if answer.status_code != 200 or answer.json()["outputs"]["y"] != request.y.tolist():
            counts.add("broken_promises", f"{model} afterwards: {answer.status_code} {answer.text[:200]}")


def open_descriptors(pids: Sequence[int]) -> int:
    """Of these processes. Not of all: helpers that are started when they are first needed have some of their own."""
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)


def check_descriptors(server: ServerProcess, pids: Sequence[int], counts: Counts, before: int) -> None:
    """Whatever was opened for clients is closed again."""
    try:
        server.until(lambda: open_descriptors(pids) <= before + _SPARE_DESCRIPTORS)
    except AssertionError:
        counts.add("broken_promises", f"{open_descriptors(pids)} descriptors are open, {before} were before")


def _ready_workers(server: ServerProcess) -> int:
    """Workers in which every model is ready."""
    versions: list[dict[str, Any]] = [
        version for model in server.get("/info").json()["models"] for version in model["versions"]
    ]
    return min(sum(worker["ready"] for worker in version["workers"]) for version in versions)


def _left_in_gauges(server: ServerProcess) -> float:
    gauges = ("foldserve_inflight_requests", "foldserve_queue_rows")
    return sum(value for (name, _), value in server.metrics().items() if name in gauges)


def end(server: ServerProcess, counts: Counts) -> None:
    """SIGTERM: it ends with 0 and leaves nobody."""
    pids = server.processes()
    server.process.send_signal(signal.SIGTERM)
    try:
        code = server.process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        code = None
    if code != 0:
        counts.add("broken_promises", f"SIGTERM: exit code {code}")
    try:
        wait_gone(pids)
    except AssertionError as error:
        counts.add("broken_promises", f"SIGTERM: {error}")
