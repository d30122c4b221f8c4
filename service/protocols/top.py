"""?top=N of /predict: the N largest scores of each row with their labels, beside the outputs in a JSON answer.

The scores are those of one output of rows and columns: the one that has a column for each label, where the model has
labels, else the only one of that form, whose columns are called by their numbers.
"""

import heapq
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from foldserve.service.artifact.signature import ANY, TensorSpec
from foldserve.service.codecs.protocol import Served
from foldserve.service.errors import BadRequest

_COUNT: Final = re.compile(r"[1-9]\d{0,3}", re.ASCII)
_MOST: Final = 4096
"""Labels with scores in an answer: so many are written in some milliseconds."""


def read_top(value: str) -> int:
    """How many are asked for. Raises: BadRequest."""
    if not _COUNT.fullmatch(value) or int(value) > _MOST:
        raise BadRequest(
            f"top is {value[:50]!r}; expected how many of the largest scores are wanted, 1 to {_MOST}, as in ?top=5"
        )
    return int(value)


def scores_output(served: Served, names: Iterable[str]) -> str:
    """The output, of these, that has the scores. Raises: BadRequest where it is none or not one."""
    found = scores_outputs(served, names)
    if len(found) == 1:
        return found[0]
    columns = f"{len(served.labels)} columns, one for each label" if served.labels else "scores in columns"
    if found:
        have, mend = f"{len(found)} outputs ({', '.join(found)}) have", f"choose one with &output={found[0]}"
    else:
        have, mend = "no output that is asked for has", "leave top out, or ask for the output that has them"
    raise BadRequest(f"top asks for the largest scores, and {have} rows with {columns}; {mend}")


def scores_outputs(served: Served, names: Iterable[str]) -> list[str]:
    """The outputs, of these, that look like the scores."""
    outputs, labels = served.signature.outputs_by_name, len(served.labels)
    return [name for name in names if _has_scores(outputs[name], labels)]


def check_count(rows: int, top: int) -> None:
    """Raise BadRequest where an answer would have too many."""
    if rows * top > _MOST:
        raise BadRequest(
            f"top asks for {top} labels of each of {rows} rows; expected at most {_MOST} in an answer: send fewer "
            "rows, or ask for fewer"
        )


def top_of(served: Served, outputs: Mapping[str, np.ndarray], top: int) -> Any:
    """{"label", "score"} of the largest scores of a row, the largest first; of several rows, a list for each.

    Raises: BadRequest where they are too many.
    """
    scores = outputs[scores_output(served, outputs)]
    check_count(len(scores), min(top, scores.shape[1]))
    rows = [_row(served.labels, row, top) for row in scores]
    return rows[0] if len(rows) == 1 else rows


def _row(labels: tuple[str, ...], row: np.ndarray, top: int) -> list[dict[str, Any]]:
    values = row.tolist()
    best = heapq.nlargest(top, range(len(values)), key=values.__getitem__)
    # The number itself, not Python's float of it: it is written as in the outputs.
    native = row.astype(row.dtype.newbyteorder("="), copy=False)
    return [{"label": labels[at] if at < len(labels) else str(at), "score": native[at]} for at in best]


def _has_scores(spec: TensorSpec, labels: int) -> bool:
    if len(spec.shape) != 2 or spec.dtype.kind not in "fiu":
        return False
    return not labels or spec.shape[1] in (ANY, labels)
