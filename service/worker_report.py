"""What a worker tells about its model once: loaded, or why not. One small JSON file per worker.

Written by the worker into the server's runtime folder, read by the supervisor (may this start go on?) and by
the API servers (/info). Whether a model is ready *now* is a cell of the shared metrics; the text is here.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class WorkerReport:
    """problem: why the model cannot be served; "" when it can. load_s: how long loading took."""

    load_s: float
    problem: str = ""


def write_report(folder: Path, writer: str, report: WorkerReport) -> None:
    """Put a worker's report in place, whole or not at all."""
    aside = folder / f".{writer}.json"
    aside.write_text(json.dumps(asdict(report)), encoding="utf-8")
    os.replace(aside, _path(folder, writer))


def read_report(folder: Path, writer: str) -> WorkerReport | None:
    """A worker's report; None when it has not written one."""
    try:
        return WorkerReport(**json.loads(_path(folder, writer).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def remove_report(folder: Path, writer: str) -> None:
    """Forget a worker's report, before the worker is started again."""
    _path(folder, writer).unlink(missing_ok=True)


def _path(folder: Path, writer: str) -> Path:
    return folder / f"{writer}.json"
