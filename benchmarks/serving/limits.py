"""foldserve where a closed loop does not show it: steady load, three times too much, and nothing at all."""

import os
import time
from pathlib import Path
from typing import Final

from benchmarks.serving import open_loop, process_tree, wrk
from benchmarks.serving.runs import measure, note
from benchmarks.serving.servers import (
    BARE,
    COMPILED,
    Contender,
    Request,
    Running,
    foldserve_command,
    free_port,
    plain,
    post,
    running,
    serving,
)
from benchmarks.serving.stats import Check, Findings, Measured, medians
from benchmarks.serving.workloads import BENCH, LIGHT, MLP, REPOSITORY, RESNET, Work, repository_of

STEADY: Final = 0.7
STEADY_ROUNDS: Final = 7
STEADY_CONNECTIONS: Final = 128
OVERLOAD: Final = 3.0
QUEUE_ROWS: Final = 64
"""The bound of the queue under overload."""
IDLE_S: Final = 30.0
OVERLOAD_CONNECTIONS: Final = 512


def measure_limits(contender: Contender, seconds: int, rounds: int) -> Findings:
    """All of them; `contender` is the foldserve that serves small JSON best."""
    limits = Findings()
    program = open_loop.build()
    _steady(limits, program, contender, MLP, seconds, rounds)
    for work in (RESNET, MLP):
        _overload(limits, program, work, seconds, rounds)
    _idle(limits)
    return limits


def _steady(
    limits: Findings, program: Path, contender: Contender, work: Work, seconds: int, rounds: int
) -> None:
    """Ours and the bare server in turn at one rate: what the machine does to a tail shows in both."""
    with running(contender, work) as ours, running(BARE, work) as bare:
        peak = _peak(ours, 64, seconds, rounds).req_s
        offered = (STEADY * peak, seconds, STEADY_CONNECTIONS)
        both = [
            [open_loop.run(program, server.port, server.request, *offered) for server in (ours, bare)]
            for _ in range(STEADY_ROUNDS)
        ]
    middle = sorted((load for load, _ in both), key=_tail)[len(both) // 2]
    _note(limits, f"{contender.key}, {work.key}, {STEADY:.0%} of {peak:,.0f}/s", middle)
    seen, bare_seen = (
        ", ".join(f"{load.p50_ms:.2f} and {load.p99_ms:.1f}" for load in loads)
        for loads in zip(*both, strict=True)
    )
    note(
        limits,
        f"{contender.key}, {work.key}, {STEADY:.0%} of its peak: p50 and p99 {seen} ms; the bare ASGI app at this "
        f"rate, in turn: {bare_seen} ms.",
    )
    what = f"{work.key} at {STEADY:.0%} of its peak, open loop: p99 / p50"
    limits.checks.append(Check(what, _tail(middle), 10, least=False))


def _tail(load: open_loop.OpenLoad) -> float:
    return load.p99_ms / load.p50_ms


def _peak(server: Running, connections: int, seconds: int, rounds: int) -> Measured:
    wrk.run(server.port, server.request, 64, 1)  # awake
    return medians([measure(server, connections, seconds) for _ in range(rounds)])


def _overload(limits: Findings, program: Path, work: Work, seconds: int, rounds: int) -> None:
    repository = repository_of([work], BENCH / "bounded" / work.key, max_rows=QUEUE_ROWS)
    contender = Contender(
        "foldserve-bounded",
        "foldserve",
        "foldserve",
        lambda _, port: foldserve_command(repository, 1, port),
        plain("/predict"),
        lambda work, port: COMPILED,
    )
    with running(contender, work) as server:
        peak = _peak(server, QUEUE_ROWS, seconds, rounds)
        rate = OVERLOAD * peak.req_s
        seen = [
            open_loop.run(program, server.port, server.request, rate, seconds, OVERLOAD_CONNECTIONS)
            for _ in range(rounds)
        ]
    middle = sorted(seen, key=lambda load: load.ok_in_time)[len(seen) // 2]
    _note(limits, f"{work.key}, {OVERLOAD:g} x {peak.req_s:,.0f}/s, queue of {QUEUE_ROWS} rows", middle)
    rate_s = middle.ok_in_time / middle.seconds
    limits.notes[-1] += f" At that rate {QUEUE_ROWS} rows take {QUEUE_ROWS / max(rate_s, 1.0) * 1e3:.1f} ms."
    goodput = rate_s / peak.req_s
    limits.checks.append(
        Check(f"{work.key}, {OVERLOAD:g} x its peak: goodput / peak", goodput, 0.9, least=True)
    )
    limits.checks.append(
        Check(
            f"{work.key}, {OVERLOAD:g} x its peak: neither 200 nor 429",
            middle.failed + middle.unanswered,
            0,
            False,
        )
    )


def _idle(limits: Findings) -> None:
    """Three models loaded and asked once, then nobody comes."""
    port = free_port()
    with serving(foldserve_command(REPOSITORY, 1, port), COMPILED, "foldserve-idle"):
        for work in (MLP, RESNET, LIGHT):
            request, _ = plain(f"/predict/{work.model}")(work)
            _until_answered(port, request)
        before = process_tree.sample(process_tree.descendants(os.getpid()))
        time.sleep(IDLE_S)  # the measurement itself
        after = process_tree.sample(process_tree.descendants(os.getpid()))
    percent = process_tree.used_ns(before, after) / 1e9 / IDLE_S * 100
    limits.checks.append(Check(f"idle, three models, {IDLE_S:g} s: % of a core", percent, 1, least=False))


def _until_answered(port: int, request: Request) -> None:
    until_s = time.monotonic() + 60.0
    while True:
        try:
            post(port, request)
            return
        except OSError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.1)  # between two questions


def _note(limits: Findings, what: str, load: open_loop.OpenLoad) -> None:
    offered, served = load.arrived / load.seconds, load.ok_in_time / load.seconds
    line = (
        f"{what}: offered {offered:,.0f}/s for {load.seconds:g} s; answered 200 {served:,.0f}/s "
        f"meanwhile, {load.ok:,} in all, with p50 {load.p50_ms:.2f} ms and p99 {load.p99_ms:.2f} ms; 429 "
        f"{load.refused:,} with p99 {load.refused_p99_ms:.2f} ms, failed {load.failed}, not answered within 10 s "
        f"{load.unanswered}; the generator was at most {load.late_ms:.1f} ms behind."
    )
    note(limits, line)
