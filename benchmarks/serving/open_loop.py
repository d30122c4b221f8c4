"""Open-loop load: compiles open_loop.c at its first use, runs it, reads its figures."""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.serving.contenders import Request
from benchmarks.serving.workloads import BENCH

SOURCE: Final = Path(__file__).with_name("open_loop.c")


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
    program = folder / "open_loop"
    if program.exists() and program.stat().st_mtime > SOURCE.stat().st_mtime:
        return program
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit(
            "no C compiler for the open-loop generator. Debian, Ubuntu: apt-get install gcc libc6-dev"
        )
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", program, SOURCE, "-lm"], check=True)
    return program


def run(
    program: Path, port: int, request: Request, rate: float, seconds: float, connections: int
) -> OpenLoad:
    """Offer `rate` requests a second to a server on this machine."""
    lines = [
        f"POST {request.path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Content-Length: {len(request.body)}",
    ]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    with tempfile.NamedTemporaryFile() as file:
        file.write("\r\n".join([*lines, "", ""]).encode() + request.body)
        file.flush()
        command = [str(program), str(port), f"{rate:.3f}", f"{seconds:g}", str(connections), file.name]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return parse(output)


def parse(output: str) -> OpenLoad:
    """Read the generator's line. Raises: ValueError when there is none."""
    line = re.search(r"^FIGURES (.*)$", output, re.MULTILINE)
    if line is None:
        raise ValueError(f"the generator printed no figures:\n{output}")
    given = dict(re.findall(r"(\w+)=([\d.]+)", line[1]))
    counts = ("arrived", "ok", "ok_in_time", "refused", "failed", "unanswered")
    return OpenLoad(**{name: int(value) if name in counts else float(value) for name, value in given.items()})
