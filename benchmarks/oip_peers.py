"""foldserve beside other servers of the Open Inference Protocol, all asked with the same bytes: those of tritonclient.

    python -m benchmarks.oip_peers                  all; makes their environments under build/peers at first
    python -m benchmarks.oip_peers --rounds 1 --seconds 1 --only foldserve,triton --connections 64

Triton (the binary of nvidia-pytriton, Python backend), KServe's Python server, MLServer. One process that runs the
model each, ONNX Runtime on one thread, batches of up to 32 where there are batches, answers checked, closed loops of
wrk, one server at a time, in rounds of a changing order; medians. Progress goes to stderr.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.serve import machine, show
from benchmarks.serving import process_tree, wrk
from benchmarks.serving.oip import OIP_WORKS
from benchmarks.serving.oip_peers import JSON_ALONE, OIP_CONTENDERS, OIP_ENVIRONMENTS, OURS
from benchmarks.serving.runs import Plan, Results, run
from benchmarks.serving.servers import Contender, compile_foldserve
from benchmarks.serving.stats import DISTURBED_CORES, Key, Measured
from benchmarks.serving.workloads import Work, export_models


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.oip_peers", description="foldserve beside Triton, KServe and MLServer."
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each is started anew (default: 5)")
    parser.add_argument("--seconds", type=int, default=2, help="of load per cell and round (default: 2)")
    families = list(dict.fromkeys(one.family for one in OIP_CONTENDERS))
    parser.add_argument("--only", default=",".join(families), help=f"some of {', '.join(families)}")
    parser.add_argument("--connections", default="1,16,64", help="(default: 1,16,64)")
    parser.add_argument("--markdown", type=Path, help="a file that gets the tables too")
    options = parser.parse_args(arguments)
    wanted = options.only.split(",")
    if unknown := sorted({*wanted} - {*families}):
        parser.error(f"--only has {', '.join(unknown)}; expected some of {', '.join(families)}")
    connections = [int(word) for word in options.connections.split(",")]
    wrk.check_installed()
    process_tree.adopt_orphans()
    for environment in OIP_ENVIRONMENTS:
        if environment.name in wanted:
            environment.make()
    compile_foldserve()
    export_models()
    chosen = [one for one in OIP_CONTENDERS if one.family in wanted]
    results = Results()
    for work in OIP_WORKS:
        some = [one for one in chosen if not (work.raw and one.family in JSON_ALONE)]
        found = run(Plan(some, [work], connections, options.rounds, options.seconds))
        results.runs |= found.runs
    bodies = f"bodies by tritonclient {version('tritonclient')}"
    head = f"{machine()}; {bodies}; medians of {options.rounds} rounds of {options.seconds} s."
    show(
        "\n\n".join([head, *(block(results, work, chosen, connections) for work in OIP_WORKS)]),
        options.markdown,
    )
    return 0


def block(results: Results, work: Work, contenders: Sequence[Contender], connections: Sequence[int]) -> str:
    """The table of a workload."""
    return f"### {work.title}\n\n{table(results.cells(work), contenders, connections)}"


def table(cells: Mapping[Key, Measured], contenders: Sequence[Contender], connections: Sequence[int]) -> str:
    """A line per server, the figures of each number of connections; in brackets foldserve's, as a ratio to it."""
    heads = [f"c={c}: req/s, p50, p99 ms, CPU µs" for c in connections]
    lines = ["| server | " + " | ".join(heads) + " | failed |", "|---" * (len(heads) + 2) + "|"]
    for one in contenders:
        mine = [cells.get((one.key, c)) for c in connections]
        if not any(mine):
            continue
        words = [_cell(cell, cells.get((OURS.key, c))) for c, cell in zip(connections, mine, strict=True)]
        failed = sum(cell.failed for cell in mine if cell)
        lines.append(f"| {one.title} | " + " | ".join(words) + f" | {failed:,} |")
    return "\n".join(lines)


def _cell(cell: Measured | None, ours: Measured | None) -> str:
    if cell is None:
        return "-"
    disturbed = "~" if cell.others >= DISTURBED_CORES else ""
    figures = f"{disturbed}{cell.req_s:,.0f}, {cell.p50_ms:.2f}, {cell.p99_ms:.1f}, {cell.cpu_us:,.0f}"
    if ours is None or ours == cell or not cell.req_s:
        return figures
    return f"{figures} ({ours.req_s / cell.req_s:.1f}, {ours.cpu_us / cell.cpu_us:.2f})"


if __name__ == "__main__":
    sys.exit(main())
