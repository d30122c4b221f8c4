"""Closed-loop load by wrk: so many connections, each with one request at a time, from one thread."""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.serving.servers import Request

FIGURES: Final = """\
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("FIGURES requests=%d duration_us=%d p50_us=%d p99_us=%d status=%d socket=%d\\n",
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), e.status,
    e.connect + e.read + e.write + e.timeout))
end
"""
"""The end of every script: prints what parse() reads."""

# Sends one request over and over, which wrk formats once.
_SCRIPT: Final = """\
local file = io.open(%(body)s, "rb")
wrk.method, wrk.body = "POST", file:read("*all")
file:close()
%(headers)s
"""


@dataclass(frozen=True)
class Load:
    """What one run of wrk saw. failed: answers of 400 and above, and socket errors."""

    requests: int
    duration_s: float
    p50_ms: float
    p99_ms: float
    failed: int


def check_installed() -> None:
    """End with a hint when there is no wrk."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not in PATH: the load comes from it. Debian, Ubuntu: apt-get install wrk")


def run(port: int, request: Request, connections: int, seconds: int) -> Load:
    """Load a server on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        body, script = Path(folder, "body"), Path(folder, "post.lua")
        body.write_bytes(request.body)
        headers = "\n".join(f"wrk.headers[{_lua(k)}] = {_lua(v)}" for k, v in request.headers.items())
        script.write_text(_SCRIPT % {"body": _lua(str(body)), "headers": headers} + FIGURES)
        return load(f"{request.scheme}://127.0.0.1:{port}{request.path}", script, connections, seconds)


def load(url: str, script: Path, connections: int, seconds: int) -> Load:
    """Load by a script that ends in FIGURES."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(script), url]
    return parse(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def parse(output: str) -> Load:
    """Read the line that the script printed. Raises: ValueError when there is none."""
    line = re.search(r"^FIGURES (.*)$", output, re.MULTILINE)
    if line is None:
        raise ValueError(f"wrk printed no figures:\n{output}")
    figures = {name: int(value) for name, value in re.findall(r"(\w+)=(-?\d+)", line[1])}
    return Load(
        figures["requests"],
        figures["duration_us"] / 1e6,
        figures["p50_us"] / 1e3,
        figures["p99_us"] / 1e3,
        figures["status"] + figures["socket"],
    )


def _lua(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
