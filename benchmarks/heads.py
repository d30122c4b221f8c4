"""What the heads of usual clients cost the API server, as ratios to the plainest head: one run, one table.

    python -m benchmarks.heads
    python -m benchmarks.heads --rounds 2 --seconds 1 --servers foldserve-1

A head that never changes costs least; clients send a new trace id in each request, proxies an id of their own, and
each library its own Accept. Each server gets each head in turn, second by second, from wrk with 64 connections; what
counts is CPU time per request of the process that speaks HTTP, and the median over the rounds of its ratio to the
plainest head beside it.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.serve import machine
from benchmarks.serving import process_tree, wrk
from benchmarks.serving.servers import BARE, FOLDSERVE, SOURCE, Running, compile_foldserve, running
from benchmarks.serving.workloads import MLP, export_models

CONNECTIONS: Final = 64
NEW: Final = "{new}"
"""In a head: 32 hexadecimal digits that no other request has."""
_JSON: Final = "Content-Type: application/json"
_AGENT: Final = "User-Agent: python-requests/2.32.3"

HEADS: Final[Mapping[str, tuple[str, ...]]] = {
    "plainest": (_JSON,),
    "new `traceparent` each time": (_JSON, f"traceparent: 00-{NEW}-b7ad6b7169203331-01"),
    "new `x-request-id` each time": (_JSON, f"x-request-id: {NEW}"),
    "`charset=utf-8`": ("Content-Type: application/json; charset=utf-8",),
    "axios": (
        *("Accept: application/json, text/plain, */*", _JSON, "User-Agent: axios/1.7.9"),
        *("Accept-Encoding: gzip, compress, deflate, br", "Connection: keep-alive"),
    ),
    "requests": (_AGENT, "Accept-Encoding: gzip, deflate", "Accept: */*", "Connection: keep-alive", _JSON),
    "`authorization`": (
        _JSON,
        "Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jV",
    ),
    "Java, offering HTTP/2": (
        *("Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA"),
        *("Upgrade: h2c", "User-Agent: Java-http-client/17.0.9", _JSON),
    ),
    "behind a mesh: trace, id, forwarded": (
        *(_JSON, f"traceparent: 00-{NEW}-b7ad6b7169203331-01", f"x-request-id: {NEW}", "Accept: */*"),
        *(
            "x-forwarded-for: 10.1.2.3",
            "x-forwarded-proto: https",
            "x-envoy-expected-rq-timeout-ms: 15000",
            _AGENT,
        ),
    ),
}

# All heads are made by the same function, so that the load is the same.
_SCRIPT: Final = """\
local file = io.open(%(path)s, "rb")
local parts, n = {}, 0
for part in (file:read("*all") .. "{new}"):gmatch("(.-){new}") do parts[#parts + 1] = part end
file:close()
function request()
  n = n + 1
  return table.concat(parts, string.format("%%032x", n))
end
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    servers = {one.key: one for one in (FOLDSERVE[0], SOURCE, BARE)}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.heads", description="What usual heads cost.")
    parser.add_argument("--rounds", type=int, default=7, help="how often each head is sent (default: 7)")
    parser.add_argument("--seconds", type=int, default=2, help="of each (default: 2)")
    parser.add_argument(
        "--servers", default=",".join(servers), help=f"of {', '.join(servers)} (default: all)"
    )
    options = parser.parse_args(arguments)
    wrk.check_installed()
    process_tree.adopt_orphans()
    compile_foldserve()
    export_models()
    found = {}
    for key in options.servers.split(","):
        with running(servers[key], MLP) as server:
            found[key] = measure(server, options.rounds, options.seconds)
    print(
        f"{machine()}; medians of {options.rounds} rounds of {options.seconds} s, {CONNECTIONS} connections.\n"
    )
    print(table(found))
    return 0


def measure(server: Running, rounds: int, seconds: int) -> dict[str, tuple[float, float]]:
    """Of each head: CPU microseconds per request, and the ratio to the plainest."""
    pid = http_process()
    spent: dict[str, list[float]] = {name: [] for name in HEADS}
    _cpu_us(server, HEADS["plainest"], pid, seconds)  # warms up
    for _ in range(rounds):
        for name, head in HEADS.items():
            spent[name].append(_cpu_us(server, head, pid, seconds))
            print(f"{name}: {spent[name][-1]:.1f} µs", file=sys.stderr, flush=True)
    plainest = spent["plainest"]
    return {
        name: (
            statistics.median(each),
            statistics.median(one / other for one, other in zip(each, plainest, strict=True)),
        )
        for name, each in spent.items()
    }


def http_process() -> int:
    """The one process below this one that speaks HTTP: an API server is forked, so its command line is its parent's."""
    (top,) = [pid for pid in process_tree.descendants(os.getpid()) if _parent(pid) == os.getpid()]
    forked = [pid for pid in process_tree.descendants(top) if _command(pid) == _command(top)]
    return min(forked, default=top)  # what an API server forks comes after it


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _cpu_us(server: Running, head: Sequence[str], pid: int, seconds: int) -> float:
    """CPU microseconds per request of a process under this load."""
    request = server.request
    lines = [f"POST {request.path} HTTP/1.1", f"Host: 127.0.0.1:{server.port}", *head]
    text = "\r\n".join([*lines, f"Content-Length: {len(request.body)}", "", ""]).encode() + request.body
    with tempfile.TemporaryDirectory() as folder:
        message, script = Path(folder, "message"), Path(folder, "heads.lua")
        message.write_bytes(text)
        script.write_text(_SCRIPT % {"path": f'"{message}"'} + wrk.FIGURES)
        before = process_tree.sample([pid])
        load = wrk.load(f"http://127.0.0.1:{server.port}", script, CONNECTIONS, seconds)
        used_ns = process_tree.used_ns(before, process_tree.sample([pid]))
    if load.failed:
        raise RuntimeError(f"{load.failed} of {load.requests} requests failed with {lines}")
    return used_ns / 1e3 / load.requests


def table(found: Mapping[str, Mapping[str, tuple[float, float]]]) -> str:
    """A line per head, a column per server."""
    titles = {
        FOLDSERVE[0].key: "foldserve, µs (ratio)",
        SOURCE.key: "not compiled, µs (ratio)",
        BARE.key: "bare ASGI app, µs (ratio)",
    }
    lines = [
        "| head | " + " | ".join(titles[key] for key in found) + " |",
        "|---" * (len(found) + 1) + "|",
    ]
    for name in HEADS:
        cells = [f"{cpu_us:.1f} ({ratio:.2f})" for cpu_us, ratio in (found[key][name] for key in found)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
