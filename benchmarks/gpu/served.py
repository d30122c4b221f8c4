"""The networks through foldserve, from several API servers on this machine, with raw bodies of one row; and a worker
that is killed under load.

The server runs from the checkout, with this process's interpreter: no console script need be installed.
"""

import contextlib
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.gpu.device import Utilisation
from benchmarks.gpu.in_process import repeated
from benchmarks.gpu.records import Killed, Served
from benchmarks.gpu.subprocesses import environment
from benchmarks.serving import closed_loop, process_tree
from benchmarks.serving.closed_loop import ClosedLoad, Shape
from benchmarks.serving.servers import RAW, Request, free_port, post, serving
from foldserve.service.artifact.difference import relative_error
from foldserve.service.repository.artifact import Artifact
from foldserve.service.repository.index import read_repository
from foldserve.service.repository.reference import read_reference

WARM_S: Final = 1.0
KILLS: Final = 3
_FOLDSERVE: Final = "import sys; from foldserve.service.cli import main; sys.exit(main())"
_BYTES: Final = "1GiB"
"""Of requests under way, and of bodies being received, in one API server: room for every connection's."""
_MOST_OFF: Final = 1e-3
"""How far an answer may be off that of the same row on the same server, run in another batch."""
_GIVEN: Final = (
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
)


@dataclass(frozen=True)
class Place:
    """Where it is served and with what it is loaded.

    device: "cpu" or "cuda:N"; uuid: of that GPU, "" = none. threads: of the load generator.
    start_limit_s: how long a server may take to load its model.
    """

    device: str
    uuid: str
    generator: Path
    threads: int
    start_limit_s: float


@dataclass(frozen=True)
class Model:
    """What is served. key, precision: as in the tables. repository: with this model alone."""

    key: str
    precision: str
    repository: Path


@dataclass(frozen=True)
class Running:
    """A server that is ready and answers rightly."""

    pid: int
    port: int
    request: Request

    def workers(self) -> list[int]:
        """The processes that run models."""
        return [pid for pid in process_tree.descendants(self.pid) if "spawn_main" in _command_line(pid)]

    def api_servers(self) -> list[int]:
        """The processes that speak HTTP; forked, so that their command line is the parent's."""
        own = _command_line(self.pid)
        return [pid for pid in process_tree.descendants(self.pid) if _command_line(pid) == own]

    def ready(self) -> bool:
        """Whether every model is served by some worker."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v2/health/ready", timeout=5.0):
                return True
        except OSError:
            return False


def measure(
    model: Model, api_servers: int, connections: Sequence[int], seconds: float, place: Place
) -> Iterator[Served]:
    """Load one server with so many connections, one number after the other.

    Raises: RuntimeError when the server does not start, answers wrongly, or the load generator fails.
    """
    with running(model, api_servers, place) as server:
        for count in connections:
            shape = Shape(count, place.threads, seconds)
            closed_loop.run(place.generator, server.port, server.request, Shape(count, place.threads, WARM_S))
            yield _measure(model, api_servers, server, shape, place)


def _measure(model: Model, api_servers: int, server: Running, shape: Shape, place: Place) -> Served:
    pids = [server.pid, *process_tree.descendants(server.pid)]
    device = Utilisation(place.uuid)
    before, begun_s = process_tree.sample(pids), time.monotonic()
    with device:
        load = closed_loop.run(place.generator, server.port, server.request, shape)
    after, took_s = process_tree.sample(pids), time.monotonic() - begun_s
    cores = used_cores(before, after, took_s)
    return Served(
        model=model.key,
        precision=model.precision,
        api_servers=api_servers,
        connections=shape.connections,
        rows_s=load.ok_in_time / load.seconds,
        p50_ms=load.p50_ms,
        p99_ms=load.p99_ms,
        device=device.mean,
        cpu_s=process_tree.used_ns(before, after) / 1e6 / max(1, load.ok),
        api_cores=max((cores.get(pid, 0.0) for pid in server.api_servers()), default=0.0),
        worker_cores=max((cores.get(pid, 0.0) for pid in server.workers()), default=0.0),
        generator_cores=load.cpu_s / took_s,
        refused=load.refused,
        failed=load.failed + load.unanswered,
    )


def used_cores(before: process_tree.Sample, after: process_tree.Sample, took_s: float) -> dict[int, float]:
    """Process -> cores that it used between two samples, all its threads together."""
    used: dict[int, float] = {}
    for (pid, thread), ns in after.items():
        used[pid] = used.get(pid, 0.0) + (ns - before.get((pid, thread), 0)) / 1e9 / took_s
    return used


def kill_workers(
    model: Model, api_servers: int, connections: int, seconds: float, place: Place, kills: int = KILLS
) -> Killed:
    """Kill the worker in the middle of a load, again and again: each load is `seconds` long, and its last answers are
    waited for as long as a worker may take to come back.

    Raises: RuntimeError as measure(), and when no worker comes back.
    """
    shape = Shape(connections, place.threads, seconds, patience_s=place.start_limit_s)
    loads: list[ClosedLoad] = []
    back_s: list[float] = []
    with running(model, api_servers, place) as server:
        for _ in range(kills):
            with closed_loop.loading(place.generator, server.port, server.request, shape) as load:
                time.sleep(seconds / 2)  # the load goes on meanwhile
                back_s.append(_kill(server, place.start_limit_s))
                loads.append(load.result())
    return Killed(
        model=model.key,
        precision=model.precision,
        api_servers=api_servers,
        connections=connections,
        seconds=sum(one.seconds for one in loads),
        kills=kills,
        back_s=max(back_s),
        answered=sum(one.ok for one in loads),
        refused=sum(one.refused for one in loads),
        failed=sum(one.failed for one in loads),
        unanswered=sum(one.unanswered for one in loads),
        slowest_ms=max(one.max_ms for one in loads),
    )


def _kill(server: Running, limit_s: float) -> float:
    """Kill every worker; seconds until the server is ready again. Raises: RuntimeError when it is not in time."""
    killed = server.workers()
    begun_s = time.monotonic()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    # Until the death is noticed the server calls itself ready; a worker of another id means that it was.
    while not set(server.workers()) - set(killed) or not server.ready():
        if time.monotonic() - begun_s > limit_s:
            raise RuntimeError(f"no worker came back within {limit_s:.0f} s of a kill -9")
        time.sleep(0.05)  # between two looks
    return time.monotonic() - begun_s


@contextmanager
def running(model: Model, api_servers: int, place: Place) -> Iterator[Running]:
    """The model's server, ready, its answer checked. Raises: RuntimeError with the end of its log."""
    ((artifact,),) = [entry.artifacts for entry in read_repository(model.repository)]
    port = free_port()
    # -P: what PYTHONPATH names, which may be a compiled foldserve, comes before the current folder.
    command = [
        sys.executable,
        "-P",
        "-c",
        _FOLDSERVE,
        "serve",
        str(model.repository),
        "--device",
        place.device,
    ]
    command += ["--port", str(port), "--api-servers", str(api_servers)]
    command += ["--arena-bytes", _BYTES, "--receive-bytes", _BYTES]
    name = f"gpu-{model.key}-{model.precision}-{api_servers}"
    with serving(command, environment(_GIVEN), name) as log:
        request = Request("/predict", RAW, _rows(artifact, 1).tobytes())
        server = Running(_server_pid(port), port, request)
        _wait_ready(server, place.start_limit_s, log)
        _check(server, artifact)
        yield server


def _server_pid(port: int) -> int:
    """Of those below this process the one that was told the port: parents come first."""
    return next(pid for pid in process_tree.descendants(os.getpid()) if str(port) in _command_line(pid))


def _wait_ready(server: Running, limit_s: float, log: Path) -> None:
    until_s = time.monotonic() + limit_s
    while not server.ready():
        if not process_tree.any_lives([server.pid]):
            raise RuntimeError(f"the server ended: {log.read_text()[-1500:].strip()}")
        if time.monotonic() > until_s:
            raise RuntimeError(
                f"the server was not ready after {limit_s:.0f} s: {log.read_text()[-1500:].strip()}"
            )
        time.sleep(0.1)  # between two questions


def _rows(artifact: Artifact, count: int) -> np.ndarray:
    (spec,) = artifact.signature.inputs
    return repeated(read_reference(artifact)[f"input.{spec.name}"], count)


def _check(server: Running, artifact: Artifact) -> None:
    """Compare an answer with the reference. Raises: RuntimeError when it is another, or an error."""
    (spec,) = artifact.signature.outputs
    wanted = read_reference(artifact)[f"output.{spec.name}"][:1]
    try:
        answer = post(server.port, server.request)
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"the server answers {error}: {error.read(500)!r}") from error
    got = np.frombuffer(answer, spec.dtype)
    if got.size != wanted.size:
        raise RuntimeError(f"{got.size} numbers came back, expected {wanted.size}")
    parity = artifact.parity(spec.name)
    allowed = 2 * max(parity.tolerance if parity else 0.0, _MOST_OFF)
    off = relative_error(got.reshape(wanted.shape), wanted)
    if not off <= allowed:
        raise RuntimeError(f"the answer is off its reference by {off:.2g}, at most {allowed:.2g} is allowed")


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    return ""
