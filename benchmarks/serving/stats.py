"""Medians over rounds, ratios, and the tables. Numbers in, text out."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

DISTURBED_CORES: Final = 0.1
"""A cell during which something else used this many cores or more carries a ~."""


@dataclass(frozen=True)
class Measured:
    """One contender, one workload, one number of connections: one run, or the medians of several.

    cpu_us: CPU microseconds per request of the server's whole process tree. others: cores that neither the server
    nor the load generator used.
    """

    req_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    failed: int
    others: float


def medians(runs: Sequence[Measured]) -> Measured:
    """Each figure's own median; failures are summed, for none may hide."""

    def median(name: str) -> float:
        return statistics.median(getattr(run, name) for run in runs)

    return Measured(
        req_s=median("req_s"),
        p50_ms=median("p50_ms"),
        p99_ms=median("p99_ms"),
        cpu_us=median("cpu_us"),
        failed=sum(run.failed for run in runs),
        others=median("others"),
    )


def ratio(one: float, other: float) -> float:
    """one / other; nan when there is nothing to compare with."""
    return one / other if other else float("nan")


Key = tuple[str, int]
"""Contender and connections."""


def table(titles: Mapping[str, str], connections: Sequence[int], cells: Mapping[Key, Measured]) -> str:
    """One workload as Markdown: a line per contender in the order of `titles`, those without cells left out."""
    heads = ["server"]
    for c in connections:
        heads += [f"req/s c={c}", "p50 ms" if c == 1 else "p50, p99 ms"]
    heads += [f"CPU µs c={c}" for c in connections] + ["failed"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for key, title in titles.items():
        mine = [cells.get((key, c)) for c in connections]
        if not any(mine):
            continue
        words = [title]
        for c, cell in zip(connections, mine, strict=True):
            words += ["-", "-"] if cell is None else [_rate(cell), _latency(cell, alone=c == 1)]
        words += ["-" if cell is None else f"{cell.cpu_us:,.0f}" for cell in mine]
        words.append(f"{sum(cell.failed for cell in mine if cell):,}")
        lines.append("| " + " | ".join(words) + " |")
    return "\n".join(lines)


def _rate(cell: Measured) -> str:
    return f"{'~' if cell.others >= DISTURBED_CORES else ''}{cell.req_s:,.0f}"


def _latency(cell: Measured, *, alone: bool) -> str:
    return f"{cell.p50_ms:.2f}" if alone else f"{cell.p50_ms:.2f}, {cell.p99_ms:.1f}"


@dataclass(frozen=True)
class Check:
    """A figure that was promised. least: whether `wanted` is the least or the most."""

    what: str
    got: float
    wanted: float
    least: bool

    @property
    def reached(self) -> bool:
        """Whether it holds; never for a figure that could not be measured."""
        return self.got >= self.wanted if self.least else self.got <= self.wanted


@dataclass(frozen=True)
class Findings:
    """What a part of a run found: rows for the table of promises, and what lies behind them, as lines of Markdown."""

    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def checks_table(checks: Sequence[Check]) -> str:
    """As Markdown."""
    lines = ["| figure | wanted | measured | |", "|---|---|---|---|"]
    for one in checks:
        sign = "≥" if one.least else "≤"
        verdict = "reached" if one.reached else "**not reached**"
        lines.append(f"| {one.what} | {sign} {one.wanted:g} | {one.got:.3g} | {verdict} |")
    return "\n".join(lines)


def best(titles: Sequence[str], connections: int, cells: Mapping[Key, Measured]) -> Measured | None:
    """Of several contenders the one with the most requests a second."""
    found = [cells[key, connections] for key in titles if (key, connections) in cells]
    return max(found, key=lambda cell: cell.req_s, default=None)
