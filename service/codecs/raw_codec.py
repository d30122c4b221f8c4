"""Raw bodies (application/octet-stream): the little-endian, row-major numbers of one tensor and nothing else.

The datatype comes from the model's signature and the number of rows from the size, exactly: bytes left over
are refused. A model with a free dim besides the rows (any, where it counts none) needs the header X-Tensor-Shape.
Decoding copies nothing: the array is a view of the body (unless the body starts at an odd address).
"""

import math
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote

import numpy as np

from foldserve.service.artifact.signature import ANY, Signature, TensorSpec, check_shape
from foldserve.service.errors import BadTensor, UnsupportedMediaType

# Never two runs of spaces with nothing certain between them: such a pattern tries every way to share them out, which
# takes the square of their number.
_SHAPE: Final = re.compile(r"\[?\s*(\d{1,18}(?:\s*,\s*\d{1,18}){0,31})\s*(?:,\s*)?\]?", re.ASCII)
_NO_DIMS: Final = "[]"
_SHAPE_CHARS: Final = 1000
"""Room for 32 sizes of 18 digits with commas and spaces between."""


@dataclass(frozen=True)
class TensorHeaders:
    """The X-Tensor-* headers of a request; None where the header was not sent. All are optional promises."""

    name: str | None = None
    datatype: str | None = None
    shape: str | None = None


def decode(
    body: bytes | bytearray | memoryview, signature: Signature, headers: TensorHeaders | None = None
) -> dict[str, np.ndarray]:
    """Return the one input's name -> a view of body with the input's datatype and shape.

    Raises:
        UnsupportedMediaType: the model has several inputs.
        BadTensor: the size fits no whole number of rows or not the shape in the headers; a header
            contradicts the signature; a BOOL byte is neither 0 nor 1.
    """
    spec = only_input(signature, "application/octet-stream")
    size = len(body) if not isinstance(body, memoryview) else body.nbytes
    shape_header = headers.shape if headers else None
    if headers is not None:
        check_headers(headers, spec)
    shape = (
        _shape_from_size(size, spec) if shape_header is None else _shape_from_header(shape_header, size, spec)
    )
    array = aligned(np.frombuffer(body, dtype=spec.dtype).reshape(shape))
    check_booleans(array, spec)
    return {spec.name: array}


def encode(array: np.ndarray) -> bytes:
    """Return the array's elements, little-endian and row-major."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def elements(array: np.ndarray) -> memoryview:
    """The same, where they lie, if they lie so."""
    ordered = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    return ordered.reshape(-1).view(np.uint8).data


def tensor_headers(name: str, datatype: str, shape: tuple[int, ...]) -> tuple[tuple[str, str], ...]:
    """The X-Tensor-* headers that say what a raw or npy answer holds.

    A name that is not printable ASCII is percent-encoded.
    """
    if not (name.isascii() and name.isprintable()):
        name = quote(name)
    return (
        ("X-Tensor-Name", name),
        ("X-Tensor-Datatype", datatype),
        ("X-Tensor-Shape", ",".join(map(str, shape)) or _NO_DIMS),
    )


def only_input(signature: Signature, media_type: str) -> TensorSpec:
    """The model's one input.

    Raises UnsupportedMediaType when there are several, which such a body cannot hold.
    """
    if len(signature.inputs) > 1:
        names = ", ".join(spec.name for spec in signature.inputs)
        raise UnsupportedMediaType(
            f"the model has {len(signature.inputs)} inputs ({names}) and an {media_type} body holds one "
            "tensor; send application/json with all of them"
        )
    return signature.inputs[0]


def check_headers(headers: TensorHeaders, spec: TensorSpec) -> None:
    """Raise BadTensor when X-Tensor-Name or X-Tensor-Datatype says something else than the signature."""
    if headers.name is not None and not _names(headers.name, spec.name):
        raise BadTensor(
            f"X-Tensor-Name is {headers.name[:100]!r}; expected {spec.name!r}: correct or drop it"
        )
    if headers.datatype is not None and headers.datatype != spec.datatype:
        raise BadTensor(
            f"X-Tensor-Datatype is {headers.datatype[:100]!r} but input {spec.name!r} is {spec.datatype}; "
            f"convert the tensor to {spec.datatype}"
        )


def _names(sent: str, name: str) -> bool:
    """Whether a header names the tensor: as it is, percent-encoded as answers have it, or in UTF-8, whose bytes come
    here as Latin-1."""
    try:
        return name in (sent, unquote(sent)) or sent.encode("latin-1").decode() == name
    except UnicodeError:
        return False


def aligned(array: np.ndarray) -> np.ndarray:
    """The array, or a copy when its elements do not lie at multiples of their size, as backends expect."""
    return array if array.flags.aligned else array.copy()


def check_booleans(array: np.ndarray, spec: TensorSpec) -> None:
    """Raise BadTensor when a BOOL array made from bytes holds another byte than 0 or 1."""
    if spec.datatype == "BOOL" and array.size and array.view(np.uint8).max() > 1:
        raise BadTensor(
            f"input {spec.name!r} is BOOL and has a byte above 1; expected only the bytes 0 and 1"
        )


def parse_shape(text: str) -> tuple[int, ...]:
    """Read X-Tensor-Shape: "2,3,32,32" (spaces and one pair of brackets allowed); "[]" for no dims.

    Raises: BadTensor.
    """
    if text.strip() == _NO_DIMS:
        return ()
    match = _SHAPE.fullmatch(text.strip()) if len(text) <= _SHAPE_CHARS else None
    if match is None:
        raise BadTensor(
            f"X-Tensor-Shape is {text[:100]!r}; expected sizes with commas between (at most 32), as in 2,3,32,32"
        )
    return tuple(int(size) for size in match[1].split(","))


def _shape_from_header(header: str, size: int, spec: TensorSpec) -> tuple[int, ...]:
    shape = parse_shape(header)
    check_shape(spec, shape)
    expected = math.prod(shape) * spec.dtype.itemsize
    if expected != size:
        raise BadTensor(
            f"the body has {size} bytes, but X-Tensor-Shape {list(shape)} of {spec.datatype} takes "
            f"{expected}; correct the header or the body"
        )
    return shape


def _shape_from_size(size: int, spec: TensorSpec) -> tuple[int, ...]:
    row_bytes = math.prod(spec.row_shape) * spec.dtype.itemsize
    if ANY in spec.row_shape:
        raise BadTensor(
            f"input {spec.name!r} has shape {list(spec.shape)} (-1 is any size), which the size of the body "
            "alone does not determine; send the header X-Tensor-Shape, such as "
            f"'X-Tensor-Shape: {','.join(map(str, spec.example_shape(2)))}'"
        )
    if not spec.counts_rows:
        if size != row_bytes:
            raise BadTensor(
                f"the body has {size} bytes; expected {row_bytes}, which {spec} takes: send one request's tensor"
            )
        return spec.shape
    rows, left_over = divmod(size, row_bytes)
    if left_over:
        raise BadTensor(
            f"the body has {size} bytes: {rows} rows of {row_bytes} and {left_over} bytes left over; "
            f"expected a multiple of {row_bytes} (a row of input {spec.name!r} is {list(spec.row_shape)} "
            f"{spec.datatype})"
        )
    if rows == 0:
        raise BadTensor(f"the body is empty; expected at least one row of {row_bytes} bytes ({spec})")
    return (rows, *spec.row_shape)
