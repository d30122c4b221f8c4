"""Rows to try a model with where there are none of its own: of several kinds, for what a model does may hang on values.

Pure. Whoever runs them must expect that a model does not take some of them.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from foldserve.service.artifact.signature import Signature, TensorSpec

Rows = dict[str, np.ndarray]
"""Input name -> array [rows, ...], the same number of rows for each."""

Shapes = Mapping[str, tuple[int, ...]]
"""Input name -> the shape of one row."""

GUESSED_DIMS = (32, 64, 224, 16, 8, 4, 2, 1)
"""For dims of any size, one after the other until the model takes one: small, but enough for the usual kernels and
poolings; multiples of what networks halve; a usual picture; then short sequences."""
TRIED = 3
"""Rows of one kind."""


def shapes_with(signature: Signature, dim: int) -> Shapes:
    """The shapes of the inputs' rows, with `dim`, or a size near it that is allowed, for every dim of any size."""
    return {spec.name: spec.row_of(spec.example_shape(dim)) for spec in signature.inputs}


def zeros(signature: Signature, rows: int, shapes: Shapes) -> Rows:
    """Rows of zeros."""
    return {spec.name: np.zeros((rows, *shapes[spec.name]), spec.dtype) for spec in signature.inputs}


def kinds(signature: Signature, shapes: Shapes, out_of_range: bool) -> Iterator[Rows]:
    """TRIED rows of each kind, the usual first: all different in that one.

    Args:
        out_of_range: whether whole numbers may be other than 0 and 1: as an index that is not there they fail on the
            CPU, and may take a GPU's context with them.
    """
    rng = np.random.default_rng(0)
    for kind in range(_KINDS):
        yield {
            spec.name: _of_kind(kind, spec, (TRIED, *shapes[spec.name]), rng, out_of_range)
            for spec in signature.inputs
        }


def repeated(rows: Rows, count: int) -> Rows:
    """`count` rows, repeating those given in their order."""
    return {name: np.ascontiguousarray(array[np.arange(count) % len(array)]) for name, array in rows.items()}


def one(rows: Rows, row: int, count: int = 1) -> Rows:
    """One of the rows, `count` times."""
    return {
        name: np.ascontiguousarray(np.broadcast_to(array[row : row + 1], (count, *array.shape[1:])))
        for name, array in rows.items()
    }


_KINDS = 8


def _of_kind(
    kind: int, spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator, out_of_range: bool
) -> np.ndarray:
    """Normal, zeros, ones, between, large, sparse, negative, unusual: so many ways to pass or miss a threshold."""
    bits = rng.integers(0, 2, shape)
    if spec.dtype.kind == "f":
        normal = rng.standard_normal(shape)
        floats = (
            normal,
            np.zeros(shape),
            np.ones(shape),
            rng.random(shape),
            normal * 1000,
            normal * bits,
            -np.abs(normal),
            np.where(bits, np.nan, normal),
        )
        return floats[kind].astype(spec.dtype)
    if spec.dtype.kind == "b" or not out_of_range:
        return (bits, np.zeros(shape), np.ones(shape))[min(kind, 2)].astype(spec.dtype)
    lowest = 0 if spec.dtype.kind == "u" else -1
    whole = (
        bits,
        np.zeros(shape),
        np.ones(shape),
        rng.integers(0, 4, shape),
        np.full(shape, 100),
        bits * 2,
        np.full(shape, lowest),
        rng.integers(lowest, 11, shape),
    )
    return whole[kind].astype(spec.dtype)
