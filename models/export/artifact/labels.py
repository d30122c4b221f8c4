"""The names of a network's classes, which stand in the manifest beside its outputs."""

import json
from collections.abc import Sequence
from pathlib import Path

from foldserve.models.errors import BadLabels
from foldserve.service.artifact.manifest import TensorEntry


def read_labels(path: Path) -> tuple[str, ...]:
    """Read a file of labels: one a line in the order of the columns, or a JSON list, or JSON of {"0": name, ...}.

    Raises: BadLabels.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadLabels(f"the labels file {path} cannot be read: {error.strerror}; check --labels") from error
    except UnicodeDecodeError as error:
        raise BadLabels(f"the labels file {path} is no text in UTF-8; expected one label a line") from error
    if text.lstrip()[:1] in ("[", "{"):
        return _from_json(path, text)
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if not lines:
        raise BadLabels(f"the labels file {path} is empty; expected one label a line")
    if "" in lines:
        raise BadLabels(
            f"line {lines.index('') + 1} of the labels file {path} is empty; expected one label a line, in the order "
            "of the output's columns"
        )
    return tuple(lines)


def check_labels(labels: Sequence[str], outputs: Sequence[TensorEntry]) -> None:
    """Check that exactly one output has as many columns as there are labels. outputs: as in the manifest.

    Columns are dim 1 of a (rows, columns) output, or of one that goes on behind them (a class for each pixel).
    Raises: BadLabels.
    """
    wrong = [label for label in labels if not isinstance(label, str) or not label.strip()]
    if isinstance(labels, str) or not labels or wrong:
        raise BadLabels(f"labels are {wrong or labels!r}; expected a name for each column of the output")
    fitting = [spec for spec in outputs if len(spec.shape) > 1 and spec.shape[1] == len(labels)]
    if len(fitting) != 1:
        shapes = ", ".join(f"{spec.name} {'x'.join(map(str, spec.shape))}" for spec in outputs)
        several = " alone" if fitting else ""
        raise BadLabels(
            f"there are {len(labels)} labels, and the outputs are {shapes}; expected as many labels as one output"
            f"{several} has columns (its second size)"
        )


def _from_json(path: Path, text: str) -> tuple[str, ...]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise BadLabels(f"the labels file {path} begins like JSON and is none: {error}") from error
    if isinstance(content, dict):
        numbers = [str(number) for number in range(len(content))]
        if set(content) != set(numbers):
            raise BadLabels(
                f"the labels file {path} has other keys than 0 to {len(content) - 1}; expected one for each column"
            )
        content = [content[number] for number in numbers]
    # ImageNet's index is {"0": ["n01440764", "tench"], ...}
    content = [one[-1] if isinstance(one, list) and one else one for one in content]
    if not all(isinstance(one, str) for one in content):
        raise BadLabels(f"the labels file {path} holds other things than names; expected texts")
    return tuple(content)
