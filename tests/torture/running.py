"""A server for one part of the torture: it must come up, be whole again at the end, and end in order."""

import asyncio
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
from tests.torture.links.grpc_links import CallLink, StreamLink
from tests.torture.links.http_link import HttpLink
from tests.torture.links.seam import Ports

WORKERS: Final = 2
OPTIONS: Final = ("--api-servers", "2", "--workers-per-device", str(WORKERS))
"""Of every server here."""
_GOES_ON: Final = "    |"
"""How a line begins that goes on with the record before it."""
_SPARE_DESCRIPTORS: Final = 24
"""That may be more than before without being lost ones: sockets of the last scrapes, caches."""


@contextlib.contextmanager
def running(repository: Path, output: Path, counts: Counts, *options: str) -> Iterator[Family]:
    """The server, ready with all its workers. Its deaths are counted; at the end it is ended, if it is still there."""
    with serving(repository, output, *options, grpc=True) as server:
        server.wait_until("/v2/health/ready", 200)
        server.until(lambda: _ready_workers(server) >= WORKERS)
        with Family(server, counts) as family:
            yield family
        if server.process.poll() is None:
            end(server, counts)


def ports_of(server: ServerProcess) -> Ports:
    """Where it listens."""
    return Ports(*(int(url.rpartition(":")[2]) for url in (server.url, server.grpc)))


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
    asyncio.run(_check_answers(server, counts, served))


async def _check_answers(server: ServerProcess, counts: Counts, served: tuple[str, ...]) -> None:
    """Every model answers rightly, in every protocol."""
    chosen = Random(1)
    for opener in (HttpLink.open, CallLink.open, StreamLink.open):
        link = await opener(ports_of(server))
        for model in served:
            for request in models.in_every_protocol(model, link.carried, chosen):
                await link.send(request, chosen)
                answer = await link.answer()
                y = request.asked.y
                assert y is not None
                if answer.status != 200 or request.read(answer, y).tolist() != y.tolist():
                    shown = f"{answer.status} {answer.body[:200]!r}"
                    counts.add("broken_promises", f"{model} afterwards, {request.protocol}: {shown}")
        await link.close()


def open_descriptors(pids: Sequence[int]) -> int:
    """Of these processes. Not of all: helpers that are started when they are first needed have some of their own."""
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)


def check_descriptors(server: ServerProcess, pids: Sequence[int], counts: Counts, before: int) -> None:
    """Whatever was opened for clients is closed again."""
    try:
        server.until(lambda: open_descriptors(pids) <= before + _SPARE_DESCRIPTORS)
    except AssertionError:
        counts.add("broken_promises", f"{open_descriptors(pids)} descriptors are open, {before} were before")


def check_log(server: ServerProcess, counts: Counts) -> None:
    """Nothing that was sent is told as a fault of the server's: only a model may raise."""
    record = ""
    for line in server.output.splitlines():
        if "Fatal error" in line or ("Traceback" in line and "failed on one request" not in record):
            counts.add("broken_promises", f"the log has {line!r} after {record!r}")
        if not line.startswith(_GOES_ON):  # a model's text may have several lines before its traceback
            record = line


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
