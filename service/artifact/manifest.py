"""manifest.json: what the export says of an artifact. One schema, which the export writes by and the server reads by.

The types say what a value may be (json_schema.py), and Manifest's fields are the keys in their order. Everything that
is used or shown later is looked at once, in read_manifest: its presence, its type, its range.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

from foldserve.service.artifact.json_schema import (
    ALWAYS,
    OneOf,
    Problems,
    Whole,
    from_json,
    problems_of,
    to_json,
)
from foldserve.service.artifact.pictures import PictureInput
from foldserve.service.artifact.signature import Signature
from foldserve.service.artifact.stated_signature import parse_signature, with_sizes
from foldserve.service.documents import BadDocument, parse_json, read_regular, shown
from foldserve.service.errors import ConfigError

MANIFEST: Final = "manifest.json"
FORMAT_VERSION: Final = 1
INDEPENDENT: Final = "independent"
TOGETHER: Final = "together"
LARGEST_BATCH: Final = 65_536
"""Rows that a batch may have at most: all of them are run once before a model is ready."""
_MOST_BYTES: Final = 16 * 2**20
_MOST_PROBLEMS: Final = 10
_LARGEST_PLUS: Final = 2**40
_PICTURE_DIMS: Final = 4
"""Rows, height, width and colours, in the order of the layout."""


def check_scalar(value: Any, where: str) -> Problems:
    """A number, a text, true, false or null."""
    if value is not None and not isinstance(value, bool | int | float | str):
        yield f"{where} {shown(value)}; expected a number, a text, true, false or null"


def check_error(value: Any, where: str) -> Problems:
    """How far something is off, or may be."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        yield f"{where} {shown(value)}; expected a number of at least 0"


def check_sha256(value: Any, where: str) -> Problems:
    """The digest of a file."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        yield f"{where} {shown(value)}; expected 64 hexadecimal digits"


def check_largest_batch(value: Any, where: str) -> Problems:
    """0 is for rows that belong together: _batch_problems."""
    if isinstance(value, bool) or value != 0:
        yield from Whole(1, LARGEST_BATCH)(value, where)


def check_file_names(value: Any, where: str) -> Problems:
    """The files beside the manifest, by name."""
    yield from problems_of(Mapping[str, FileEntry], value, where)
    for name in value if isinstance(value, dict) else ():
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            yield f"{where} with the name {shown(name)}; expected names of files beside the manifest"


def check_tensors(value: Any, where: str) -> Problems:
    """Inputs or outputs, but for what parse_signature looks at, in a manifest as in a config.yaml."""
    for place, entry in enumerate(value if isinstance(value, list) else ()):
        if isinstance(entry, dict) and "rows_dim" in entry:
            yield from Whole(0)(entry["rows_dim"], f"{where}[{place}].rows_dim")


def check_image(value: Any, where: str) -> Problems:
    """How a picture becomes the input."""
    if not isinstance(value, dict):
        yield f"{where} {shown(value)}; expected how a picture becomes the input"
        return
    try:
        PictureInput.from_manifest(value)
    except ValueError as error:
        yield f"{where}: {error}"


Count = Annotated[int, Whole(0)]
Size = Annotated[int, Whole(1)]
Figure = Annotated[float, check_error]
Scalar = Annotated[bool | int | float | str | None, check_scalar]


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """An input or output. shape: -1 for what varies. dims: the names of those, where others vary than the rows.

    rows_dim: where the network itself has the rows that the files have in dim 0.
    """

    name: str
    datatype: str
    shape: tuple[int | str, ...]
    dims: tuple[str | None, ...] | None = None
    rows_dim: int = 0


@dataclass(frozen=True, kw_only=True)
class FixedInput:
    """A Python value among the network's arguments, which the files hold."""

    name: str
    value: Scalar


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A part of what forward returns that no file answers. value: that of a constant number."""

    name: str
    reason: str
    value: Scalar = None


@dataclass(frozen=True, kw_only=True)
class DimEquals:
    """A size is `times` that of another dim, plus `plus`."""

    dim: str
    times: Size
    plus: Annotated[int, Whole(-_LARGEST_PLUS, _LARGEST_PLUS)]


@dataclass(frozen=True, kw_only=True)
class DimEntry:
    """The sizes of a named dim. max: None for any."""

    min: Size
    max: Size | None
    multiple_of: Size
    equals: DimEquals | None = None


@dataclass(frozen=True, kw_only=True)
class Narrowed:
    """A dim of which the files take fewer sizes than the network."""

    dim: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class NotWritten:
    """A file that is not there."""

    file: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Place:
    """A place in the network, and why it is as it is."""

    where: str
    reason: str


@dataclass(frozen=True)
class Memory:
    """Of all weights, and of one row on its way through."""

    weights_bytes: Count
    row_bytes: Count


@dataclass(frozen=True)
class FileEntry:
    """A file as it was exported. size: in bytes."""

    sha256: Annotated[str, check_sha256]
    size: Count


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Batch norms: how many were found, how many are gone, and which are left."""

    found: Count
    folded: Count
    left: tuple[Place, ...]


@dataclass(frozen=True, kw_only=True)
class OutputParity:
    """How far an output was off. note: what the figures do not say."""

    max_abs: Figure | None = None
    max_rel: Figure
    tolerance: Figure
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class FormParity:
    """How far one form of the network was off: the largest of all outputs, over the numbers of rows that were tried."""

    max_abs: Figure | None = None
    max_rel: Figure
    rows_tried: tuple[Count, ...] = ()
    tolerance: Figure
    outputs: Mapping[str, OutputParity] | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of manifest.json; None, where that is no value of its own, for what it does not say.

    parity: "torchscript" and "onnx" for each file that is there, "fold_float64" and "pictures".
    image: how a picture becomes the input (pictures.py), and under `inside` what the file itself does.
    labels: names of an output's columns. warnings: what the parity does not show.
    """

    format_version: Annotated[int, Whole(FORMAT_VERSION, FORMAT_VERSION), ALWAYS] = FORMAT_VERSION
    name: str
    version: str
    created: str | None = None
    source: str | None = None
    inputs: Annotated[tuple[TensorEntry, ...], check_tensors]
    outputs: Annotated[tuple[TensorEntry, ...], check_tensors]
    fixed_inputs: tuple[FixedInput, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    dims: Annotated[Mapping[str, DimEntry], ALWAYS] = field(default_factory=dict)
    narrowed: Annotated[tuple[Narrowed, ...], ALWAYS] = ()
    opset: Annotated[Size | None, ALWAYS] = None
    not_written: tuple[NotWritten, ...] = ()
    precision: str | None = None
    kept_fp32: Annotated[tuple[Place, ...], ALWAYS] = ()
    converted_weights: tuple[str, ...] = ()
    tool_versions: Annotated[Mapping[str, str], ALWAYS] = field(default_factory=dict)
    rows: Annotated[str, OneOf((INDEPENDENT, TOGETHER)), ALWAYS] = INDEPENDENT
    max_batch_size: Annotated[int, check_largest_batch] | None = None
    memory: Memory | None = None
    files: Annotated[Mapping[str, FileEntry], check_file_names]
    parameter_count: Annotated[Count | None, ALWAYS] = None
    fold: Fold | None = None
    parity: Mapping[str, FormParity]
    warnings: tuple[str, ...] = ()
    image: Annotated[Mapping[str, Any], check_image] | None = None
    labels: tuple[str, ...] = ()

    @property
    def runs_alone(self) -> bool:
        """Whether each request is run by itself, in the model's own shapes: its rows belong together."""
        return self.rows == TOGETHER

    def signature(self) -> Signature:
        """The inputs and outputs, with the sizes of the dims."""
        return _signature(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """What stands in the file."""
        content: dict[str, Any] = to_json(self)
        return content


def read_manifest(folder: Path, where: str) -> Manifest:
    """Read an artifact's manifest.json and check that it is one of ours.

    Args:
        where: the artifact, as errors name it: "model/version".
    Raises: ConfigError with every problem found.
    """
    name = f"{MANIFEST} of {where}"
    try:
        content = parse_json(read_regular(folder / MANIFEST, _MOST_BYTES))
    except FileNotFoundError:
        raise ConfigError(f"{name} is missing: export the model again") from None
    except BadDocument as error:
        raise ConfigError(f"{name} {error}; export the model again") from error
    found = content.get("format_version") if isinstance(content, dict) else type(content).__name__
    if isinstance(found, bool) or found != FORMAT_VERSION:
        raise ConfigError(
            f"{name} has format_version {shown(found)}; this foldserve reads {FORMAT_VERSION}: export the model "
            "again, or use the foldserve that wrote it"
        )
    missing = [key for key in _REQUIRED if key not in content]
    if missing:
        raise ConfigError(f"{name} lacks {', '.join(missing)}: export the model again")
    problems = [*problems_of(Manifest, content, "")] or [*_problems_between(content)]
    if problems:
        more = [f"and {len(problems) - _MOST_PROBLEMS} more"] * (len(problems) > _MOST_PROBLEMS)
        raise ConfigError(
            *(f"{name} has {problem}: export the model again" for problem in problems[:_MOST_PROBLEMS] + more)
        )
    return from_json(Manifest, content)


_REQUIRED: Final = ("name", "version", "inputs", "outputs", "files", "parity")


def _problems_between(content: Mapping[str, Any]) -> Problems:
    """What is wrong with values that are right by themselves."""
    yield from _batch_problems(content)
    try:
        signature = _signature(content)
    except ValueError as error:
        yield f"a bad input or output: {error}"
    else:
        yield from _picture_problems(content, signature)


def _signature(content: Mapping[str, Any]) -> Signature:
    """Raises: ValueError."""
    counts_rows = content.get("rows") != TOGETHER
    return with_sizes(parse_signature(content, counts_rows=counts_rows), content.get("dims", {}))


def _batch_problems(content: Mapping[str, Any]) -> Problems:
    largest, runs_alone = content.get("max_batch_size"), content.get("rows") == TOGETHER
    if largest == 0 and not runs_alone:
        yield (
            f"max_batch_size 0; expected a whole number from 1 to {LARGEST_BATCH}, for its rows are not said to belong "
            f"{TOGETHER}"
        )
    elif largest and runs_alone:
        yield f"max_batch_size {largest}, and rows {TOGETHER}, of which no batch is made; expected 0"


def _picture_problems(content: Mapping[str, Any], signature: Signature) -> Problems:
    """What is wrong with the input that `image` names."""
    if "image" not in content:
        return
    name = content["image"]["input"]
    found = next((spec for spec in signature.inputs if spec.name == name), None)
    if found is None:
        names = ", ".join(shown(spec.name) for spec in signature.inputs[:_MOST_PROBLEMS])
        yield f"image.input {shown(name)}; expected the name of an input: {names}"
    elif len(found.shape) != _PICTURE_DIMS:
        yield f"image.input {shown(name)} of shape {list(found.shape)}; expected an input of {_PICTURE_DIMS} dims"
