"""Open-loop load: compiles open_loop.c at its first use, runs it, reads its figures."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving import generators
from benchmarks.serving.servers import Request
from benchmarks.serving.workloads import BENCH


@dataclass(frozen=True)
class OpenLoad:
    """What came of the arrivals.

    ok: answered 200; ok_in_time: of these, before the arrivals ended; refused: 429; failed: anything else;
    unanswered: still open 10 s after the last arrival. p50, p99: of those answered 200, from their arrival.
    late_ms: how far the generator itself was behind at worst.
    """

    arrived: int
    ok: int
    ok_in_time: int
    refused: int
    failed: int
    unanswered: int
    seconds: float
    p50_ms: float
    p99_ms: float
    refused_p99_ms: float
    late_ms: float


def build(folder: Path = BENCH) -> Path:
    """Compile the generator unless the one there is newer than its source."""
    return generators.build("open_loop", folder, ["-lm"])


def run(
    program: Path, port: int, request: Request, rate: float, seconds: float, connections: int
) -> OpenLoad:
    """Offer `rate` requests a second to a server on this machine."""
    with generators.request_file(port, request) as file:
        command = [str(program), str(port), f"{rate:.3f}", f"{seconds:g}", str(connections), file]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return parse(output)


def parse(output: str) -> OpenLoad:
    """Read the generator's line. Raises: ValueError when there is none."""
    counts = ("arrived", "ok", "ok_in_time", "refused", "failed", "unanswered")
    given = generators.figures(output)
    return OpenLoad(**{name: int(value) if name in counts else value for name, value in given.items()})
