"""NumPy files as bodies (application/x-npy): one array with its datatype and shape.

The header is parsed here with one regular expression and not by numpy, which evaluates it as Python: nothing
in a body is executed, pickled objects are never read, and the sizes it claims are checked against the bytes
that are there before anything is allocated. Format: numpy.lib.format, versions 1.0 to 3.0.
"""

import functools
import math
import re
from typing import Final

import numpy as np

from foldserve.service.artifact.datatypes import DATATYPES, numpy_dtype
from foldserve.service.artifact.signature import Signature, check_array, check_shape
from foldserve.service.codecs.raw_codec import (
    TensorHeaders,
    aligned,
    check_booleans,
    check_headers,
    only_input,
    parse_shape,
)
from foldserve.service.errors import BadTensor

_MAGIC: Final = b"\x93NUMPY"
_VERSIONS: Final = (b"\x01\x00", b"\x02\x00", b"\x03\x00")
_ALIGNMENT: Final = 64
# numpy's own bound on headers that it reads from files it does not trust.
_MAX_HEADER_BYTES: Final = 10_000
# Never two runs of spaces with nothing certain between them: see raw_codec's pattern.
_SIZES: Final = rb"(?:(?:0|[1-9]\d{0,17})L?\s*,\s*)*(?:(?:0|[1-9]\d{0,17})L?\s*)?"
_FIELD: Final = (
    rb"""(?:(?:'descr'|"descr")\s*:\s*(?:'(?P<descr>[^'"\\]{1,16})'|"(?P<descr2>[^'"\\]{1,16})")"""
    rb"""|(?:'fortran_order'|"fortran_order")\s*:\s*(?P<fortran>True|False)"""
    rb"""|(?:'shape'|"shape")\s*:\s*\(\s*(?P<shape>""" + _SIZES + rb""")\))"""
)
_ONE_FIELD: Final = re.compile(_FIELD)
_HEADER: Final = re.compile(
    rb"\s*\{\s*"
    + rb"\s*,\s*".join(re.sub(rb"\?P<\w+>", rb"?:", _FIELD) for _ in range(3))
    + rb"\s*(?:,\s*)?\}\s*"
)
# What a file may say of its type, in every byte order; never handed to numpy, which has errors of its own for others.
_BY_DESCR: Final = {
    mark + dtype.str[1:]: np.dtype((mark or "=") + dtype.str[1:])
    for dtype in map(numpy_dtype, DATATYPES)
    for mark in ("<", ">", "=", "|", "")
}
_SHOWN: Final = 60


def decode(
    body: bytes | bytearray | memoryview, signature: Signature, headers: TensorHeaders | None = None
) -> dict[str, np.ndarray]:
    """Return the one input's name -> a C-contiguous little-endian array; a view of body where it already is
    that.

    Big-endian and Fortran-ordered files are converted.

    Raises:
        UnsupportedMediaType: the model has several inputs.
        BadTensor: not a .npy file, a type that is not a number, a size other than the header says, or another
            datatype, rank or dims than the signature's or the X-Tensor-* headers'.
    """
    spec = only_input(signature, "application/x-npy")
    if headers is not None:
        check_headers(headers, spec)
    view = memoryview(body).cast("B")
    dtype, shape, fortran, start = _parse_header(view)
    if len(shape) != len(spec.shape):
        # First of all: what follows multiplies the sizes and writes them into texts.
        check_shape(spec, shape)
    if headers is not None and headers.shape is not None and parse_shape(headers.shape) != shape:
        raise BadTensor(
            f"X-Tensor-Shape is {headers.shape[:100]!r} but the npy body has {list(shape)}; "
            "correct or drop the header"
        )
    expected, got = math.prod(shape) * dtype.itemsize, len(view) - start
    if expected != got:
        raise BadTensor(
            f"the npy header says {dtype} {list(shape)}, which is {expected} bytes, but {got} bytes follow "
            "it; send the whole file as it is (curl: --data-binary @file.npy)"
        )
    # Before the reshape: numpy has errors of its own for a shape such as (0, 10**18, 10**18).
    check_shape(spec, shape)
    array = np.frombuffer(view, dtype=dtype, offset=start).reshape(shape, order="F" if fortran else "C")
    array = aligned(np.asarray(array, dtype=dtype.newbyteorder("<"), order="C"))
    check_array(spec, array)
    check_booleans(array, spec)
    return {spec.name: array}


def encode(array: np.ndarray) -> bytes:
    """Return the array as a .npy file, version 1.0, little-endian and C-ordered."""
    array = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    return b"".join((header_of(array), array.data))


def header_of(array: np.ndarray) -> bytes:
    """What stands before the array's bytes in a .npy file, version 1.0. The array: little-endian and C-ordered."""
    shape = ", ".join(map(str, array.shape)) + ("," if array.ndim == 1 else "")
    text = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': ({shape}), }}"
    prefix = len(_MAGIC) + 4
    padding = -(prefix + len(text) + 1) % _ALIGNMENT
    header = text.encode("ascii") + b" " * padding + b"\n"
    return b"".join((_MAGIC, _VERSIONS[0], len(header).to_bytes(2, "little"), header))


def _parse_header(view: memoryview) -> tuple[np.dtype[np.generic], tuple[int, ...], bool, int]:
    """Return dtype, shape, whether Fortran-ordered, and where the numbers start."""
    version = bytes(view[6:8])
    length_bytes = 2 if version == _VERSIONS[0] else 4
    start = 8 + length_bytes
    if bytes(view[:6]) != _MAGIC or version not in _VERSIONS or len(view) < start:
        raise BadTensor(
            f"the body is not a .npy file (it begins with {bytes(view[:8])!r}); expected what numpy.save "
            "writes (curl: --data-binary @file.npy)"
        )
    length = int.from_bytes(view[8:start], "little")
    if length > _MAX_HEADER_BYTES or start + length > len(view):
        raise BadTensor(
            f"the npy header claims {length} bytes; expected at most {_MAX_HEADER_BYTES}, all of them in "
            "the body: send the whole file"
        )
    header = bytes(view[start : start + length])
    return (*_read_fields(header), start + length)


# Clients send the same few headers again and again. Bounded: 256 headers of at most _MAX_HEADER_BYTES.
@functools.lru_cache(maxsize=256)
def _read_fields(header: bytes) -> tuple[np.dtype[np.generic], tuple[int, ...], bool]:
    """Return dtype, shape and whether Fortran-ordered."""
    fields = {
        name.removesuffix("2"): value
        for match in _ONE_FIELD.finditer(header)
        for name, value in match.groupdict().items()
        if value is not None
    }
    # (10) is no tuple to Python, and numpy never writes it.
    one_size = fields.get("shape", b"").strip().removesuffix(b"L").isdigit()
    if one_size or _HEADER.fullmatch(header) is None or fields.keys() != {"descr", "fortran", "shape"}:
        raise BadTensor(
            f"the npy header {header[:_SHOWN]!r} is not that of an array of numbers; objects, records and "
            "strings are not read: save an array of one numeric type"
        )
    descr = fields["descr"].decode("latin-1")
    dtype = _BY_DESCR.get(descr)
    if dtype is None:
        raise BadTensor(f"the npy file holds {descr!r}; expected numbers: convert with array.astype(...)")
    shape = tuple(int(size) for size in re.findall(r"\d+", fields["shape"].decode("ascii")))
    return dtype, shape, fields["fortran"] == b"True"
