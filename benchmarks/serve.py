"""foldserve beside the bare ASGI ceiling, stock LitServe, and the model without a server: one run, one table.

    python -m benchmarks.serve                     everything that needs no other environment
    python -m benchmarks.serve --peers mosec       with other projects' servers in the same run; see benchmarks.peers
    python -m benchmarks.serve --against ../base   foldserve here and in another checkout, in turn: ratios for each row
    python -m benchmarks.serve --only bare,foldserve-1 --works mlp --connections 64 --rounds 1 --seconds 2 --no-limits

Starts each contender itself, one at a time, in several rounds in a changing order; checks its answer against ONNX
Runtime; loads it with wrk from one thread; prints the medians, and how they stand to what was promised. CPU is
counted over the server's whole process tree. Progress goes to stderr, the tables to stdout and to --markdown.
"""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import litserve
import uvicorn

from benchmarks.serving import peers, process_tree, wrk
from benchmarks.serving.against import PAIRS, against_table, compiled_in, measure_against
from benchmarks.serving.limits import measure_limits
from benchmarks.serving.paired_runs import measure_pairs
from benchmarks.serving.runs import Plan, Results, run
from benchmarks.serving.servers import CONTENDERS, FOLDSERVE, Contender, compile_foldserve
from benchmarks.serving.stats import Findings, checks_table, table
from benchmarks.serving.thresholds import checks
from benchmarks.serving.workloads import MLP, WORKS, Work, export_models
from foldserve.service.backends.onnxruntime.library import onnxruntime

ROUNDS = 3


def main(arguments: Sequence[str] | None = None, contenders: Sequence[Contender] = CONTENDERS) -> int:
    """Measure and print."""
    options = parser().parse_args(arguments)
    families = [peers.FAMILIES[name] for name in options.peers]
    wanted = [*contenders, *(one for one in peers.PEERS if one.family in options.peers)]
    if options.only:
        wanted = [one for one in wanted if one.key in options.only or one.family in options.only]
    works = [work for work in WORKS if work.key in options.works]
    wrk.check_installed()
    process_tree.adopt_orphans()
    for environment in families:
        environment.make()
    if options.against:
        compiled_in(options.against)  # told before minutes are spent
    compile_foldserve()
    export_models()
    if options.against:
        return _against(options, [one for one in FOLDSERVE if not options.only or one in wanted], works)
    rounds = options.rounds or ROUNDS
    results = run(Plan(wanted, works, options.connections, rounds, options.seconds))

    def first(work: Work, connections: int) -> Contender:
        cells = results.cells(work)
        return max(
            FOLDSERVE,
            key=lambda one: cells[one.key, connections].req_s if (one.key, connections) in cells else 0.0,
        )

    extra: list[Findings] = []
    if options.limits:
        extra.append(measure_pairs(first))
        extra.append(measure_limits(first(MLP, 64), options.seconds, rounds))
    show(
        report(results, wanted, works, options.connections, rounds, options.seconds, extra), options.markdown
    )
    return 0


def _against(options: argparse.Namespace, ours: Sequence[Contender], works: Sequence[Work]) -> int:
    pairs, seconds = options.rounds or PAIRS, options.seconds
    rows = measure_against(options.against, ours, works, options.connections, pairs, seconds)
    other = options.against.resolve().name
    head = f"{machine()}; medians of {pairs} pairs of {seconds} s, here and in {other}; ratios here / there."
    show(f"{head}\n\n{against_table(rows)}", options.markdown)
    return int(any(row.worse for row in rows))


def show(text: str, markdown: Path | None) -> None:
    """Print it, and keep it if there is a file for it."""
    print(text)
    if markdown:
        markdown.write_text(text + "\n")


def parser() -> argparse.ArgumentParser:
    """The options."""
    names = [one.key for one in (*CONTENDERS, *peers.PEERS)]
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.serve", description="foldserve beside other servers, in one run."
    )
    result.add_argument(
        "--rounds",
        type=int,
        help=f"how often each is started anew (default: {ROUNDS}); --against: pairs ({PAIRS})",
    )
    result.add_argument("--seconds", type=int, default=4, help="of load per cell and round (default: 4)")
    result.add_argument(
        "--only", type=_names(), default=[], help=f"contenders, with commas, of {', '.join(names)}"
    )
    result.add_argument(
        "--peers",
        type=_names(*peers.FAMILIES),
        default=[],
        help=f"of {', '.join(peers.FAMILIES)}; made on first use",
    )
    keys = [work.key for work in WORKS]
    result.add_argument(
        "--works", type=_names(*keys), default=keys, help=f"of {', '.join(keys)} (default: all)"
    )
    result.add_argument(
        "--connections",
        type=lambda text: [int(word) for word in text.split(",")],
        default=[1, 16, 64],
        help="default: 1,16,64",
    )
    result.add_argument(
        "--limits",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="foldserve in turn with what bounds it; steady load, overload, idling: minutes more (default: yes)",
    )
    result.add_argument(
        "--against",
        type=Path,
        help="another checkout in which `make wheel` was run: only foldserve, here and there, one pair after another; "
        "exit code 1 when a row is more than 5 %% worse here",
    )
    result.add_argument("--markdown", type=Path, help="a file that gets the tables too")
    return result


def _names(*known: str) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        words = [word for word in text.split(",") if word]
        unknown = [word for word in words if known and word not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {', '.join(known)}")
        return words

    return parse


def report(
    results: Results,
    contenders: Sequence[Contender],
    works: Sequence[Work],
    connections: Sequence[int],
    rounds: int,
    seconds: int,
    extra: Sequence[Findings],
) -> str:
    """All tables as Markdown."""
    blocks = [f"{machine()}; medians of {rounds} rounds of {seconds} s per cell."]
    for work in works:
        cells, titles = results.cells(work), {one.key: one.title for one in contenders}
        keys = sorted(
            titles, key=lambda key: -max((cells[k].req_s for k in cells if k[0] == key), default=0.0)
        )
        loop = ", ".join(
            f"{rows_s:,.0f} ({cpu_us:,.1f} µs)" for rows_s, cpu_us in results.loop(work).values()
        )
        blocks += [
            f"### {work.title}",
            table({key: titles[key] for key in keys}, connections, cells),
            f"Without a server, rows/s (CPU µs per row) at batch {', '.join(map(str, results.loop(work)))}: {loop}.",
        ]
    rows = checks({work.key: results.cells(work) for work in works}, {w.key: results.loop(w) for w in works})
    rows += [check for one in extra for check in one.checks]
    if rows:
        blocks += ["### Promised and measured", checks_table(rows)]
    if notes := [note for one in extra for note in one.notes]:
        blocks += ["\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(blocks)


def machine() -> str:
    """What this ran on, in words."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return (
        f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}, shared with the load generator; "
        f"Python {platform.python_version()}, onnxruntime {onnxruntime.__version__} on one thread, "
        f"uvicorn {uvicorn.__version__}, LitServe {litserve.__version__}"
    )


if __name__ == "__main__":
    sys.exit(main())
