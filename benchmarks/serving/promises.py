"""What was promised of foldserve against what a run measured. A promise whose figures are missing is left out."""

from collections.abc import Iterator, Mapping

from benchmarks.serving.contenders import FOLDSERVE, LITSERVE
from benchmarks.serving.figures import Check, Key, Measured, best, ratio
from benchmarks.serving.peers import FAMILIES, PEERS
from benchmarks.serving.runs import Loop

OURS = [one.key for one in FOLDSERVE]
STOCK = [one.key for one in LITSERVE]
MOSEC = [one.key for one in PEERS if one.family == "mosec"]
OTHERS = [one.key for one in PEERS if one.family in FAMILIES] + STOCK

Cells = Mapping[Key, Measured]


def checks(cells: Mapping[str, Cells], loops: Mapping[str, Loop]) -> list[Check]:
    """By workload: the medians, and the loops without a server."""
    return [
        *_small_json(cells.get("mlp", {})),
        *_compute(cells.get("resnet", {}), loops.get("resnet", {})),
        *_large(cells.get("light", {}), loops.get("light", {})),
    ]


def _small_json(cells: Cells) -> Iterator[Check]:
    ours, bare = best(OURS, 64, cells), cells.get(("bare", 64))
    if ours:
        if stock := best(STOCK, 64, cells):
            yield Check(
                "mlp, 64 connections: req/s / stock LitServe", ratio(ours.req_s, stock.req_s), 20, True
            )
        if mosec := best(MOSEC, 64, cells):
            yield Check("mlp, 64 connections: req/s / mosec", ratio(ours.req_s, mosec.req_s), 1.2, True)
        if bare:
            yield Check("mlp, 64 connections: CPU / bare ASGI", ratio(ours.cpu_us, bare.cpu_us), 0.85, False)
    ours, peer = best(OURS, 16, cells), best(OTHERS, 16, cells)
    if ours and peer:
        yield Check("mlp, 16 connections: req/s / best peer", ratio(ours.req_s, peer.req_s), 1.5, True)
    ours, bare = best(OURS, 1, cells), cells.get(("bare", 1))
    if ours and bare:
        yield Check("mlp, 1 connection: p50 / bare ASGI", ratio(ours.p50_ms, bare.p50_ms), 1.6, False)


def _compute(cells: Cells, loop: Loop) -> Iterator[Check]:
    ours = best(OURS, 16, cells)
    if ours and loop:
        rows_s, cpu_us = max(loop.values())
        yield Check("resnet, 16 connections: rows/s / loop", ratio(ours.req_s, rows_s), 0.97, True)
        yield Check("resnet, 16 connections: CPU per row / loop", ratio(ours.cpu_us, cpu_us), 1.1, False)


def _large(cells: Cells, loop: Loop) -> Iterator[Check]:
    ours, bare, peer = best(OURS, 16, cells), cells.get(("bare", 16)), best(OTHERS, 16, cells)
    if ours and bare and loop:
        _, run_us = max(loop.values())
        both = bare.cpu_us + run_us
        yield Check("light, 16 connections: CPU / (bare ASGI + loop)", ratio(ours.cpu_us, both), 1.2, False)
    if ours and peer:
        yield Check("light, 16 connections: req/s / best peer", ratio(ours.req_s, peer.req_s), 1.2, True)
