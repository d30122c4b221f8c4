"""Finds what is wrong with JSON values that were refused, and says it with the place.

It runs only for requests that are refused anyway, so the way of good requests needs no bookkeeping. It goes through
the lists a depth at a time and asks each depth as a whole, in loops of the interpreter's own: a client chooses how many
elements there are, and a step of Python for each would take a hundred times as long as reading them.
"""

import re
from itertools import chain
from typing import Any, Final

import numpy as np
import orjson

from foldserve.service.artifact.pictures import format_of
from foldserve.service.artifact.signature import TensorSpec

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
_INTEGER: Final = "an integer, written without a decimal point or exponent"
_WANTED: Final = {"b": "true or false", "f": "a number", "i": _INTEGER, "u": _INTEGER}
_GOOD_LEAVES: Final[dict[str, frozenset[type]]] = {
    "b": frozenset((bool,)),
    "f": frozenset((int, float)),
    "i": frozenset((int,)),
    "u": frozenset((int,)),
}


def kind_of(value: Any) -> str:
    """The JSON word for value's kind, with its article."""
    return _KINDS[type(value)]


def why_not_json(text: bytes, error: orjson.JSONDecodeError, expected: str, as_bytes: str) -> str:
    """What to tell a client whose body orjson could not parse.

    expected: a body of the protocol, as in "expected {...}". as_bytes: how it takes what JSON has no word for.
    """
    if not text.strip():
        return f"the body is empty; {expected}"
    picture = format_of(text)
    if picture:
        return (
            f"the body is a {picture} picture and not JSON; {expected}. Pictures go to /predict/<model> as "
            f"Content-Type: image/{picture.lower()}, where the model takes them (`image` in /info)"
        )
    where = f"line {error.lineno}, column {error.colno} (character {error.pos})"
    for start in (max(0, error.pos - 1), error.pos):
        word = _NOT_A_NUMBER_WORD.match(text, start)
        if word:
            return (
                f"{word[0].decode()} at {where} is not JSON: JSON has no word for numbers that are not "
                f"finite; expected finite numbers, or {as_bytes}"
            )
    return f"the body is not JSON: {error.msg} at {where}; expected one JSON document in UTF-8"


def find_fault(value: Any, spec: TensorSpec, shape: tuple[int, ...]) -> str:
    """What is wrong with value, a list that cannot become spec's tensor.

    shape: what the first elements of value promise; the first element that breaks the promise is named.
    """
    fault = _fault_of_lists(value, spec, shape) or f"cannot be read as {spec.datatype}"
    return f"input {spec.name!r} {fault}"


def _fault_of_lists(value: Any, spec: TensorSpec, shape: tuple[int, ...]) -> str | None:
    """The first fault of the least deep lists that have one; of their leaves when there is none in the lists."""
    level: list[Any] = [value]
    for depth, size in enumerate(shape):
        if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
            index = next(
                index for index, found in enumerate(level) if type(found) is not list or len(found) != size
            )
            return _not_that_long(level[index], shape[: depth + 1], _place(index, shape[:depth]))
        level = list(chain.from_iterable(level))
    bad = first_bad_leaf(level, spec)
    return None if bad is None else leaf_fault(level[bad], spec, _written(_place(bad, shape)))


def _not_that_long(found: Any, shape: tuple[int, ...], place: tuple[int, ...]) -> str:
    if not isinstance(found, list):
        return f"is ragged: {_shown(found)} at {_written(place)}; expected a list of {shape[-1]} elements"
    first = _written((0,) * len(place))
    return (
        f"is ragged: the list at {_written(place)} has {len(found)} elements and the one at {first} has "
        f"{shape[-1]}; expected the same number in both"
    )


def first_bad_leaf(leaves: list[Any], spec: TensorSpec) -> int | None:
    """Where the first leaf stands that is of a wrong kind or out of range."""
    kind = spec.dtype.kind
    good = _GOOD_LEAVES[kind]
    kinds = list(map(type, leaves))
    end = len(kinds)
    if not good.issuperset(kinds):
        end = next(index for index, found in enumerate(kinds) if found not in good)
    in_range = leaves[:end]
    if kind in "iu" and in_range:
        limits = np.iinfo(spec.dtype)  # type: ignore[type-var]  # kind "i" or "u": an integer's
        if min(in_range) < limits.min or max(in_range) > limits.max:
            return next(index for index, leaf in enumerate(in_range) if not limits.min <= leaf <= limits.max)
    elif kind == "f" and in_range:
        with np.errstate(over="ignore"):
            beyond = ~np.isfinite(np.array(in_range, dtype=spec.dtype))
        if beyond.any():
            return int(beyond.argmax())
    return None if end == len(kinds) else end


def _place(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The place of the index-th element of lists of this shape, counted through."""
    place = []
    for size in reversed(shape):
        index, at = divmod(index, size)
        place.append(at)
    return tuple(reversed(place))


def leaf_fault(value: Any, spec: TensorSpec, where: str) -> str:
    """What is wrong with a leaf of a wrong kind or out of range, which stands there."""
    kind = spec.dtype.kind
    if isinstance(value, list):
        return (
            f"has a list at {where}, {len(spec.shape) + 1} deep; expected lists nested {len(spec.shape)} deep"
        )
    if type(value) in _GOOD_LEAVES[kind]:
        if kind == "f":
            limit = float(np.finfo(spec.dtype).max)  # type: ignore[type-var]  # kind "f": a float's
            return _out_of_range(value, spec, where, f"-{limit:g} to {limit:g}")
        return _out_of_range(value, spec, where)
    if kind in "iu" and isinstance(value, float) and abs(value) >= 2.0**63:
        return _out_of_range(value, spec, where)
    return f"has {_shown(value)} at {where}; expected {_WANTED[kind]} ({spec.datatype})"


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
