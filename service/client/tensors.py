"""What a caller gives, as tensors that are sent: little-endian, C-contiguous, of a datatype that is served."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np

from foldserve.service.artifact.datatypes import DATATYPES, is_served, numpy_dtype, word_for
from foldserve.service.client.errors import BadInput
from foldserve.service.errors import ConfigError

Plain = bool | int | float | Sequence[Any]
"""Numbers and lists of them, which have no datatype of their own: they take the model's."""
T = TypeVar("T")
Values = np.ndarray | Plain
Inputs = Values | Mapping[str, Values]

_TAKES: Final = {"b": "b", "f": "fiu", "i": "iu", "u": "iu"}
"""Kinds of numbers that a datatype takes from a list: none is turned into another, as in JSON."""


class Tensor(NamedTuple):
    """An input as it is sent. array: little-endian, C-contiguous."""

    name: str
    datatype: str
    array: np.ndarray


def named_inputs(inputs: T | None, named: Mapping[str, Values]) -> T | Mapping[str, Values]:
    """What a call of a model was given. Raises: TypeError."""
    if (inputs is None) == (not named):
        raise TypeError(
            "expected one array, or every input by its name; give client[model](x) or (a=..., b=...)"
        )
    return named if inputs is None else inputs


def needs_signature(inputs: Inputs) -> bool:
    """Whether only the model says what these inputs are."""
    return not isinstance(inputs, Mapping) or not all(_has_datatype(value) for value in inputs.values())


def tensors(inputs: Inputs, datatypes: Mapping[str, str], model: str) -> list[Tensor]:
    """The inputs of a request.

    Args:
        datatypes: of the model's inputs, by name; only looked at for what needs_signature().
    Raises: BadInput.
    """
    if not isinstance(inputs, Mapping):
        if len(datatypes) != 1:
            raise BadInput(f"model {model!r} has the inputs {', '.join(datatypes)}; give each by its name")
        inputs = {next(iter(datatypes)): inputs}
    return [_tensor(name, value, datatypes, model) for name, value in inputs.items()]


def _has_datatype(value: object) -> bool:
    return hasattr(value, "dtype")  # numpy's arrays and scalars, and whatever numpy makes an array of


def _tensor(name: str, value: Values, datatypes: Mapping[str, str], model: str) -> Tensor:
    if not _has_datatype(value):
        if name not in datatypes:
            raise BadInput(f"model {model!r} has no input {name!r}; expected {', '.join(datatypes)}")
        return Tensor(name, datatypes[name], _of_plain(name, value, datatypes[name]))
    array = np.asarray(value)
    if not is_served(array.dtype):
        raise BadInput(
            f"input {name!r} is of numpy's type {array.dtype}; expected numbers ({', '.join(DATATYPES)}): convert it "
            "with .astype(...)"
        )
    little = array.dtype.newbyteorder("<")
    return Tensor(name, word_for(little), np.asarray(array, dtype=little, order="C"))


def _of_plain(name: str, value: object, datatype: str) -> np.ndarray:
    """Numbers without a datatype, in the model's. Raises: BadInput."""
    try:
        dtype = numpy_dtype(datatype)
        kind = np.asarray(value).dtype.kind
        if kind in _TAKES[dtype.kind] or not np.size(np.asarray(value)):
            return np.array(value, dtype=dtype, order="C")
        why = f"it has {np.asarray(value).dtype} in it"
    except (
        ValueError,
        TypeError,
        ArithmeticError,
        ConfigError,
    ) as error:  # ragged lists, numbers out of range
        why = str(error)
    raise BadInput(f"input {name!r} is {datatype}, and what was given is not: {why}")
