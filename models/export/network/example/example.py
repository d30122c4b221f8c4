"""The example inputs: checked, flattened, in the served types, with the dynamic axes as torch.export wants.

A network may take several inputs, nested ones (structure.py), ones by name (arguments.py), and ones with the
rows in another dim. From here on an export knows only the flat row of tensors with the rows in dim 0; `call`
gives the network what it takes. Knows nothing of graphs.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from foldserve.models.errors import BadExample
from foldserve.models.export.network.example.arguments import Arguments, bind
from foldserve.models.export.network.example.datatypes import OIP_WORDS
from foldserve.models.export.network.example.dynamic_axes import (
    ROWS,
    check_rows,
    checked_axes,
    own_axes,
    served_axis,
    with_enough,
)
from foldserve.models.export.network.example.row_modes import SERVE_TOGETHER

# Python values that an example may hold beside tensors: settings, which the files hold as they are.
_FIXED = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, enum.Enum, slice, range)


@dataclass(frozen=True)
class Fixed:
    """A Python value among the example inputs (None too): part of the files, not an input of theirs."""

    name: str
    value: Any


class Source(enum.Enum):
    """What further inputs are drawn from, the freest first."""

    RANGES = "the ranges that the example shows"
    VALUES = "the example's own values at each place, mixed"
    ROWS = "the example's own rows"


@dataclass(frozen=True)
class Example:
    """The flat example inputs of a network and which of their axes may vary.

    tensors: the example as it is served, one tensor per input, dim 0 = rows, at least 2 rows, floats in float32.
    names: one per tensor, the names in the artifact.
    axes: one per tensor, {axis: label} of the served tensor; axis 0 always has the label "rows".
    arguments: what forward was given; its leaves are the inputs and the fixed values, in order.
    rows_dims: one per tensor, the dim where the network has the rows; the others keep their order.
    fixed: the leaves that are no tensors.
    source: what further inputs are drawn from; refused: why from nothing freer, for the user (source.py).
    together: whether the rows belong together. Then no axis is called "rows", and the inputs have the network's own
        shapes. offered: labels of axes that nobody asked for, to be fixed where the network does not take other sizes.
    own_shapes: the shapes as the user gave them.
    """

    tensors: tuple[torch.Tensor, ...]
    names: tuple[str, ...]
    axes: tuple[dict[int, str], ...]
    arguments: Arguments
    rows_dims: tuple[int, ...]
    fixed: tuple[Fixed, ...]
    source: Source = Source.RANGES
    refused: str | None = None
    together: bool = False
    offered: frozenset[str] = frozenset()
    own_shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def rows(self) -> int:
        return self.rows_of(self.tensors)

    def rows_of(self, inputs: Sequence[torch.Tensor]) -> int:
        """How many rows inputs have: where rows belong together, the size of dim 0 if it varies, else 1."""
        return inputs[0].shape[0] if 0 in self.axes[0] else 1

    @property
    def leading(self) -> tuple[str, ...]:
        """What dim 0 of the inputs is called, where it varies."""
        return tuple(dict.fromkeys(axes[0] for axes in self.axes if 0 in axes))

    def call(self, function: Callable[..., Any], tensors: Sequence[torch.Tensor]) -> Any:
        """Call function as the network is called, with these served tensors in the places of the example."""
        moved = iter(t.movedim(0, dim) if dim else t for t, dim in zip(tensors, self.rows_dims, strict=True))
        given = [next(moved) if _is_array(leaf) else leaf for _, leaf in self.arguments.named_leaves()]
        return self.arguments.call(function, given)


def read_example(
    module: nn.Module,
    example_inputs: Any,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None,
    input_names: Sequence[str] | None,
    *,
    together: bool = False,
) -> Example:
    """Check the user's example and make it an Example.

    example_inputs: a tuple by position or a mapping by name; tensors and numpy arrays are inputs, Python values
        are fixed.
    dynamic_axes: {input: {axis: label}}, axes as the network has them; the label "rows" says which one is the
        rows, where it is not axis 0.
    together: whether the rows belong together (row_modes.py). Then dim 0 is an axis like others, which is offered to
        the network where dynamic_axes does not name it.
    Raises: BadExample, naming the input: not a tensor, no rows axis, row counts that differ, arguments that
    forward does not take, names that do not fit, a dynamic axis that the input does not have.
    """
    arguments = bind(module, example_inputs)
    named = arguments.named_leaves()
    inputs = [(name, leaf) for name, leaf in named if _is_array(leaf)]
    fixed = tuple(_checked_fixed(name, leaf) for name, leaf in named if not _is_array(leaf))
    if not inputs:
        raise BadExample(
            "there is no tensor among example_inputs; expected at least one tensor whose dim 0 is the rows"
        )
    own_names = unique_names([name for name, _ in inputs])
    names = checked_names("input_names", input_names, own_names)
    tensors = tuple(
        _checked_tensor(name, leaf, together) for name, (_, leaf) in zip(names, inputs, strict=True)
    )
    if together:
        axes, offered = own_axes(names, own_names, tensors, dynamic_axes or {})
        own = tuple(tuple(tensor.shape) for tensor in tensors)
        enough = with_enough(tensors, axes)
        return Example(
            enough,
            names,
            axes,
            arguments,
            (0,) * len(names),
            fixed,
            together=True,
            offered=offered,
            own_shapes=own,
        )
    asked = checked_axes(names, own_names, tensors, dynamic_axes or {})
    rows_dims = tuple(next(axis for axis, label in mine.items() if label == ROWS) for mine in asked)
    check_rows(names, tensors, rows_dims)
    served = tuple(t.movedim(dim, 0).contiguous() for t, dim in zip(tensors, rows_dims, strict=True))
    axes = tuple(
        dict(sorted((served_axis(axis, dim), label) for axis, label in mine.items()))
        for mine, dim in zip(asked, rows_dims, strict=True)
    )
    return Example(with_enough(served, axes), names, axes, arguments, rows_dims, fixed)


def _is_array(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor | np.ndarray)


def _checked_fixed(name: str, leaf: object) -> Fixed:
    value = leaf.item() if isinstance(leaf, np.generic) else leaf
    if not isinstance(value, _FIXED):
        raise BadExample(
            f"example input {name!r} is a {type(leaf).__name__}; expected tensors or numpy arrays, or Python "
            "values that stay fixed, in lists, tuples, dicts or dataclasses. Build the object in a module "
            "around the network, whose forward takes its tensors."
        )
    return Fixed(name, value)


def unique_names(names: Sequence[str], taken: Sequence[str] = ()) -> tuple[str, ...]:
    """The names with `_out` behind one that is taken, and a number behind one that comes again."""
    unique: list[str] = []
    for name in names:
        base = f"{name}_out" if name in taken else name
        candidate, number = base, 2
        while candidate in unique or candidate in taken:
            candidate, number = f"{base}_{number}", number + 1
        unique.append(candidate)
    return tuple(unique)


def checked_names(setting: str, given: Sequence[str] | None, own: tuple[str, ...]) -> tuple[str, ...]:
    """The names given, or else own. Raises: BadExample when there are not as many, all different."""
    if given is None:
        return own
    if isinstance(given, str) or len(given) != len(own) or len(set(given)) != len(given) or not all(given):
        raise BadExample(
            f"{setting} is {given!r}; expected {len(own)} different, non-empty names, one for each of {own}"
        )
    return tuple(given)


def _checked_tensor(name: str, leaf: Any, together: bool) -> torch.Tensor:
    """A dense copy of leaf that shares nothing with it: no gradients, no strides of views, floats in float32."""
    tensor = _from_numpy(name, leaf) if isinstance(leaf, np.ndarray) else leaf
    if tensor.dim() == 0 and not together:
        raise BadExample(
            f"example input {name!r} has no dimensions; expected dim 0 to be the rows. Give it one value per "
            f"row, or give a Python number, which stays fixed in the files. {SERVE_TOGETHER}"
        )
    if 0 in tensor.shape:
        raise BadExample(f"example input {name!r} has the shape {tuple(tensor.shape)}, with nothing in it")
    if tensor.is_meta:
        raise BadExample(f"example input {name!r} is on the device 'meta' and has no values; expected some")
    known = tensor.dtype in OIP_WORDS or tensor.dtype == torch.bfloat16
    if not known or tensor.layout != torch.strided or tensor.is_nested:
        raise BadExample(
            f"example input {name!r} is {tensor.dtype}, {tensor.layout}; expected a dense, real tensor"
        )
    plain = tensor.detach().cpu().resolve_neg().clone(memory_format=torch.contiguous_format)
    return plain.float() if plain.is_floating_point() else plain


def _from_numpy(name: str, array: np.ndarray[Any, Any]) -> torch.Tensor:
    # torch reads the machine's byte order and forward strides only.
    native = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    try:
        return torch.from_numpy(native)
    except TypeError as error:
        raise BadExample(
            f"example input {name!r} is a numpy array of {array.dtype}; expected numbers of up to 64 bits"
        ) from error
