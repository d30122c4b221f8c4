"""What keys, limits and TLS cost, as ratios to a server without: all serve at once, one table.

    python -m benchmarks.security
    python -m benchmarks.security --pairs 5 --seconds 1 --connections 64

Each server gets the same request in turn, second by second, from wrk over connections that stay. What counts is the
median over the rounds of the ratio to the server without keys and TLS, whose turn is seconds before: of the requests
per second, and of the CPU time per request of the whole server.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.serve import machine
from benchmarks.serving import process_tree, wrk
from benchmarks.serving.paired_runs import half
from benchmarks.serving.servers import (
    COMPILED,
    FOLDSERVE,
    Contender,
    Read,
    Request,
    Running,
    compile_foldserve,
    running,
)
from benchmarks.serving.stats import Measured
from benchmarks.serving.workloads import BENCH, LIGHT, MLP, Work, export_models

KEY: Final = "0123456789abcdef0123456789abcdef"
CONNECTIONS: Final = (16, 64)


@dataclass(frozen=True)
class Guarded:
    """How a server is guarded. fields: of its key; None where none is asked for."""

    title: str
    fields: str | None = None
    encrypted: bool = False


GUARDED: Final = (
    Guarded("without"),
    Guarded("a key", ""),
    Guarded("a key with limits", ", rows_per_s: 1000000, queue_share: 1"),
    Guarded("TLS", None, encrypted=True),
    Guarded("TLS and a key", "", encrypted=True),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.security", description="What keys and TLS cost."
    )
    parser.add_argument("--pairs", type=int, default=15, help="rounds (default: 15)")
    parser.add_argument("--seconds", type=int, default=1, help="of each server in a round (default: 1)")
    parser.add_argument("--connections", default=",".join(map(str, CONNECTIONS)), help="(default: 16,64)")
    options = parser.parse_args(arguments)
    wrk.check_installed()
    process_tree.adopt_orphans()
    compile_foldserve()
    export_models()
    found: dict[tuple[str, int], list[list[Measured]]] = {}
    for work in (MLP, LIGHT):
        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(running(contender(one), work)) for one in GUARDED]
            for connections in map(int, options.connections.split(",")):
                found[work.title, connections] = measure(servers, connections, options.pairs, options.seconds)
    print(f"{machine()}; medians of {options.pairs} rounds of {options.seconds} s.\n")
    print(table(found))
    return 0


def contender(guarded: Guarded) -> Contender:
    """A server that is guarded so, and the request that it lets in."""
    ours = FOLDSERVE[0]

    def command(work: Work, port: int) -> list[str]:
        tls = certificate() if guarded.encrypted else ()
        return [*ours.command(work, port), *tls]

    def environ(work: Work, port: int) -> dict[str, str]:
        keys = (
            {}
            if guarded.fields is None
            else {"FOLDSERVE_KEYS": f"[{{name: me, key: '{KEY}'{guarded.fields}}}]"}
        )
        return {**COMPILED, **keys}

    def ask(work: Work) -> tuple[Request, Read]:
        request, read = ours.ask(work)
        key = {} if guarded.fields is None else {"Authorization": f"Bearer {KEY}"}
        scheme = "https" if guarded.encrypted else "http"
        return replace(request, headers={**request.headers, **key}, scheme=scheme), read

    name = guarded.title.replace(" ", "-")
    return replace(ours, key=name, title=guarded.title, command=command, environ=environ, ask=ask)


def certificate() -> tuple[str, ...]:
    """The options of a server that has one."""
    key, made = BENCH / "server.key", BENCH / "server.pem"
    if not made.exists():
        new = (
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "365",
        )
        to = ("-subj", "/CN=localhost", "-keyout", str(key), "-out", str(made))
        Path(BENCH).mkdir(parents=True, exist_ok=True)
        subprocess.run(["openssl", *new, *to], check=True, capture_output=True)
    return ("--tls-certificate", str(made), "--tls-key", str(key))


def measure(servers: Sequence[Running], connections: int, pairs: int, seconds: int) -> list[list[Measured]]:
    """The rounds: of each server in the order of GUARDED."""
    rounds = []
    for turn in range(pairs):
        order = list(range(len(servers)))[:: 1 if turn % 2 else -1]
        each = {at: half(servers[at], connections, seconds) for at in order}
        failed = {GUARDED[at].title: one.failed for at, one in each.items() if one.failed}
        if failed:
            raise RuntimeError(f"requests failed: {failed}")
        rounds.append([each[at] for at in range(len(servers))])
        print(f"{connections} connections, round {turn + 1}", file=sys.stderr, flush=True)
    return rounds


def table(found: Mapping[tuple[str, int], Sequence[Sequence[Measured]]]) -> str:
    """A line per server, two columns per workload and number of connections."""
    heads = [f"{title}, c={connections}: CPU µs (ratio), requests/s" for title, connections in found]
    lines = ["| guarded by | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for at, guarded in enumerate(GUARDED):
        cells = []
        for rounds in found.values():
            cpu_us = statistics.median(one[at].cpu_us for one in rounds)
            cpu = statistics.median(one[at].cpu_us / one[0].cpu_us for one in rounds)
            rate = statistics.median(one[at].req_s / one[0].req_s for one in rounds)
            cells.append(f"{cpu_us:.1f} ({cpu:.3f}), {rate:.3f}")
        lines.append(f"| {guarded.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
