"""The elements of one tensor: a flat or nested list of JSON values, or packed little-endian bytes.

Pure functions between values and arrays. As in json_codec, no value is converted unasked: true is not a number,
1.5 not an integer, 300 not a UINT8.
"""

import math
from itertools import chain
from typing import Any, Final

import numpy as np

from foldserve.service.artifact.signature import TensorSpec, shown_shape
from foldserve.service.codecs.json_codec import convert
from foldserve.service.codecs.json_diagnostics import first_bad_leaf, kind_of, leaf_fault
from foldserve.service.codecs.raw_codec import aligned, check_booleans
from foldserve.service.errors import BadTensor

BINARY_ONLY: Final = frozenset({"FP16", "BF16"})
"""Datatypes that the protocol has no JSON for."""
_LENGTH_BYTES: Final = 4
"""Of the length before each element of a BYTES tensor."""
_WANTED: Final = {
    "b": frozenset({bool}),
    "f": frozenset({int, float}),
    "i": frozenset({int}),
    "u": frozenset({int}),
}


def from_json(data: Any, spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
    """The array that `data` holds, flat or nested, in row-major order. Raises: BadTensor."""
    if spec.datatype in BINARY_ONLY:
        raise BadTensor(
            f"input {spec.name!r} is {spec.datatype}, which JSON cannot carry in this protocol; send it as binary "
            'data, with "binary_data_size" in its parameters'
        )
    values = _flat(data, spec)
    count = math.prod(shape)
    if len(values) != count:
        raise BadTensor(
            f'input {spec.name!r} has {len(values)} values in "data"; its shape {shown_shape(shape)} takes {count}: '
            "correct one of them"
        )
    if set(map(type, values)) <= _WANTED[spec.dtype.kind]:
        try:
            array = convert(values, spec.dtype)
        except (ValueError, TypeError, ArithmeticError):
            array = None
        if array is not None:
            return array.reshape(shape)
    bad = first_bad_leaf(values, spec)
    fault = "has values" if bad is None else leaf_fault(values[bad], spec, f"position {bad}")
    raise BadTensor(f"input {spec.name!r} {fault}")


def from_binary(data: memoryview, spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
    """The array whose bytes these are; a view of them where they lie at a multiple of their size. Raises: BadTensor."""
    check_bytes(data.nbytes, spec, shape)
    array = aligned(np.frombuffer(data, dtype=spec.dtype).reshape(shape))
    check_booleans(array, spec)
    return array


def check_bytes(nbytes: int, spec: TensorSpec, shape: tuple[int, ...]) -> None:
    """Raise BadTensor unless an array of this shape has so many bytes."""
    expected = math.prod(shape) * spec.dtype.itemsize
    if nbytes != expected:
        raise BadTensor(
            f"input {spec.name!r} has {nbytes} bytes of data; its shape {shown_shape(shape)} of {spec.datatype} "
            f"takes {expected}: correct one of them"
        )


def strings_to_binary(strings: list[str]) -> bytes:
    """The elements of a BYTES tensor: each with its length before it, four bytes, little-endian."""
    encoded = [string.encode() for string in strings]
    return b"".join(b"%b%b" % (len(one).to_bytes(_LENGTH_BYTES, "little"), one) for one in encoded)


def _flat(data: Any, spec: TensorSpec) -> list[Any]:
    """The leaves of lists in lists, in their order."""
    if not isinstance(data, list):
        raise BadTensor(f'input {spec.name!r} has {kind_of(data)} as "data"; expected a list of its values')
    values: list[Any] = data
    while list in (kinds := set(map(type, values))):
        if len(kinds) > 1:
            raise BadTensor(
                f'input {spec.name!r} has lists beside values in "data"; expected a flat list, or lists nested to the '
                "shape"
            )
        values = list(chain.from_iterable(values))
    return values
