"""The example inputs: checked, flattened, in the served types, with the dynamic axes as torch.export wants.

A network may take several inputs, nested ones (dicts, lists, tuples of tensors) and `*args`. From here on an
export knows only the flat row of tensors; `unflatten` gives the structure back when the eager network is
called. Knows nothing of graphs.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from models.errors import BadExample
from models.export.datatypes import OIP_WORDS

ROWS = "rows"

# The smallest batch to capture with: torch.export takes a size of 1 for a constant (0/1 specialisation).
_CAPTURE_ROWS = 2


class Source(Enum):
    """What further inputs are drawn from, the freest first."""

    RANGES = "the ranges that the example shows"
    VALUES = "the example's own values at each place, mixed"
    ROWS = "the example's own rows"


@dataclass(frozen=True)
class Example:
    """The flat example inputs of a network and which of their axes may vary.

    tensors: the example, one tensor per input, dim 0 = rows, at least 2 rows, floats in float32.
    names: one per tensor, the names in the artifact.
    axes: one per tensor, {axis: label}; axis 0 always has the label "rows".
    in_spec: how the flat tensors make up the arguments of forward.
    parameters: forward's parameter names in the order of the arguments; `*args` counts once.
    source: what further inputs are drawn from; refused: why from nothing freer, for the user (source.py).
    """

    tensors: tuple[torch.Tensor, ...]
    names: tuple[str, ...]
    axes: tuple[dict[int, str], ...]
    in_spec: pytree.TreeSpec
    parameters: tuple[str, ...]
    star: str | None
    source: Source = Source.RANGES
    refused: str | None = None

    @property
    def rows(self) -> int:
        return self.tensors[0].shape[0]

    def call(self, function: Callable[..., Any], tensors: Sequence[torch.Tensor]) -> Any:
        """Call function as the network is called, with these tensors in the places of the example."""
        return function(*pytree.tree_unflatten(list(tensors), self.in_spec))

    def dynamic_shapes(self, dims: Mapping[str, Any]) -> dict[str, Any]:
        """What torch.export takes: forward's parameter → its argument's structure with {axis: dim} leaves."""
        leaves = [{axis: dims[label] for axis, label in axes.items()} for axes in self.axes]
        arguments = pytree.tree_unflatten(leaves, self.in_spec)
        if self.star is None:
            return dict(zip(self.parameters, arguments, strict=True))
        plain = self.parameters[:-1]
        return {**dict(zip(plain, arguments, strict=False)), self.star: tuple(arguments[len(plain) :])}


def read_example(
    module: nn.Module,
    example_inputs: Sequence[Any],
    dynamic_axes: Mapping[str, Mapping[int, str]] | None,
    input_names: Sequence[str] | None,
) -> Example:
    """Check the user's example and make it an Example.

    Raises: BadExample, naming the input: not a tensor, no rows axis, row counts that differ, arguments that
    forward does not take, names that do not fit, a dynamic axis that the input does not have.
    """
    if not isinstance(example_inputs, list | tuple):
        raise BadExample(
            f"example_inputs is a {type(example_inputs).__name__}; expected a tuple with one entry per "
            "argument of forward, for example (x,)"
        )
    arguments = tuple(example_inputs)
    parameters, star = _bind(module, arguments)
    leaves_with_paths, in_spec = pytree.tree_flatten_with_path(arguments)
    if not leaves_with_paths:
        raise BadExample("example_inputs is empty; expected at least one tensor whose dim 0 is the rows")
    own_names = unique_names([_leaf_name(path, parameters, star) for path, _ in leaves_with_paths])
    names = checked_names("input_names", input_names, own_names)
    tensors = tuple(
        _checked_tensor(name, leaf) for name, (_, leaf) in zip(names, leaves_with_paths, strict=True)
    )
    rows = {name: t.shape[0] for name, t in zip(names, tensors, strict=True)}
    if len(set(rows.values())) > 1:
        raise BadExample(
            f"the example inputs have different numbers of rows in dim 0: {rows}; expected one number. Dim "
            "0 of every input is the rows; make what is no row a buffer of the network."
        )
    axes = _checked_axes(names, own_names, tensors, dynamic_axes or {})
    return Example(_with_enough(tensors, axes), names, axes, in_spec, parameters, star)


def _bind(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[tuple[str, ...], str | None]:
    """forward's parameter names for these arguments, and the name of its `*args` when some of them go
    there.
    """
    signature = inspect.signature(module.forward)
    try:
        bound = signature.bind(*arguments)
    except TypeError as error:
        raise BadExample(
            f"{type(module).__name__}.forward{signature} does not take the {len(arguments)} example inputs "
            f"given: {error}"
        ) from error
    star = next(
        (n for n in bound.arguments if signature.parameters[n].kind is inspect.Parameter.VAR_POSITIONAL), None
    )
    return tuple(bound.arguments), star


def _leaf_name(path: tuple[Any, ...], parameters: tuple[str, ...], star: str | None) -> str:
    """`x`, or `batch_image` for batch["image"], or `args_0`: the name torch.export gives the placeholder
    too.
    """
    position = path[0].idx
    if star is not None and position >= len(parameters) - 1:
        words = [star, str(position - (len(parameters) - 1))]
    else:
        words = [parameters[position]]
    words += [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path[1:]]
    return "_".join(words)


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


def _checked_tensor(name: str, leaf: object) -> torch.Tensor:
    if not isinstance(leaf, torch.Tensor):
        raise BadExample(
            f"example input {name!r} is {leaf!r} ({type(leaf).__name__}); expected a tensor. A fixed value "
            "belongs into the network: wrap it in a module whose forward passes the value on."
        )
    if leaf.dim() == 0:
        raise BadExample(f"example input {name!r} has no dimensions; expected dim 0 to be the rows")
    if 0 in leaf.shape:
        raise BadExample(f"example input {name!r} has the shape {tuple(leaf.shape)}, with nothing in it")
    if (leaf.dtype not in OIP_WORDS and leaf.dtype != torch.bfloat16) or leaf.is_sparse:
        raise BadExample(
            f"example input {name!r} is {leaf.dtype}, {leaf.layout}; expected a dense, real tensor"
        )
    plain = leaf.detach().cpu()
    return plain.float() if plain.is_floating_point() else plain


def _checked_axes(
    names: tuple[str, ...],
    own_names: tuple[str, ...],
    tensors: tuple[torch.Tensor, ...],
    dynamic_axes: Mapping[str, Mapping[int, str]],
) -> tuple[dict[int, str], ...]:
    """{axis: label} per input, axis 0 added; dynamic_axes may use the artifact's names or forward's."""
    unknown = set(dynamic_axes) - set(names) - set(own_names)
    if unknown:
        raise BadExample(f"dynamic_axes names the inputs {sorted(unknown)}; the inputs are {list(names)}")
    axes = []
    for name, own, tensor in zip(names, own_names, tensors, strict=True):
        asked = dynamic_axes.get(name, dynamic_axes.get(own, {}))
        mine = {0: ROWS}
        for axis, label in asked.items():
            if not -tensor.dim() <= axis < tensor.dim():
                raise BadExample(
                    f"dynamic_axes asks for axis {axis} of {name!r}, whose example has the shape "
                    f"{tuple(tensor.shape)}"
                )
            if axis % tensor.dim() == 0:
                continue  # the rows, whatever the user calls them
            if not str(label).isidentifier() or label == ROWS:
                raise BadExample(
                    f"dynamic_axes calls axis {axis} of {name!r} {label!r}; expected a name like 'length', "
                    f"and not {ROWS!r}, which is dim 0"
                )
            mine[axis % tensor.dim()] = label
        axes.append(dict(sorted(mine.items())))
    _check_labels_agree(names, tensors, axes)
    return tuple(axes)


def _check_labels_agree(
    names: tuple[str, ...], tensors: tuple[torch.Tensor, ...], axes: Sequence[Mapping[int, str]]
) -> None:
    sizes: dict[str, tuple[int, str]] = {}
    for name, tensor, mine in zip(names, tensors, axes, strict=True):
        for axis, label in mine.items():
            size, first = sizes.setdefault(label, (tensor.shape[axis], f"axis {axis} of {name!r}"))
            if size != tensor.shape[axis]:
                raise BadExample(
                    f"the dynamic axis {label!r} is {size} at {first} and {tensor.shape[axis]} at axis "
                    f"{axis} of {name!r}; axes of one name have one size, give them two names"
                )


def _with_enough(
    tensors: tuple[torch.Tensor, ...], axes: tuple[dict[int, str], ...]
) -> tuple[torch.Tensor, ...]:
    """The tensors with every dynamic axis of size 1 repeated, since torch.export would fix it at 1."""
    enough = []
    for tensor, mine in zip(tensors, axes, strict=True):
        wide = tensor
        for axis in mine:
            if wide.shape[axis] < _CAPTURE_ROWS:
                wide = torch.cat([wide] * _CAPTURE_ROWS, dim=axis)
        enough.append(wide)
    return tuple(enough)
