"""foldserve as it lies here against foldserve of another checkout, in turn: has a change cost anything?

Both serve at once, and the load goes to one, then to the other, as in paired_runs.py, for the same reason. The other
checkout needs nothing but its compiled wheel laid out (build/compiled); it runs on this one's Python and packages.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.serving.paired_runs import half
from benchmarks.serving.runs import tell
from benchmarks.serving.servers import Contender, Running, running
from benchmarks.serving.stats import Measured
from benchmarks.serving.workloads import Work

PAIRS: Final = 15
ALLOWED: Final = 0.05
"""How much worse a row may be: that much the medians of two runs of one server differ."""

Pair = tuple[Measured, Measured]


@dataclass(frozen=True)
class Row:
    """One workload, one number of connections, one contender: its pairs, this checkout's half first."""

    what: str
    pairs: Sequence[Pair]

    def ratio(self, column: str) -> float:
        """The median ratio of a column, this checkout's to the other's."""
        return statistics.median(
            getattr(ours, column) / getattr(theirs, column) for ours, theirs in self.pairs
        )

    def median(self, column: str, side: int) -> float:
        """The median of a column, of this checkout (0) or of the other one (1)."""
        return statistics.median(getattr(pair[side], column) for pair in self.pairs)

    @property
    def worse(self) -> bool:
        """Whether this checkout does fewer requests a second, at more CPU for each or not, than is allowed."""
        return self.ratio("req_s") < 1 - ALLOWED or self.ratio("cpu_us") > 1 + ALLOWED


def compiled_in(checkout: Path) -> Path:
    """Where a checkout has its compiled wheel. Raises: SystemExit when there is none."""
    compiled = checkout.resolve() / "build" / "compiled"
    if not (compiled / "foldserve").is_dir():
        raise SystemExit(
            f"--against {checkout}: {compiled} holds no compiled foldserve; expected a checkout in which `make wheel` "
            "was run (its .venv may be a link to this one's): run it there"
        )
    return compiled


def of(checkout: Path, contender: Contender) -> Contender:
    """The same contender, of another checkout."""
    compiled = compiled_in(checkout)
    return replace(
        contender, key=f"{contender.key}-other", environ=lambda work, port: {"PYTHONPATH": str(compiled)}
    )


def measure_against(
    checkout: Path,
    contenders: Sequence[Contender],
    works: Sequence[Work],
    connections: Sequence[int],
    pairs: int,
    seconds: int,
) -> list[Row]:
    """Every row. Progress goes to stderr."""
    rows = []
    for work in works:
        for contender in contenders:
            with running(contender, work) as ours, running(of(checkout, contender), work) as theirs:
                for count in connections:
                    what = f"{work.key}, {count} connection{'s' * (count > 1)}, {contender.key}"
                    row = Row(what, [_pair(ours, theirs, count, seconds, i % 2 == 1) for i in range(pairs)])
                    rows.append(row)
                    tell(f"{row.what}: req/s {row.ratio('req_s'):.3f}, CPU {row.ratio('cpu_us'):.3f}")
    return rows


def _pair(ours: Running, theirs: Running, connections: int, seconds: int, theirs_first: bool) -> Pair:
    """Both halves; whose turn is first alternates, for who comes second may find the machine warm, or tired."""
    if theirs_first:
        there = half(theirs, connections, seconds)
        return half(ours, connections, seconds), there
    return half(ours, connections, seconds), half(theirs, connections, seconds)


def against_table(rows: Sequence[Row]) -> str:
    """As Markdown; a row that is worse than is allowed says so."""
    lines = [
        "| row | req/s here, there | CPU µs here, there | req/s | CPU | p50 | p99 | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        values = [f"{row.median('req_s', side):,.0f}" for side in (0, 1)]
        values += [f"{row.median('cpu_us', side):,.1f}" for side in (0, 1)]
        ratios = [f"{row.ratio(column):.3f}" for column in ("req_s", "cpu_us", "p50_ms", "p99_ms")]
        failed = sum(side.failed for pair in row.pairs for side in pair)
        words = ["**worse**"] * row.worse + [f"{failed} failed"] * bool(failed)
        cells = [row.what, ", ".join(values[:2]), ", ".join(values[2:]), *ratios, ", ".join(words)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
