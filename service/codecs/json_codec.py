"""JSON bodies of /predict: {"inputs": [[...]]} or {"inputs": {"x": [[...]]}} to arrays, arrays to the answer.

Strict: a value that numpy would quietly turn into another (true into 1.0, "1" into 1, null into NaN, 1.5
into 1, 300 into 44) is refused, and the refusal says where it stands. numpy's conversion does not tell such
values apart, so the text is screened first: all arrays lie between its first "[" and its last "]", and
without a quote, an "l" (false, null) or an "r" (true) there, every leaf is a number. That costs three memchr
scans; only a text that fails the screen pays for a look at each leaf's type, and only a body that is refused
anyway for the walk that finds the place (json_diagnostics).
"""

import json
from collections.abc import Mapping
from itertools import chain
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import orjson

from foldserve.service.artifact.signature import Signature, TensorSpec, check_shape
from foldserve.service.codecs.json_diagnostics import find_fault, kind_of, why_not_json
from foldserve.service.errors import BadJson, BadTensor, ModelFailed

_EXPECTED: Final = 'expected {"inputs": [[...]]} or {"inputs": {"name": [[...]]}}'
_AS_BYTES: Final = (
    "To get the numbers as they are, send 'Accept: application/x-npy' or 'Accept: application/octet-stream'"
)
_TENSOR_AS_BYTES: Final = "send the tensor as application/octet-stream or application/x-npy"
_NUMBERS: Final = frozenset((int, float))
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
_BOOLEANS: Final = frozenset((bool,))


def decode(body: bytes | bytearray | memoryview, signature: Signature) -> dict[str, np.ndarray]:
    """Return input name -> C-contiguous array of the input's datatype, rank and fixed dims.

    Raises:
        BadJson: not JSON (says where), an unknown, missing or repeated key, no object.
        BadTensor: unknown or missing inputs, ragged lists, a wrong rank or dim, no rows, values of another
            kind or out of the datatype's range; all with the place.
    """
    text = body if isinstance(body, bytes) else bytes(body)
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadJson(why_not_json(text, error, _EXPECTED, _TENSOR_AS_BYTES)) from None
    given = _inputs_of(document)
    names = 1
    if isinstance(given, dict):
        names += len(given)
        signature.check_names(given)
        values = given
    elif isinstance(given, list) or not signature.inputs[0].shape:
        values = {_only_input(signature).name: given}
    else:
        raise BadJson(f'"inputs" is {kind_of(given)}; {_EXPECTED}')
    numbers_only = _screen(text, names)
    return {spec.name: _to_array(values[spec.name], spec, numbers_only) for spec in signature.inputs}


def to_array(values: Any, spec: TensorSpec) -> np.ndarray:
    """The same of one input's values that were parsed already: one, or nested lists. Raises: BadTensor."""
    return _to_array(values, spec, numbers_only=False)


def encode(
    model: str, version: str, outputs: Mapping[str, np.ndarray], others: Mapping[str, Any] = _NOTHING
) -> bytes:
    """Return {"model", "version", "outputs": {name: nested lists}}, and the other keys, as bytes.

    Raises: ModelFailed for NaN or an infinity: JSON has no word for them, and null in their place would be a
        number that went missing without a sound.
    """
    return orjson.dumps(
        {
            "model": model,
            "version": version,
            "outputs": {name: encodable(name, array, _AS_BYTES) for name, array in outputs.items()},
            **others,
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def encodable(name: str, array: np.ndarray, otherwise: str) -> np.ndarray | np.generic:
    """The array as orjson writes it. otherwise: how the numbers can be had as they are. Raises: ModelFailed."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        first = int(np.isfinite(array).argmin())
        place = tuple(int(index) for index in np.unravel_index(first, array.shape))
        raise ModelFailed(
            f"output {name!r} has {array[place]} at {list(place)}, which JSON cannot carry; expected "
            f"finite numbers: the input may be outside what the network was trained on. {otherwise}"
        )
    native = np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
    return native if native.ndim else native[()]  # orjson has no word for an array without dims


def _inputs_of(document: Any) -> Any:
    if not isinstance(document, dict):
        raise BadJson(f"the body is {kind_of(document)}; {_EXPECTED}")
    if "inputs" not in document:
        keys = ", ".join(repr(key[:50]) for key in list(document)[:10]) or "none"
        raise BadJson(f'key "inputs" is missing (keys found: {keys}); {_EXPECTED}')
    if len(document) > 1:
        # Refused, not passed over: a misspelled or unsupported wish would otherwise be lost without a word.
        others = ", ".join(repr(key[:50]) for key in list(document)[:10] if key != "inputs")
        raise BadJson(f'unknown key {others} beside "inputs"; {_EXPECTED}: leave the others out')
    return document["inputs"]


def _only_input(signature: Signature) -> TensorSpec:
    if len(signature.inputs) > 1:
        form = ", ".join(f'"{spec.name}": [...]' for spec in signature.inputs)
        raise BadTensor(
            f"the model has {len(signature.inputs)} inputs and a bare list does not say which it is for; "
            f'expected {{"inputs": {{{form}}}}}'
        )
    return signature.inputs[0]


def _screen(text: bytes, names: int) -> bool:
    """Whether every leaf of every list is sure to be a number. Raises BadJson for a repeated key.

    names: keys that the parsed document has, so without repetitions.
    """
    start, end = text.find(b"["), text.rfind(b"]")
    if text.find(b'"', start, end) < 0:
        quotes = text.count(b'"', 0, start) + text.count(b'"', end)
    else:
        quotes = text.count(b'"')
    if quotes != 2 * names:
        # Strings among the values, an escape in a key, or a key twice: of these only the last is settled
        # here.
        _refuse_repeated_keys(text)
        return False
    return text.find(b"l", start, end) < 0 and text.find(b"r", start, end) < 0


def _refuse_repeated_keys(text: bytes) -> None:
    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise BadJson(
                    f"key {key[:100]!r} appears twice in one object; expected once: send one of them"
                )
            seen[key] = value
        return seen

    try:
        # Integers as floats: int() refuses those of more than 4300 digits with an error of its own.
        json.loads(text, object_pairs_hook=check, parse_int=float)
    except RecursionError:
        raise BadJson(f"the body is nested too deeply; {_EXPECTED}") from None


def _to_array(value: Any, spec: TensorSpec, numbers_only: bool) -> np.ndarray:
    shape = _shape_by_first_elements(value, spec)
    check_shape(spec, shape)
    kind = spec.dtype.kind
    wanted = _BOOLEANS if kind == "b" else _NUMBERS
    array: np.ndarray | None = None
    # Never a string into numpy: the longest one times the number of elements is the memory that it would
    # take. The screen has seen what lies in lists.
    if (numbers_only and kind != "b" and shape) or _leaf_types(value, len(shape)) <= wanted:
        try:
            array = convert(value, spec.dtype)
        except (ValueError, TypeError, ArithmeticError):  # ragged lists; an object; a number out of range
            array = None
    if array is None:
        raise BadTensor(find_fault(value, spec, shape))
    return array


def _shape_by_first_elements(value: Any, spec: TensorSpec) -> tuple[int, ...]:
    """The shape that value has if it is not ragged, at most one dim longer than spec's."""
    shape: list[int] = []
    while isinstance(value, list) and len(shape) <= len(spec.shape):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    if spec.shape and not shape:
        raise BadTensor(
            f"input {spec.name!r} is {kind_of(value)}; expected lists nested {len(spec.shape)} deep"
        )
    if shape and shape[0] == 0:
        what = "rows" if spec.counts_rows else "elements"
        raise BadTensor(f"input {spec.name!r} has no {what}; expected at least one")
    return tuple(shape)


def _leaf_types(value: Any, rank: int) -> set[type]:
    """The Python types of all leaves; an empty list's type (not a number's) when the lists are ragged."""
    leaves = value if rank else [value]
    for _ in range(rank - 1):
        leaves = chain.from_iterable(leaves)
    try:
        return set(map(type, leaves))
    except TypeError:  # a number where a list should be
        return {list}


def convert(values: Any, dtype: np.dtype[np.generic]) -> np.ndarray | None:
    """The array of values whose Python types fit the datatype; None where one is out of its range.

    Raises: ValueError, TypeError or ArithmeticError, likewise, and for ragged lists.
    """
    return _CONVERT[dtype.kind](values, dtype)


def _booleans(value: Any, dtype: np.dtype[np.generic]) -> np.ndarray:
    return np.array(value, dtype=dtype)


def _floats(value: Any, dtype: np.dtype[np.generic]) -> np.ndarray:
    if dtype.itemsize == 8:
        return np.array(value, dtype=dtype)
    # A number beyond the type's range would become infinity. This costs less than looking for infinities.
    with np.errstate(over="raise"):
        return np.array(value, dtype=dtype)


def _integers(value: Any, dtype: np.dtype[np.generic]) -> np.ndarray | None:
    array = np.array(value)
    if array.dtype == dtype:
        return array
    if array.dtype.kind in "iu":
        limits = np.iinfo(dtype)  # type: ignore[type-var]  # called for integer types only
        if array.min() < limits.min or array.max() > limits.max:
            return None
        return array.astype(dtype)
    # Floats, or integers on both sides of 2**63, which numpy would make floats.
    if _leaf_types(value, array.ndim) != {int}:
        return None
    return np.array(value, dtype=dtype)


_CONVERT: Final = {"b": _booleans, "f": _floats, "i": _integers, "u": _integers}
