"""What was promised of foldserve against the medians of a run. A promise whose figures are missing is left out.

What is closer to its bound than two minutes of a shared machine are to each other is measured in turn: paired_runs.py.
"""

from collections.abc import Iterator, Mapping

from benchmarks.serving.peers import FAMILIES, PEERS
from benchmarks.serving.runs import Loop
from benchmarks.serving.servers import FOLDSERVE, LITSERVE
from benchmarks.serving.stats import Check, Key, Measured, best, ratio

OURS = [one.key for one in FOLDSERVE]
STOCK = [one.key for one in LITSERVE]
MOSEC = [one.key for one in PEERS if one.family == "mosec"]
OTHERS = [one.key for one in PEERS if one.family in FAMILIES] + STOCK

Cells = Mapping[Key, Measured]


def checks(cells: Mapping[str, Cells], loops: Mapping[str, Loop]) -> list[Check]:
    """By workload: the medians, and the loops without a server."""
    return [
        *_small_json(cells.get("mlp", {})),
        *_large(cells.get("light", {}), loops.get("light", {})),
    ]


def _small_json(cells: Cells) -> Iterator[Check]:
    ours = best(OURS, 64, cells)
    if ours:
        if stock := best(STOCK, 64, cells):
            yield Check(
                "mlp, 64 connections: req/s / stock LitServe", ratio(ours.req_s, stock.req_s), 20, True
            )
        if mosec := best(MOSEC, 64, cells):
            yield Check("mlp, 64 connections: req/s / mosec", ratio(ours.req_s, mosec.req_s), 1.2, True)
    ours, peer = best(OURS, 16, cells), best(OTHERS, 16, cells)
    if ours and peer:
        yield Check("mlp, 16 connections: req/s / best peer", ratio(ours.req_s, peer.req_s), 1.5, True)


def _large(cells: Cells, loop: Loop) -> Iterator[Check]:
    ours, bare, peer = best(OURS, 16, cells), cells.get(("bare", 16)), best(OTHERS, 16, cells)
    if ours and bare and loop:
        _, run_us = max(loop.values())
        both = bare.cpu_us + run_us
        yield Check("light, 16 connections: CPU / (bare ASGI + loop)", ratio(ours.cpu_us, both), 1.2, False)
    if ours and peer:
        yield Check("light, 16 connections: req/s / best peer", ratio(ours.req_s, peer.req_s), 1.2, True)
