"""What was promised of the GPU path against what a run measured. A promise whose figures are missing is left out.

Promised are ResNet-50 in fp16 from uint8 bodies for the rows, EfficientNet-Lite0 for the graphs, and everything
that is measured for the rest. A run without a GPU promises nothing: the same rows then only show that the code works.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from benchmarks.gpu.records import Cell, Killed, Record, Served
from benchmarks.serving.stats import Check, ratio

MOST_MORE_MS: Final = 0.4
ROWS_OF: Final = ("resnet50_uint8", "fp16")
GRAPHS_OF: Final = "efficientnet_lite0"
CEILING: Final = ("ort", "ort-2", "ort-plain", "ort-plain-2")

Subject = tuple[str, str]
"""Model and precision."""


def checks(records: Sequence[Record], on_gpu: bool) -> list[Check]:
    """The rows of "Promised and measured"."""
    subjects = dict.fromkeys(
        (one.model, one.precision) for one in records if isinstance(one, Cell | Served | Killed)
    )
    found: list[Check] = []
    for subject in subjects:
        if subject == ROWS_OF or not on_gpu:
            found += _rows(records, subject)
    for subject in subjects:
        found += _latency(records, subject)
    for subject in subjects:
        if subject[0].startswith(GRAPHS_OF) or not on_gpu:
            found += _graphs(records, subject)
    for subject in subjects:
        found += _kills(records, subject)
    return found


def ceiling(records: Sequence[Record], subject: Subject) -> Cell | None:
    """The most rows/s that ONNX Runtime reaches without a server, at whatever batch size."""
    cells = [one for way in CEILING for one in _cells(records, subject, way)]
    return max(cells, key=lambda one: one.rows_s, default=None)


def _rows(records: Sequence[Record], subject: Subject) -> Iterator[Check]:
    served, alone = _served(records, subject), ceiling(records, subject)
    if served and alone:
        best = max(served, key=lambda one: one.rows_s)
        servers = f"{best.api_servers} API server{'s' * (best.api_servers > 1)}"
        what = f"{_named(subject)}: served rows/s ({servers}) / in-process (batch {alone.batch})"
        yield Check(what, ratio(best.rows_s, alone.rows_s), 0.9, least=True)


def _latency(records: Sequence[Record], subject: Subject) -> Iterator[Check]:
    served = [one for one in _served(records, subject) if one.connections == 1]
    alone = [one for one in _cells(records, subject, "ort") if one.batch == 1]
    if served and alone:
        quickest = min(served, key=lambda one: one.p50_ms)
        what = f"{_named(subject)}, 1 row: p50 over HTTP - in-process run, ms"
        yield Check(what, quickest.p50_ms - alone[0].p50_ms, MOST_MORE_MS, least=False)


def _graphs(records: Sequence[Record], subject: Subject) -> Iterator[Check]:
    first, second = (
        [one for one in _cells(records, subject, way) if one.batch == 1] for way in ("ort", "ort-plain")
    )
    if first and second:
        what = f"{_named(subject)}, 1 row: run with CUDA graphs / without"
        yield Check(what, ratio(first[0].p50_ms, second[0].p50_ms), 0.8, least=False)


def _kills(records: Sequence[Record], subject: Subject) -> Iterator[Check]:
    for one in records:
        if isinstance(one, Killed) and (one.model, one.precision) == subject:
            lost = one.failed + one.unanswered + one.refused
            yield Check(
                f"{_named(subject)}: requests failed over {one.kills} kill -9 of the worker", lost, 0, False
            )


def _cells(records: Sequence[Record], subject: Subject, way: str) -> list[Cell]:
    return [
        one
        for one in records
        if isinstance(one, Cell) and (one.model, one.precision) == subject and one.way == way
    ]


def _served(records: Sequence[Record], subject: Subject) -> list[Served]:
    return [one for one in records if isinstance(one, Served) and (one.model, one.precision) == subject]


def _named(subject: Subject) -> str:
    return " ".join(subject)
