"""The tables, in Markdown, from the records of one or several runs. Numbers in, text out."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from benchmarks.gpu.in_process import WAYS
from benchmarks.gpu.networks import PRECISIONS, SUBJECTS
from benchmarks.gpu.records import Cell, Failure, Killed, Machine, Record, Served
from benchmarks.gpu.thresholds import ceiling, checks
from benchmarks.serving.stats import checks_table, ratio

T = TypeVar("T", Cell, Served, Killed)
_UNFOLDED: Final = {"script": "script-unfolded", "plain-script": "plain-script-unfolded"}


def report(records: Sequence[Record]) -> str:
    """Everything that the records tell."""
    machines = [one for one in records if isinstance(one, Machine)]
    blocks = [machine(one) for one in machines] or ["Machine and versions were not recorded."]
    for title in dict.fromkeys(subject.title for subject in SUBJECTS.values()):
        keys = [key for key, subject in SUBJECTS.items() if subject.title == title]
        mine = _sorted([one for one in records if isinstance(one, Cell) and one.model in keys])
        if mine:
            blocks += [f"### {title}, without a server", _in_process_table(mine)]
            if any(one.way in _UNFOLDED for one in mine):
                blocks += [f"### {title}, TorchScript unfolded / folded", _fold_table(mine)]
        served = [one for one in records if isinstance(one, Served) and one.model in keys]
        if served:
            blocks += [f"### {title}, served", _served_table(served, records)]
    killed = [one for one in records if isinstance(one, Killed)]
    if killed:
        blocks += ["### A worker killed under load", _killed_table(killed)]
    # Without a record of the machine nothing says that there was no GPU.
    on_gpu = not machines or any(one.device != "none" for one in machines)
    if rows := checks(records, on_gpu):
        blocks += ["### Promised and measured", checks_table(rows)]
        if not on_gpu:
            blocks.append(
                "There was no GPU: nothing was promised of this, the rows only show that they are made."
            )
    blocks += _lists(records)
    return "\n\n".join(blocks)


def in_short(one: Record) -> str:
    """A record as a line of progress."""
    if isinstance(one, Machine):
        return machine(one)
    if isinstance(one, Cell):
        return f"{WAYS[one.way].title}, {one.batch} rows: {one.rows_s:,.0f} rows/s, p50 {one.p50_ms:.3g} ms"
    if isinstance(one, Served):
        return (
            f"{one.api_servers} API servers, {one.connections} connections: {one.rows_s:,.0f} rows/s, p50 "
            f"{one.p50_ms:.2f} ms, p99 {one.p99_ms:.1f} ms, 429 {one.refused:,}, failed {one.failed:,}"
        )
    if isinstance(one, Killed):
        lost = one.failed + one.unanswered
        return (
            f"{one.kills} kills, back within {one.back_s:.1f} s: {one.answered:,} answered, {lost:,} failed"
        )
    return f"failed: {one.what}: {one.why}" if isinstance(one, Failure) else one.task


def machine(one: Machine) -> str:
    """What it ran on, in words."""
    card = (
        "no GPU"
        if one.device == "none"
        else f"{one.device}, driver {one.driver}, CUDA {one.cuda}, cuDNN {one.cudnn}"
    )
    return (
        f"{one.date}, commit {one.commit}, foldserve {one.foldserve}: {card}; {one.cores} cores of {one.processor}; "
        f"onnxruntime {one.onnxruntime}, torch {one.torch}, Python {one.python}."
    )


def _in_process_table(cells: Sequence[Cell]) -> str:
    batches = sorted({one.batch for one in cells})
    shown = ", ".join(map(str, batches))
    heads = [
        "body",
        "precision",
        "way",
        f"rows/s at {shown} rows",
        "p50 ms",
        "p99 ms",
        "device %",
        "CPU s per 1,000 rows",
    ]
    figures: list[Callable[[Cell], str]] = [
        lambda one: f"{one.rows_s:,.0f}",
        lambda one: f"{one.p50_ms:.3g}",
        lambda one: f"{one.p99_ms:.3g}",
        lambda one: _percent(one.device),
        lambda one: f"{one.cpu_s:.3g}",
    ]
    lines = []
    for (model, precision, way), group in _grouped(cells):
        by_batch = {one.batch: one for one in group}
        words = [SUBJECTS[model].body, precision, WAYS[way].title]
        for figure in figures:
            words.append(_joined(figure(by_batch[batch]) if batch in by_batch else "-" for batch in batches))
        lines.append(words)
    return _table(heads, lines)


def _fold_table(cells: Sequence[Cell]) -> str:
    batches = sorted({one.batch for one in cells})
    times = {(one.model, one.precision, one.way, one.batch): one.p50_ms for one in cells}
    lines = []
    for model, precision in dict.fromkeys((one.model, one.precision) for one in cells):
        words = [SUBJECTS[model].body, precision]
        for folded, unfolded in _UNFOLDED.items():
            pairs = [
                (times.get((model, precision, unfolded, b)), times.get((model, precision, folded, b)))
                for b in batches
            ]
            words.append(
                _joined(f"{ratio(one, other):.2f}" if one and other else "-" for one, other in pairs)
            )
        if set("".join(words[2:])) - set("-, "):
            lines.append(words)
    shown = ", ".join(map(str, batches))
    return _table(["body", "precision", f"as served, at {shown} rows", f"not frozen, at {shown} rows"], lines)


def _served_table(served: Sequence[Served], records: Sequence[Record]) -> str:
    heads = [
        "body",
        "precision",
        "API servers",
        "connections",
        "rows/s",
        "of in-process",
        "p50, p99 ms",
        "device %",
    ]
    heads += ["CPU s per 1,000 rows", "cores: API server, worker, load", "429, failed"]
    lines = []
    for one in _sorted(served):
        alone = ceiling(records, (one.model, one.precision))
        lines.append(
            [
                SUBJECTS[one.model].body,
                one.precision,
                str(one.api_servers),
                str(one.connections),
                f"{one.rows_s:,.0f}",
                f"{one.rows_s / alone.rows_s:.2f}" if alone else "-",
                f"{one.p50_ms:.2f}, {one.p99_ms:.1f}",
                _percent(one.device),
                f"{one.cpu_s:.3g}",
                f"{one.api_cores:.2f}, {one.worker_cores:.2f}, {one.generator_cores:.2f}",
                f"{one.refused:,}, {one.failed:,}",
            ]
        )
    return _table(heads, lines)


def _killed_table(killed: Sequence[Killed]) -> str:
    heads = ["model", "precision", "API servers", "connections", "kills", "back within s", "answered", "429"]
    heads += ["failed", "not answered", "slowest answer ms"]
    return _table(
        heads,
        [
            [
                one.model,
                one.precision,
                str(one.api_servers),
                str(one.connections),
                str(one.kills),
                f"{one.back_s:.1f}",
                f"{one.answered:,}",
                f"{one.refused:,}",
                f"{one.failed:,}",
                f"{one.unanswered:,}",
                f"{one.slowest_ms:,.0f}",
            ]
            for one in _sorted(killed)
        ],
    )


def _lists(records: Sequence[Record]) -> Iterator[str]:
    """How the sessions ran, in their own words; and what is missing."""
    told: dict[str, list[str]] = {}
    for cell in (one for one in records if isinstance(one, Cell)):
        for note in cell.notes:
            told.setdefault(note, []).append(f"{cell.model} {cell.precision} ({WAYS[cell.way].title})")
    if told:
        yield "### How the sessions ran"
        yield "\n".join(f"- {note}: {', '.join(dict.fromkeys(who))}" for note, who in told.items())
    failures = [one for one in records if isinstance(one, Failure)]
    if failures:
        yield "### What could not be measured"
        yield "\n".join(f"- {one.what}: {' '.join(one.why.split())}" for one in failures)


def _sorted(records: Sequence[T]) -> list[T]:
    models, precisions, ways = list(SUBJECTS), list(PRECISIONS), list(WAYS)

    def place(one: Cell | Served | Killed) -> tuple[int, ...]:
        first = (models.index(one.model), precisions.index(one.precision))
        if isinstance(one, Cell):
            return (*first, ways.index(one.way), one.batch)
        return (*first, one.api_servers, one.connections)

    return sorted(records, key=place)


def _grouped(cells: Sequence[Cell]) -> list[tuple[tuple[str, str, str], list[Cell]]]:
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for one in cells:
        groups.setdefault((one.model, one.precision, one.way), []).append(one)
    return list(groups.items())


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{part:.0%}".rstrip("%")


def _joined(words: Iterator[str]) -> str:
    return ", ".join(words)


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(
        "|" + "|".join("---" if word == "---" else f" {word} " for word in row) + "|" for row in rows
    )
