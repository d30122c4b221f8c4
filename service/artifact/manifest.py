"""manifest.json: what the export says of an artifact, read with a schema. The export's side:
models/export/artifact/manifest.py.

Everything that is used or shown later is looked at here, once: its presence, its type, its range.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from foldserve.service.artifact.pictures import PictureInput
from foldserve.service.artifact.signature import Signature
from foldserve.service.artifact.stated_signature import parse_signature, with_sizes
from foldserve.service.documents import BadDocument, parse_json, read_regular, shown
from foldserve.service.errors import ConfigError

MANIFEST: Final = "manifest.json"
FORMAT_VERSION: Final = 1
TOGETHER: Final = "together"
LARGEST_BATCH: Final = 65_536
"""Rows that a batch may have at most: all of them are run once before a model is ready."""
_MOST_BYTES: Final = 16 * 2**20
_MOST_PROBLEMS: Final = 10

Problems = Iterator[str]
Check = Callable[[Any, str], Problems]
"""Looks at a value; yields what is wrong with it, beginning with the place that it is given."""


def read_manifest(folder: Path, where: str) -> dict[str, Any]:
    """Read an artifact's manifest.json and check that it is one of ours.

    Args:
        where: the artifact, as errors name it: "model/version".
    Raises: ConfigError with every problem found.
    """
    name = f"{MANIFEST} of {where}"
    try:
        manifest = parse_json(read_regular(folder / MANIFEST, _MOST_BYTES))
    except FileNotFoundError:
        raise ConfigError(f"{name} is missing: export the model again") from None
    except BadDocument as error:
        raise ConfigError(f"{name} {error}; export the model again") from error
    found = manifest.get("format_version") if isinstance(manifest, dict) else type(manifest).__name__
    if isinstance(found, bool) or found != FORMAT_VERSION:
        raise ConfigError(
            f"{name} has format_version {shown(found)}; this foldserve reads {FORMAT_VERSION}: export the model "
            "again, or use the foldserve that wrote it"
        )
    missing = [key for key in _REQUIRED if key not in manifest]
    if missing:
        raise ConfigError(f"{name} lacks {', '.join(missing)}: export the model again")
    problems = [
        problem for key, check in _KEYS.items() if key in manifest for problem in check(manifest[key], key)
    ]
    if not problems:
        problems += _batch_problems(manifest)
        try:
            signature = with_sizes(
                parse_signature(manifest, counts_rows=not runs_alone(manifest)), manifest.get("dims", {})
            )
        except ValueError as error:
            problems.append(f"a bad input or output: {error}")
        else:
            problems += _picture_problems(manifest, signature)
    if problems:
        more = [f"and {len(problems) - _MOST_PROBLEMS} more"] * (len(problems) > _MOST_PROBLEMS)
        raise ConfigError(
            *(f"{name} has {problem}: export the model again" for problem in problems[:_MOST_PROBLEMS] + more)
        )
    return dict(manifest)


def _batch_problems(manifest: Mapping[str, Any]) -> Problems:
    largest = manifest.get("max_batch_size")
    if largest == 0 and not runs_alone(manifest):
        yield (
            f"max_batch_size 0; expected a whole number from 1 to {LARGEST_BATCH}, for its rows are not said to belong "
            f"{TOGETHER}"
        )
    elif largest and runs_alone(manifest):
        yield f"max_batch_size {largest}, and rows {TOGETHER}, of which no batch is made; expected 0"


def runs_alone(manifest: Mapping[str, Any]) -> bool:
    """Whether each request is run by itself, in the model's own shapes: its rows belong together."""
    return manifest.get("rows") == TOGETHER


# Checks ------------------------------------------------------------------------------------------------


def _text(value: Any, where: str) -> Problems:
    if not isinstance(value, str):
        yield f"{where} {shown(value)}; expected a text"


def _scalar(value: Any, where: str) -> Problems:
    if value is not None and not isinstance(value, bool | int | float | str):
        yield f"{where} {shown(value)}; expected a number, a text, true, false or null"


def _whole(low: int, high: int = 2**63 - 1) -> Check:
    def check(value: Any, where: str) -> Problems:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            expected = f"from {low} to {high}" if high < 2**63 - 1 else f"of at least {low}"
            yield f"{where} {shown(value)}; expected a whole number {expected}"

    return check


def _largest_batch(value: Any, where: str) -> Problems:
    """0 is for rows that belong together: _batch_problems."""
    if isinstance(value, bool) or value != 0:
        yield from _whole(1, LARGEST_BATCH)(value, where)


def _one_of(*words: str) -> Check:
    def check(value: Any, where: str) -> Problems:
        if value not in words:
            yield f"{where} {shown(value)}; expected one of {', '.join(words)}"

    return check


def _error(value: Any, where: str) -> Problems:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        yield f"{where} {shown(value)}; expected a number of at least 0"


def _or_none(check: Check) -> Check:
    return lambda value, where: iter(()) if value is None else check(value, where)


def _list(of: Check) -> Check:
    def check(value: Any, where: str) -> Problems:
        if not isinstance(value, list):
            yield f"{where} {shown(value)}; expected a list"
            return
        for place, one in enumerate(value):
            yield from of(one, f"{where}[{place}]")

    return check


def _mapping(of: Check) -> Check:
    def check(value: Any, where: str) -> Problems:
        if not isinstance(value, dict):
            yield f"{where} {shown(value)}; expected a mapping"
            return
        for name, one in value.items():
            yield from of(one, f"{where}.{name[:100]}")

    return check


def _record(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    def check(value: Any, where: str) -> Problems:
        if not isinstance(value, dict):
            yield f"{where} {shown(value)}; expected {', '.join(required)}"
            return
        for name, of in {**required, **(optional or {})}.items():
            if name in value:
                yield from of(value[name], f"{where}.{name}")
            elif name in required:
                yield f"no {where}.{name}; expected {', '.join(required)}"

    return check


def _sha256(value: Any, where: str) -> Problems:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        yield f"{where} {shown(value)}; expected 64 hexadecimal digits"


def _files(value: Any, where: str) -> Problems:
    yield from _mapping(_record({"sha256": _sha256, "size": _whole(0)}))(value, where)
    for name in value if isinstance(value, dict) else ():
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            yield f"{where} with the name {shown(name)}; expected names of files beside the manifest"


def _image(value: Any, where: str) -> Problems:
    if not isinstance(value, dict):
        yield f"{where} {shown(value)}; expected how a picture becomes the input"
        return
    try:
        PictureInput.from_manifest(value)
    except ValueError as error:
        yield f"{where}: {error}"


def _picture_problems(manifest: Mapping[str, Any], signature: Signature) -> Problems:
    """What is wrong with the input that `image` names."""
    if "image" not in manifest:
        return
    name = manifest["image"]["input"]
    found = next((spec for spec in signature.inputs if spec.name == name), None)
    if found is None:
        names = ", ".join(shown(spec.name) for spec in signature.inputs[:_MOST_PROBLEMS])
        yield f"image.input {shown(name)}; expected the name of an input: {names}"
    elif len(found.shape) != _PICTURE_DIMS:
        yield f"image.input {shown(name)} of shape {list(found.shape)}; expected an input of {_PICTURE_DIMS} dims"


_PICTURE_DIMS: Final = 4
"""Rows, height, width and colours, in the order of the layout."""
_LARGEST_PLUS: Final = 2**40
_DIM = _record(
    {"min": _whole(1), "max": _or_none(_whole(1)), "multiple_of": _whole(1)},
    {"equals": _record({"dim": _text, "times": _whole(1), "plus": _whole(-_LARGEST_PLUS, _LARGEST_PLUS)})},
)
_PLACES = _list(_record({"where": _text, "reason": _text}))
_FIGURES: Final[Mapping[str, Check]] = {"max_rel": _error, "tolerance": _error}
_PARITY = _record(
    _FIGURES,
    {
        "max_abs": _error,
        "rows_tried": _list(_whole(0)),
        "outputs": _mapping(_record(_FIGURES, {"max_abs": _error})),
    },
)
_REQUIRED: Final = ("name", "version", "inputs", "outputs", "files", "parity")
_KEYS: Final[Mapping[str, Check]] = {
    "name": _text,
    "version": _text,
    "created": _text,
    "source": _text,
    "dims": _mapping(_DIM),
    "narrowed": _list(_record({"dim": _text, "reason": _text})),
    "opset": _or_none(_whole(1)),
    "not_written": _list(_record({"file": _text, "reason": _text})),
    "precision": _text,
    "kept_fp32": _PLACES,
    "converted_weights": _list(_text),
    "fixed_inputs": _list(_record({"name": _text, "value": _scalar})),
    "left_out": _list(_record({"name": _text, "reason": _text}, {"value": _scalar})),
    "warnings": _list(_text),
    "tool_versions": _mapping(_text),
    "rows": _one_of("independent", TOGETHER),
    "max_batch_size": _largest_batch,
    "memory": _record({"weights_bytes": _whole(0), "row_bytes": _whole(0)}),
    "files": _files,
    "parameter_count": _or_none(_whole(0)),
    "fold": _record({"found": _whole(0), "folded": _whole(0), "left": _PLACES}),
    "parity": _mapping(_PARITY),
    "image": _image,
    "labels": _list(_text),
}
"""Inputs and outputs are stated_signature.py's."""
