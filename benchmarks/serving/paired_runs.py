"""foldserve against what bounds it, in turn: both serve at once, the load goes to one, then to the other, and so on.

A machine that others share is quicker in one minute than in the next, by more than the figures promised here differ
from each other. The two halves of a pair are seconds apart, so the ratio of each pair is steady, and the median of
the ratios is what counts.
"""

import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from benchmarks.serving import open_loop, wrk
from benchmarks.serving.runs import in_process, measure, note
from benchmarks.serving.servers import BARE, Contender, Running, running
from benchmarks.serving.stats import Check, Findings, Measured
from benchmarks.serving.workloads import MLP, RESNET, Work

PAIRS: Final = 15
SECONDS: Final = 1
"""Of each half of a pair."""
LOOP_BATCH: Final = 8
"""No other batch size of the loop is quicker by more than rounds differ."""


def measure_pairs(first: Callable[[Work, int], Contender]) -> Findings:
    """All of them; `first` is the foldserve that serves a workload best at so many connections."""
    pairs = Findings()
    for connections in (64, 1):
        contender = first(MLP, connections)
        with running(BARE, MLP) as bare, running(contender, MLP) as ours:
            both = [(half(ours, connections), half(bare, connections)) for _ in range(PAIRS)]
        what = f"mlp, {connections} connection{'s' * (connections > 1)}, in turn"
        _note(pairs, f"{what}: {contender.key}", "the bare ASGI app", both)
        if connections == 1:
            pairs.checks.append(Check(f"{what}: p50 / bare ASGI", _ratio(both, "p50_ms"), 1.6, least=False))
        else:
            pairs.checks.append(Check(f"{what}: CPU / bare ASGI", _ratio(both, "cpu_us"), 0.85, least=False))
    contender = first(RESNET, 16)
    with running(contender, RESNET) as ours:
        both = [(half(ours, 16), _loop(RESNET)) for _ in range(PAIRS)]
    what = "resnet, 16 connections, in turn"
    _note(pairs, f"{what}: {contender.key}", "the loop without a server", both)
    pairs.checks.append(Check(f"{what}: rows/s / loop", _ratio(both, "req_s"), 0.97, least=True))
    pairs.checks.append(Check(f"{what}: CPU per row / loop", _ratio(both, "cpu_us"), 1.1, least=False))
    _loop_beside_load(pairs, open_loop.build(), RESNET)
    return pairs


def half(server: Running, connections: int, seconds: int = SECONDS) -> Measured:
    """One half of a pair."""
    wrk.run(server.port, server.request, connections, 1)  # awake again, its memory in the caches
    return measure(server, connections, seconds)


def _loop(work: Work) -> Measured:
    """The loop without a server, as if each row were a request."""
    rows_s, cpu_us = in_process(work, [LOOP_BATCH], SECONDS)[LOOP_BATCH]
    return Measured(rows_s, 0.0, 0.0, cpu_us, 0, 0.0)


def _loop_beside_load(pairs: Findings, program: Path, work: Work) -> None:
    """What is left of the loop when only the HTTP of as many requests goes on beside it, without a model."""
    both = []
    with running(BARE, work) as server, ThreadPoolExecutor(1) as pool:
        for _ in range(PAIRS):
            alone = _loop(work)
            # Longer than the loop, which first imports and warms up.
            offered = (program, server.port, server.request, alone.req_s, SECONDS + 3.0, 16)
            load = pool.submit(open_loop.run, *offered)
            both.append((_loop(work), alone))
            load.result()
    rows, cpu = _ratio(both, "req_s"), _ratio(both, "cpu_us")
    line = (
        f"{work.key}: the loop without a server does {rows:.3f} of its rows/s, at {cpu:.3f} of its CPU per row, while "
        "the bare ASGI app answers as many requests beside it without a model."
    )
    note(pairs, line)


def _ratio(both: Sequence[tuple[Measured, Measured]], column: str) -> float:
    """The median ratio of a column, ours to the other's."""
    return statistics.median(getattr(ours, column) / getattr(other, column) for ours, other in both)


def _note(pairs: Findings, ours: str, other: str, both: Sequence[tuple[Measured, Measured]]) -> None:
    halves = [
        (statistics.median(one.req_s for one in half), statistics.median(one.cpu_us for one in half))
        for half in zip(*both, strict=True)
    ]
    (our_rate, our_us), (rate, us) = halves
    line = f"{ours} {our_rate:,.0f}/s at {our_us:.1f} µs; {other} {rate:,.0f}/s at {us:.1f} µs."
    note(pairs, line)
