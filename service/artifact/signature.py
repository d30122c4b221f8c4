"""What a model takes and gives, and whether given arrays fit it.

Pure: no HTTP, no files, no model. Every request is checked here, before it may join a batch, so that a
mistake in one request never meets another's rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from foldserve.service.artifact.datatypes import numpy_dtype
from foldserve.service.artifact.dims import DimLink, DimRange
from foldserve.service.errors import BadTensor

ANY = -1
"""The dim that may have any size."""
ONE_BY_ONE = "set `max_batch_size: 0` in config.yaml, which runs one request at a time"
"""The fix for every model that cannot run several requests together."""
_DIMS_SHOWN = 16


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: its name, its OIP datatype, its shape with -1 for a dim of any size.

    Every dim is -1 or at least 1. counts_rows: whether dim 0, which is -1 then, counts rows that are independent of
    each other. Where it does not, the shape is that of a whole request, which has any number of dims, none too, and
    which is one row to whoever makes batches.
    dims: the name of each dim, "" where it has none; () when none has. Inputs' dims of one name have one size.
    ranges: which sizes each dim of any size may have, None where every one; () when all may have every one.
    Raises: ValueError when the shape is another one, ConfigError for an unknown datatype.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    dims: tuple[str, ...] = field(default=(), compare=False)
    ranges: tuple[DimRange | None, ...] = field(default=(), compare=False)
    counts_rows: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        numpy_dtype(self.datatype)
        if self.counts_rows and (not self.shape or self.shape[0] != ANY):
            raise ValueError(
                f"tensor {self.name!r} has shape {list(self.shape)}; dim 0 counts the rows and must be -1; for a model "
                f"that does not count rows, {ONE_BY_ONE}"
            )
        if any(dim < 1 and dim != ANY for dim in self.shape):
            raise ValueError(
                f"tensor {self.name!r} has shape {list(self.shape)}; a dim must be -1 or at least 1"
            )
        if self.dims and len(self.dims) != len(self.shape):
            raise ValueError(
                f"tensor {self.name!r} has {len(self.shape)} dims {list(self.shape)} and {len(self.dims)} names of dims"
            )

    @cached_property
    def dtype(self) -> np.dtype[np.generic]:
        """The little-endian numpy dtype."""
        return numpy_dtype(self.datatype)

    @cached_property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row."""
        return self.row_of(self.shape)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of a batch, whose dim 0 counts the rows."""
        return (ANY, *self.row_shape)

    def example_shape(self, size: int) -> tuple[int, ...]:
        """A shape that a request of one row may have, with dims of any size near `size`."""
        shape = [size if dim == ANY else dim for dim in self.shape]
        for axis, allowed in enumerate(self.ranges):
            if allowed is not None:
                shape[axis] = allowed.near(size)
        return self.of_rows(1, self.row_of(tuple(shape)))

    def row_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one row of a request whose tensor has this shape."""
        return shape[1:] if self.counts_rows else shape

    def of_batch(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that the model itself gave an output that has this one in a batch."""
        return shape if self.counts_rows else shape[1:]

    def of_rows(self, rows: int, row_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a request's tensor that has so many rows of this shape."""
        return (rows, *row_shape) if self.counts_rows else row_shape

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} {list(self.shape)}"


@dataclass(frozen=True)
class Signature:
    """A model's inputs and outputs, in the model's own order.

    Raises: ValueError when there is no input or no output, two of one name, or only some count rows.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    links: tuple[DimLink, ...] = field(default=(), compare=False)
    """Which sizes of the inputs' dims depend on others."""

    def __post_init__(self) -> None:
        for what, specs in (("input", self.inputs), ("output", self.outputs)):
            if not specs:
                raise ValueError(f"a model needs at least one {what}")
            names = [spec.name for spec in specs]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"two {what}s are named {', '.join(twice)}: each needs a name of its own")
        if len({spec.counts_rows for spec in (*self.inputs, *self.outputs)}) > 1:
            raise ValueError("some tensors count rows and others do not; expected all or none")

    @property
    def counts_rows(self) -> bool:
        """Whether a request may have several rows, and share a batch with others; otherwise it is run alone."""
        return self.inputs[0].counts_rows

    def counting_rows(self, counts_rows: bool) -> "Signature":
        """The same shapes, taken so. Raises: ValueError when they cannot count rows."""

        def taken(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
            return tuple(replace(spec, counts_rows=counts_rows) for spec in specs)

        return Signature(taken(self.inputs), taken(self.outputs), self.links)

    @cached_property
    def inputs_by_name(self) -> dict[str, TensorSpec]:
        """The inputs by their names."""
        return {spec.name: spec for spec in self.inputs}

    @cached_property
    def outputs_by_name(self) -> dict[str, TensorSpec]:
        """The outputs by their names."""
        return {spec.name: spec for spec in self.outputs}

    @cached_property
    def _equal_dims(self) -> dict[str, list[tuple[TensorSpec, int]]]:
        """The inputs' dims that have a name in common, by that name: input and axis of each."""
        named: dict[str, list[tuple[TensorSpec, int]]] = {}
        for spec in self.inputs:
            for axis, name in enumerate(spec.dims):
                if name and spec.shape[axis] == ANY:
                    named.setdefault(name, []).append((spec, axis))
        # That all inputs have as many rows is asked of every model that counts them.
        return {
            name: places
            for name, places in named.items()
            if len(places) > 1 and not (self.counts_rows and all(axis == 0 for _, axis in places))
        }

    def rows_elsewhere(self) -> str:
        """Why rows cannot be counted, when another dim must be as large as the number of rows; "" when none must."""
        for name, places in self._equal_dims.items():
            rows = [spec.name for spec, axis in places if axis == 0 and spec.counts_rows]
            if rows:
                spec, axis = next((spec, axis) for spec, axis in places if axis)
                return (
                    f"dim {axis} of input {spec.name!r} is named {name!r}, as dim 0 of input {rows[0]!r} is, which "
                    "counts the rows: its size would depend on whose requests are run together"
                )
        return ""

    def check_names(self, given: Mapping[str, object]) -> None:
        """Raise BadTensor unless `given` has exactly the names of the inputs."""
        if given.keys() == self.inputs_by_name.keys():
            return
        expected = ", ".join(self.inputs_by_name)
        unknown = [name for name in given if name not in self.inputs_by_name]
        if unknown:
            names = ", ".join(repr(name[:100]) for name in unknown[:10])
            raise BadTensor(f"the model has no input {names}; expected {expected}: rename or drop it")
        missing = ", ".join(name for name in self.inputs_by_name if name not in given)
        raise BadTensor(f"input {missing} is missing; expected {expected}: send every input")

    def check_inputs(self, arrays: Mapping[str, np.ndarray]) -> int:
        """Return how many rows the arrays hold: 1 where the model does not count any.

        Raises: BadTensor, naming the input, what it got, what was expected and the fix, for a missing or
            unknown input, a wrong datatype, rank or dim, inputs that differ in rows or in dims of one name, or no rows
            at all.
        """
        self.check_names(arrays)
        rows = -1
        first = ""
        for spec in self.inputs:
            array = arrays[spec.name]
            check_array(spec, array)
            if not spec.counts_rows:
                rows = 1
            elif rows < 0:
                rows, first = len(array), spec.name
            elif len(array) != rows:
                raise BadTensor(
                    f"input {spec.name!r} has {len(array)} rows but input {first!r} has {rows}; "
                    "expected the same first dim in every input"
                )
        if self._equal_dims:
            self._check_equal_dims(arrays)
        if self.links:
            self._check_links(arrays)
        return rows

    def _check_links(self, arrays: Mapping[str, np.ndarray]) -> None:
        sizes = {
            name: (arrays[spec.name].shape[axis], spec, axis)
            for spec in self.inputs
            for axis, name in enumerate(spec.dims)
        }
        for link in self.links:
            if link.name not in sizes or link.other not in sizes:
                continue
            got, spec, axis = sizes[link.name]
            other = sizes[link.other][0]
            if got != link.size(other):
                raise BadTensor(
                    f"input {spec.name!r} has shape {list(arrays[spec.name].shape)}: dim {axis} ({link.name!r}) is "
                    f"{got}, and {link.other!r} is {other}; expected {link.size(other)}, for it must be {link}: pad or "
                    "cut one of them"
                )

    def _check_equal_dims(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name, places in self._equal_dims.items():
            first, first_axis = places[0]
            size = arrays[first.name].shape[first_axis]
            for spec, axis in places[1:]:
                got = arrays[spec.name].shape[axis]
                if got != size:
                    raise BadTensor(
                        f"input {spec.name!r} has shape {list(arrays[spec.name].shape)}: dim {axis} is {got}, and dim "
                        f"{first_axis} of input {first.name!r} is {size}; expected one size, for both are {name!r}: "
                        "pad or cut one of them"
                    )


def shown_shape(shape: tuple[int, ...]) -> str:
    """The shape for an error's text, whose length a client must not choose."""
    if len(shape) <= _DIMS_SHOWN:
        return str(list(shape))
    return f"[{', '.join(map(str, shape[:_DIMS_SHOWN]))}, ...]"


def check_array(spec: TensorSpec, array: np.ndarray) -> None:
    """Raise BadTensor unless array has spec's datatype (little-endian), rank and dims."""
    if array.dtype != spec.dtype:
        raise BadTensor(
            f"input {spec.name!r} has datatype {array.dtype}; expected {spec.datatype} ({spec.dtype.name}); "
            "convert before sending"
        )
    check_shape(spec, array.shape)


def check_shape(spec: TensorSpec, shape: tuple[int, ...]) -> None:
    """Raise BadTensor unless shape has spec's rank and its fixed dims, and no dim is 0."""
    if len(shape) != len(spec.shape):
        hint = ""
        if spec.counts_rows and len(shape) == len(spec.shape) - 1:
            hint = "; for a single row, wrap it once more: the first dim counts the rows"
        raise BadTensor(
            f"input {spec.name!r} has shape {shown_shape(shape)} with {len(shape)} dims; "
            f"expected {list(spec.shape)} with {len(spec.shape)} (-1 is any size){hint}"
        )
    for axis, (got, expected) in enumerate(zip(shape, spec.shape, strict=True)):
        if expected not in (ANY, got):
            raise BadTensor(
                f"input {spec.name!r} has shape {list(shape)}: dim {axis} is {got}; expected {expected} "
                f"({list(spec.shape)}, -1 is any size)"
            )
    if 0 in shape:
        what = "rows" if spec.counts_rows and shape[0] == 0 else f"elements: dim {shape.index(0)} is 0"
        raise BadTensor(f"input {spec.name!r} has no {what} (shape {list(shape)}); expected at least one")
    if spec.ranges:
        _check_ranges(spec, shape)


def _check_ranges(spec: TensorSpec, shape: tuple[int, ...]) -> None:
    for axis, allowed in enumerate(spec.ranges):
        if allowed is not None and not allowed.takes(shape[axis]):
            raise BadTensor(
                f"input {spec.name!r} has shape {list(shape)}: dim {axis} ({spec.dims[axis]!r}) is {shape[axis]}; "
                f"expected {allowed}, the sizes that the model was exported for: pad or cut it, or export the network "
                "without that bound"
            )
