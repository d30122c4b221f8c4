"""Values and tensor descriptions that do not fit their model, each in one way."""

from random import Random
from typing import Any, Final

import numpy as np

from tests.torture.protocols.seam import Asked

_NO_NUMBERS: Final[tuple[Any, ...]] = (True, None, "1", {}, [1])


def damaged_values(asked: Asked, chosen: Random) -> dict[str, Any]:
    """Nested lists by input, of at least two rows, that are ragged, hold what is no number, or disagree."""
    ways = ["ragged", "kind", "depth"]
    if asked.model == "pair":
        ways += ["lengths", "one of the lengths", "rows"]
    if asked.model == "linear":
        ways.append("lengths")
    values: dict[str, Any] = {name: array.tolist() for name, array in asked.inputs.items()}
    name = chosen.choice(list(values))
    way = chosen.choice(ways)
    if way == "ragged":
        values[name][1].append(1)
    elif way == "kind":
        values[name][-1][-1] = chosen.choice(_NO_NUMBERS)
    elif way == "depth":
        values[name] = values[name][0]
    elif way == "lengths":
        values[name] = [row[:-1] for row in values[name]]
    elif way == "one of the lengths":
        values[name] = [row[:1] for row in values[name]]  # which numpy would stretch
    elif way == "rows":
        values[name] = values[name][:1]
    return values


DATATYPES: Final[dict[np.dtype[Any], str]] = {
    np.dtype("f4"): "FP32",
    np.dtype("i8"): "INT64",
    np.dtype("u1"): "UINT8",
}
DTYPES: Final = {word: dtype for dtype, word in DATATYPES.items()}

Tensor = dict[str, Any]
"""An input as the Open Inference Protocol describes it: name, datatype, shape; and its array."""


def described(asked: Asked) -> list[Tensor]:
    """The inputs of a question."""
    return [
        {"name": name, "datatype": DATATYPES[array.dtype], "shape": list(array.shape), "array": array}
        for name, array in asked.inputs.items()
    ]


def damaged_tensors(asked: Asked, chosen: Random) -> list[Tensor]:
    """The same with one thing that does not fit the model or the data."""
    tensors = described(asked)
    tensor = chosen.choice(tensors)
    way = chosen.choice(("name", "datatype", "shape", "sign", "depth", "more", "less", "twice", "missing"))
    if way == "name":
        tensor["name"] = chosen.choice(("", "X", tensor["name"] + "\0", "é" * 300))
    elif way == "datatype":
        tensor["datatype"] = chosen.choice(("", "fp32", "BYTES", "FP16", "BOOL", "INT32"))
    elif way == "shape":
        tensor["shape"] = [tensor["shape"][0] + 1, *tensor["shape"][1:]]
    elif way == "sign":
        tensor["shape"] = [-tensor["shape"][0], *(-size for size in tensor["shape"][1:])]
    elif way == "depth":
        tensor["shape"] = [1, *tensor["shape"]]
    elif way == "more":
        tensor["array"] = np.append(tensor["array"].ravel(), tensor["array"].ravel()[:1])
    elif way == "less":
        tensor["array"] = tensor["array"].ravel()[:-1]
    elif way == "twice":
        tensors.append(tensor)
    else:
        tensors.remove(tensor)
    return tensors
