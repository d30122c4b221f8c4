"""Finds what is wrong with a JSON body that json_codec refused, and says it with the place.

Slow on purpose (one Python step per element up to the fault): it runs only for requests that are refused
anyway, so the way of good requests needs no bookkeeping.
"""

import math
import re
from typing import Any, Final

import numpy as np
import orjson

from service.signature import TensorSpec

_NOT_A_NUMBER_WORD: Final = re.compile(rb"[-+]?(nan|infinity|inf)\b", re.IGNORECASE)
_KINDS: Final[dict[type, str]] = {
    list: "a list",
    dict: "an object",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def kind_of(value: Any) -> str:
    """The JSON word for value's kind, with its article."""
    return _KINDS[type(value)]


def why_not_json(text: bytes, error: orjson.JSONDecodeError) -> str:
    """What to tell a client whose body orjson could not parse."""
    if not text.strip():
        return 'the body is empty; expected {"inputs": [[...]]}'
    where = f"line {error.lineno}, column {error.colno} (character {error.pos})"
    for start in (max(0, error.pos - 1), error.pos):
        word = _NOT_A_NUMBER_WORD.match(text, start)
        if word:
            return (
                f"{word[0].decode()} at {where} is not JSON: JSON has no word for numbers that are not "
                "finite; expected finite numbers, or send the tensor as application/octet-stream or "
                "application/x-npy"
            )
    return f"the body is not JSON: {error.msg} at {where}; expected one JSON document in UTF-8"


def find_fault(value: Any, spec: TensorSpec, shape: tuple[int, ...]) -> str:
    """What is wrong with value, a list that cannot become spec's tensor.

    shape: what the first elements of value promise; the first element that breaks the promise is named.
    """
    fault = _fault_in(value, spec, shape, ())
    if fault is None:
        fault = f"cannot be read as {spec.datatype}"
    return f"input {spec.name!r} {fault}"


def _fault_in(value: Any, spec: TensorSpec, shape: tuple[int, ...], place: tuple[int, ...]) -> str | None:
    depth = len(place)
    if depth == len(shape):
        return _leaf_fault(value, spec, _written(place))
    if not isinstance(value, list):
        return f"is ragged: {_shown(value)} at {_written(place)}; expected a list of {shape[depth]} elements"
    if len(value) != shape[depth]:
        first = _written((0,) * depth)
        return (
            f"is ragged: the list at {_written(place)} has {len(value)} elements and the one at {first} has "
            f"{shape[depth]}; expected the same number in both"
        )
    for index, element in enumerate(value):
        fault = _fault_in(element, spec, shape, (*place, index))
        if fault is not None:
            return fault
    return None


def _leaf_fault(value: Any, spec: TensorSpec, where: str) -> str | None:
    kind = spec.dtype.kind
    if isinstance(value, list):
        return (
            f"has a list at {where}, {len(spec.shape) + 1} deep; expected lists nested {len(spec.shape)} deep"
        )
    if kind == "b":
        wanted = "true or false"
        good = isinstance(value, bool)
    elif kind == "f":
        wanted = "a number"
        good = isinstance(value, int | float) and not isinstance(value, bool)
    else:
        wanted = "an integer, written without a decimal point or exponent"
        good = isinstance(value, int) and not isinstance(value, bool)
    if not good:
        if kind in "iu" and isinstance(value, float) and abs(value) >= 2.0**63:
            return _out_of_range(value, spec, where)
        return f"has {_shown(value)} at {where}; expected {wanted} ({spec.datatype})"
    if kind == "f":
        limit = float(np.finfo(spec.dtype).max)  # type: ignore[type-var]  # kind "f": a float's
        with np.errstate(over="ignore"):
            fits = math.isfinite(np.array(value, dtype=spec.dtype).item())
        return None if fits else _out_of_range(value, spec, where, f"-{limit:g} to {limit:g}")
    if kind in "iu":
        limits = np.iinfo(spec.dtype)  # type: ignore[type-var]  # kind "i" or "u": an integer's
        return None if limits.min <= value <= limits.max else _out_of_range(value, spec, where)
    return None


def _out_of_range(value: float, spec: TensorSpec, where: str, span: str = "") -> str:
    if not span:
        limits = np.iinfo(spec.dtype)  # type: ignore[type-var]  # only asked for integers
        span = f"{limits.min} to {limits.max}"
    return f"has {value} at {where}, out of the range of {spec.datatype}; expected {span}"


def _written(place: tuple[int, ...]) -> str:
    return "".join(f"[{index}]" for index in place) or "the top"


def _shown(value: Any) -> str:
    """The value's kind and, when it is short, the value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the string {value[:40]!r}" + ("..." if len(value) > 40 else "")
    if isinstance(value, int | float):
        return f"the number {value}"
    return kind_of(value)
