"""Closed-loop load from several threads: compiles closed_loop.c at its first use, runs it, reads its figures.

For what wrk does too, where there is no wrk, where its one thread is not enough, or where what fails must be counted.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving import generators
from benchmarks.serving.servers import Request
from benchmarks.serving.workloads import BENCH


@dataclass(frozen=True)
class ClosedLoad:
    """What came of the requests.

    ok: answered 200; ok_in_time: of these, before the time was over; refused: 429; failed: anything else;
    unanswered: still open when the generator's patience ended. p50, p99, max: of those answered 200.
    cpu_s: CPU seconds of the generator.
    """

    ok: int
    ok_in_time: int
    refused: int
    failed: int
    unanswered: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_s: float


@dataclass(frozen=True)
class Shape:
    """How the load is put. patience_s: how long the last answers are waited for."""

    connections: int
    threads: int
    seconds: float
    patience_s: float = 10.0


class Load:
    """A load under way."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def under_way(self) -> bool:
        """Whether the generator still runs."""
        return self._process.poll() is None

    def result(self) -> ClosedLoad:
        """Wait for its end. Raises: RuntimeError when the generator failed."""
        output, errors = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(f"the load generator ended with {self._process.returncode}: {errors.strip()}")
        return parse(output)


def build(folder: Path = BENCH) -> Path:
    """Compile the generator unless the one there is newer than its source."""
    return generators.build("closed_loop", folder, ["-pthread"])


@contextmanager
def loading(program: Path, port: int, request: Request, shape: Shape) -> Iterator[Load]:
    """Load a server on this machine meanwhile; what still runs at the end is killed."""
    with generators.request_file(port, request) as file:
        command = [str(program), str(port), f"{shape.seconds:g}", str(shape.connections), str(shape.threads)]
        process = subprocess.Popen(
            [*command, f"{shape.patience_s:g}", file],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                yield Load(process)
            finally:
                if process.poll() is None:
                    process.kill()


def run(program: Path, port: int, request: Request, shape: Shape) -> ClosedLoad:
    """Load a server on this machine. Raises: RuntimeError when the generator failed."""
    with loading(program, port, request, shape) as load:
        return load.result()


def parse(output: str) -> ClosedLoad:
    """Read the generator's line. Raises: ValueError when there is none."""
    counts = ("ok", "ok_in_time", "refused", "failed", "unanswered")
    given = generators.figures(output)
    return ClosedLoad(**{name: int(value) if name in counts else value for name, value in given.items()})
