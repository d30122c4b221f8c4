"""Rounds over contenders, workloads and connections: one server at a time, everything else on the machine at rest."""

import json
import os
import random
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.serving import process_tree, wrk
from benchmarks.serving.servers import Contender, Running, running
from benchmarks.serving.stats import Findings, Key, Measured, medians
from benchmarks.serving.workloads import ROOT, Work

WARM_S = 1
BATCHES = (1, 8, 32)


@dataclass(frozen=True)
class Plan:
    """What is measured. seconds: of one cell in one round."""

    contenders: Sequence[Contender]
    works: Sequence[Work]
    connections: Sequence[int]
    rounds: int
    seconds: int


Loop = dict[int, tuple[float, float]]
"""Batch size -> rows/s and CPU µs per row, of the loop without a server."""


@dataclass
class Results:
    """All rounds so far, by workload."""

    runs: dict[str, dict[Key, list[Measured]]] = field(default_factory=dict)
    loops: dict[str, list[Loop]] = field(default_factory=lambda: defaultdict(list))

    def cells(self, work: Work) -> dict[Key, Measured]:
        """The medians of a workload."""
        return {key: medians(runs) for key, runs in self.runs.get(work.key, {}).items()}

    def loop(self, work: Work) -> Loop:
        """The medians of a workload's loop."""
        loops = self.loops.get(work.key, [])
        middle = len(loops) // 2
        return {
            batch: tuple(sorted(loop[batch][i] for loop in loops)[middle] for i in (0, 1))  # type: ignore[misc]
            for batch in (loops[0] if loops else ())
        }


def run(plan: Plan) -> Results:
    """Measure everything. Progress goes to stderr."""
    results = Results()
    for round_number in range(plan.rounds):
        # Another order in each round: a machine that slows down shall favour nobody.
        order = list(plan.contenders)
        random.Random(round_number).shuffle(order)
        for work in plan.works:
            if plan.contenders:
                results.loops[work.key].append(in_process(work))
            for contender in order:
                tell(f"round {round_number + 1} of {plan.rounds}: {work.key}: {contender.key}")
                try:
                    with running(contender, work) as server:
                        _measure(results, plan, contender, work, server)
                except RuntimeError as error:  # one contender that fails shall not cost the others' figures
                    tell(str(error))
    return results


def _measure(results: Results, plan: Plan, contender: Contender, work: Work, server: Running) -> None:
    runs = results.runs.setdefault(work.key, {})
    wrk.run(server.port, server.request, 16, WARM_S)
    for connections in plan.connections:
        cell = measure(server, connections, plan.seconds)
        runs.setdefault((contender.key, connections), []).append(cell)
        tell(
            f"    c={connections}: {cell.req_s:,.0f}/s  p50 {cell.p50_ms:.2f} ms  p99 {cell.p99_ms:.2f} ms  "
            f"{cell.cpu_us:.0f} µs  failed {cell.failed}  others {cell.others:.2f}"
        )


def measure(server: Running, connections: int, seconds: int) -> Measured:
    """One cell."""
    busy_s, own_s, began_s = process_tree.machine_busy_s(), _own_s(), time.monotonic()
    before = server.cpu()
    load = wrk.run(server.port, server.request, connections, seconds)
    used_ns = process_tree.used_ns(before, server.cpu())
    took_s = time.monotonic() - began_s
    others_s = process_tree.machine_busy_s() - busy_s - used_ns / 1e9 - (_own_s() - own_s)
    return Measured(
        load.requests / load.duration_s,
        load.p50_ms,
        load.p99_ms,
        used_ns / 1e3 / max(1, load.requests),
        load.failed,
        max(0.0, others_s / took_s),
    )


def _own_s() -> float:
    """CPU seconds of this process and of the load generators that have ended; ended servers count too, but only
    between two cells."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def in_process(work: Work, batches: Iterable[int] = BATCHES, seconds: float = 1.5) -> Loop:
    """The loop without a server, in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.serving.in_process",
        str(work.onnx),
        "--seconds",
        f"{seconds}",
    ]
    command += ["--shape", ",".join(map(str, work.row_shape)), "--batches", ",".join(map(str, batches))]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, cwd=ROOT, env=environ, check=True, capture_output=True, text=True).stdout
    return {int(batch): (pair[0], pair[1]) for batch, pair in json.loads(output).items()}


def note(findings: Findings, line: str) -> None:
    """Keep a line for the report, and tell it now."""
    findings.notes.append(line)
    tell(line)


def tell(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)
