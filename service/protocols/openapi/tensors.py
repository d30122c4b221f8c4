"""A model's tensors as JSON Schema, and an example of its inputs.

A size that a schema cannot tell (dims that are equal, or one twice the other) is in the texts of errors alone.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from foldserve.service.artifact.dims import DimRange
from foldserve.service.artifact.signature import ANY, Signature, TensorSpec
from foldserve.service.errors import BadTensor

Schema = dict[str, Any]

ANY_TENSOR: Final[Schema] = {
    "type": ["array", "number", "boolean"],
    "description": "Nested lists; of a tensor without dims its one value",
    "items": {},
}
_ANY_SIZE: Final = DimRange()
_EXAMPLE_DIM: Final = 8
"""Of dims of any size."""
_EXAMPLE_NUMBERS: Final = 64
"""Of more numbers there is no example: nobody reads it, and the document would be large."""


def nested(spec: TensorSpec, *, rows: bool = True, output: bool = False) -> Schema:
    """The values of a tensor as nested lists.

    Args:
        rows: whether it is a whole request's tensor; otherwise one row of it.
        output: whether it is an answer's, in which a dim of any size may be 0.
    """
    schema = leaf(spec, bounded=not output)
    skipped = 0 if rows else 1
    for axis in reversed(range(skipped, len(spec.shape))):
        schema = {"type": "array", **_sizes(spec, axis, output), "items": schema}
    return schema


def leaf(spec: TensorSpec, *, bounded: bool = True) -> Schema:
    """One element."""
    kind = spec.dtype.kind
    if kind == "b":
        return {"type": "boolean"}
    if kind == "f":
        if not bounded or spec.dtype.itemsize == 8:  # every number that JSON parsers read is one
            return {"type": "number"}
        format_ = np.finfo(spec.dtype)  # type: ignore[type-var]  # of a float type
        # What is nearer to the largest number than to infinity is read as that number.
        beyond = 2.0**format_.maxexp - 2.0 ** (format_.maxexp - format_.nmant - 2)
        return {"type": "number", "exclusiveMinimum": -beyond, "exclusiveMaximum": beyond}
    limits = np.iinfo(spec.dtype)  # type: ignore[type-var]  # of an integer type
    return {"type": "integer", "minimum": int(limits.min), "maximum": int(limits.max)}


def by_name(
    specs: Iterable[TensorSpec], *, output: bool = False, pictures: Mapping[str, Schema] | None = None
) -> Schema:
    """An object with the values of every tensor. pictures: what else an input may be, by its name."""
    others = pictures or {}
    properties = {spec.name: one_of(nested(spec, output=output), others.get(spec.name)) for spec in specs}
    return named(properties, closed=not output)


def named(properties: Mapping[str, Schema], *, closed: bool = True) -> Schema:
    """An object that has all of these keys, and no others where it is closed."""
    schema: Schema = {"type": "object", "required": list(properties), "properties": dict(properties)}
    return {**schema, "additionalProperties": False} if closed else schema


def one_of(*schemas: Schema | None) -> Schema:
    """What satisfies one of these, or several."""
    there = [schema for schema in schemas if schema is not None]
    return there[0] if len(there) == 1 else {"anyOf": there}


def title(model: str, version: str, what: str) -> str:
    """What generators of clients call a schema."""
    return f"{model} {version} {what}"


def example_inputs(signature: Signature) -> dict[str, np.ndarray] | None:
    """One row of every input: small numbers, and 1 for whole ones, which is an index and a mask; None where it would be
    long, or where sizes depend on each other so that it is not known."""
    shapes = example_shapes(signature)
    if sum(map(math.prod, shapes.values())) > _EXAMPLE_NUMBERS:
        return None
    inputs = {spec.name: _example(spec, shapes[spec.name]) for spec in signature.inputs}
    try:
        signature.check_inputs(inputs)
    except BadTensor:
        return None
    return inputs


def example_shapes(signature: Signature) -> dict[str, tuple[int, ...]]:
    """The shape of one row of each input, by name."""
    shapes = {spec.name: list(spec.example_shape(_EXAMPLE_DIM)) for spec in signature.inputs}
    sizes = {
        name: shapes[spec.name][axis] for spec in signature.inputs for axis, name in enumerate(spec.dims)
    }
    for link in signature.links:
        if link.name in sizes and link.other in sizes:
            sizes[link.name] = link.size(sizes[link.other])
    for spec in signature.inputs:
        for axis, name in enumerate(spec.dims):
            if name and spec.shape[axis] == ANY and not (axis == 0 and spec.counts_rows):
                shapes[spec.name][axis] = sizes[name]
    return {name: tuple(shape) for name, shape in shapes.items()}


def _example(spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
    count = math.prod(shape)
    if spec.dtype.kind == "f":
        return (np.arange(count) % 10 / 10).astype(spec.dtype).reshape(shape)
    return np.ones(shape, spec.dtype)


def numbers(array: np.ndarray) -> Any:
    """The array as nested lists, with its numbers as they are written in JSON: 0.1 for the float32 nearest to it."""
    if array.dtype.kind == "f":
        return np.vectorize(lambda value: float(f"{value:.6g}"), otypes=[object])(array).tolist()
    return array.tolist()


def _sizes(spec: TensorSpec, axis: int, output: bool) -> Schema:
    """How many items a dim's list may have."""
    size = spec.shape[axis]
    if size != ANY:
        return {"minItems": size, "maxItems": size}
    allowed = (spec.ranges[axis] if spec.ranges else None) or _ANY_SIZE
    said: Schema = {} if output else {"minItems": max(1, allowed.least)}
    if allowed.most is not None:
        said["maxItems"] = allowed.most
    if spec.dims and spec.dims[axis]:
        said["description"] = f"dim {spec.dims[axis]!r}: {allowed}"
    return said
