"""What each protocol costs the server for the same row, as ratios to /predict: one server, one run, one table.

    python -m benchmarks.protocols
    python -m benchmarks.protocols --rounds 3 --seconds 1 --connections 64
    python -m benchmarks.protocols --work light            a row of 602 KB, in the protocols that carry bytes

The bodies of the Open Inference Protocol are those that tritonclient makes. One server answers each kind of request in
turn, second by second, from wrk; what counts is the CPU time per request of the whole server, and the median over the
rounds of its ratio to the request of /predict that carries the same tensor in the same way.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from benchmarks.serve import machine
from benchmarks.serving import process_tree, wrk
from benchmarks.serving.oip import infer
from benchmarks.serving.runs import measure
from benchmarks.serving.servers import (
    FOLDSERVE,
    JSON,
    RAW,
    Request,
    Running,
    compile_foldserve,
    running,
)
from benchmarks.serving.workloads import WORKS, Work, export_models

CONNECTIONS: Final = (16, 64)
BASES: Final = {
    "/predict, JSON": "/predict, JSON",
    "OIP, JSON": "/predict, JSON",
    "KServe v1": "/predict, JSON",
    "/predict, raw": "/predict, raw",
    "OIP, binary": "/predict, raw",
    "OIP, binary, an id": "/predict, raw",
}
"""Each kind of request, and what it is compared with."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.protocols", description="What protocols cost."
    )
    parser.add_argument("--rounds", type=int, default=9, help="how often each is sent (default: 9)")
    parser.add_argument("--seconds", type=int, default=1, help="of each (default: 1)")
    parser.add_argument("--work", choices=[work.key for work in WORKS], default="mlp", help="(default: mlp)")
    parser.add_argument("--connections", default=",".join(map(str, CONNECTIONS)), help="(default: 16,64)")
    options = parser.parse_args(arguments)
    wrk.check_installed()
    process_tree.adopt_orphans()
    compile_foldserve()
    export_models()
    (work,) = [one for one in WORKS if one.key == options.work]
    found = {}
    with running(FOLDSERVE[0], work) as server:
        for connections in map(int, options.connections.split(",")):
            found[connections] = costs(server, work, connections, options.rounds, options.seconds)
    print(f"{machine()}; {work.key}; medians of {options.rounds} rounds of {options.seconds} s.\n")
    print(table(found))
    return 0


def requests_of(work: Work) -> dict[str, Request]:
    """The row of a workload in each kind of request."""
    row = work.row
    in_bytes = {
        "/predict, raw": Request(f"/predict/{work.model}", RAW, work.raw_body()),
        "OIP, binary": infer(work, binary=True),
        "OIP, binary, an id": infer(work, binary=True, identity="0123456789"),
    }
    if work.raw:
        return in_bytes
    rows = json.dumps({"instances": row.tolist()}).encode()
    return {
        "/predict, JSON": Request(f"/predict/{work.model}", JSON, work.json_body()),
        "OIP, JSON": infer(work, binary=False),
        "KServe v1": Request(f"/v1/models/{work.model}:predict", JSON, rows),
        **in_bytes,
    }


def costs(
    server: Running, work: Work, connections: int, rounds: int, seconds: int
) -> dict[str, tuple[float, float]]:
    """Of each kind of request: CPU microseconds per request, and the ratio to its base."""
    kinds = {name: replace(server, request=request) for name, request in requests_of(work).items()}
    spent: dict[str, list[float]] = {name: [] for name in kinds}
    for name in kinds:
        measure(kinds[name], connections, seconds)  # warms up
    for turn in range(rounds):
        for name in list(kinds)[:: 1 if turn % 2 else -1]:
            measured = measure(kinds[name], connections, seconds)
            if measured.failed:
                raise RuntimeError(f"{measured.failed} requests failed: {name}")
            spent[name].append(measured.cpu_us)
            print(f"{connections} connections, {name}: {measured.cpu_us:.1f} µs", file=sys.stderr, flush=True)
    return {
        name: (
            statistics.median(each),
            statistics.median(one / base for one, base in zip(each, spent[BASES[name]], strict=True)),
        )
        for name, each in spent.items()
    }


def table(found: Mapping[int, Mapping[str, tuple[float, float]]]) -> str:
    """A line per kind of request, two columns per number of connections."""
    heads = [f"CPU µs, ratio, c={connections}" for connections in found]
    lines = ["| request | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name in (one for one in BASES if one in next(iter(found.values()))):
        cells = [f"{of[name][0]:.1f}, {of[name][1]:.2f}" for of in found.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
