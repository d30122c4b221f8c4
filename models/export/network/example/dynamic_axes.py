"""The dynamic axes of the example inputs: which dims count rows, what the others that vary are called.

Labels come from the user as {input: {axis: label}}, in the dims that the network has; axes of one label have one size.
Knows nothing of the arguments that the tensors were part of: example.py.
"""

from collections.abc import Mapping, Sequence

import torch

from foldserve.models.errors import BadExample
from foldserve.models.export.network.example.row_modes import SERVE_TOGETHER

ROWS = "rows"
BATCH = "batch"
"""What dim 0 is called where rows belong together (row_modes.py): an axis like others, of which a network may take one
size only. "rows" counts rows that are independent, and nothing else."""

# The smallest batch to capture with: torch.export takes a size of 1 for a constant (0/1 specialisation).
_CAPTURE_ROWS = 2


def checked_axes(
    names: tuple[str, ...],
    own_names: tuple[str, ...],
    tensors: tuple[torch.Tensor, ...],
    dynamic_axes: Mapping[str, Mapping[int, str]],
) -> tuple[dict[int, str], ...]:
    """{axis: label} per input, one of them the rows; dynamic_axes may use the artifact's names or forward's."""
    _check_known(names, own_names, dynamic_axes)
    axes = [
        _axes_of(name, tensor, dynamic_axes.get(name, dynamic_axes.get(own, {})))
        for name, own, tensor in zip(names, own_names, tensors, strict=True)
    ]
    _check_labels_agree(names, tensors, axes)
    return tuple(axes)


def own_axes(
    names: tuple[str, ...],
    own_names: tuple[str, ...],
    tensors: tuple[torch.Tensor, ...],
    dynamic_axes: Mapping[str, Mapping[int, str]],
) -> tuple[tuple[dict[int, str], ...], frozenset[str]]:
    """{axis: label} per input where rows belong together, and the labels that nobody asked for.

    Dim 0 of the first input, and of those as long, is called "batch"; of the others by the name of the input.
    """
    _check_known(names, own_names, dynamic_axes)
    axes = []
    offered = set()
    first = tensors[0].shape[:1]
    for name, own, tensor in zip(names, own_names, tensors, strict=True):
        asked = _labels_of(name, tensor, dynamic_axes.get(name, dynamic_axes.get(own, {})))
        mine = {axis: BATCH if label == ROWS else label for axis, label in asked.items()}
        if tensor.dim() and 0 not in mine and BATCH not in mine.values():
            mine[0] = BATCH if tensor.shape[:1] == first else f"{own}_{BATCH}"
            offered.add(mine[0])
        _check_labels(name, mine)
        axes.append(dict(sorted(mine.items())))
    _check_labels_agree(names, tensors, axes)
    return tuple(axes), frozenset(offered)


def _check_known(
    names: tuple[str, ...], own_names: tuple[str, ...], dynamic_axes: Mapping[str, Mapping[int, str]]
) -> None:
    unknown = set(dynamic_axes) - set(names) - set(own_names)
    if unknown:
        raise BadExample(f"dynamic_axes names the inputs {sorted(unknown)}; the inputs are {list(names)}")


def _labels_of(name: str, tensor: torch.Tensor, asked: Mapping[int, str]) -> dict[int, str]:
    """asked with its axes counted from the front."""
    for axis in asked:
        if not -tensor.dim() <= axis < tensor.dim():
            raise BadExample(
                f"dynamic_axes asks for axis {axis} of {name!r}, whose example has the shape "
                f"{tuple(tensor.shape)}"
            )
    return {axis % tensor.dim(): label for axis, label in asked.items()}


def _axes_of(name: str, tensor: torch.Tensor, asked: Mapping[int, str]) -> dict[int, str]:
    labels = _labels_of(name, tensor, asked)
    rows = [axis for axis, label in labels.items() if label == ROWS]
    if len(rows) > 1:
        raise BadExample(
            f"dynamic_axes calls the axes {rows} of {name!r} {ROWS!r}; expected one: the rows lie in one dim"
        )
    if not rows:
        labels[0] = ROWS  # whatever the user calls them
    _check_labels(name, labels)
    return labels


def _check_labels(name: str, labels: Mapping[int, str]) -> None:
    for axis, label in labels.items():
        if not str(label).isidentifier():
            raise BadExample(
                f"dynamic_axes calls axis {axis} of {name!r} {label!r}; expected a name like 'length', or "
                f"{ROWS!r} for the axis that counts the rows"
            )


def _check_labels_agree(
    names: tuple[str, ...], tensors: tuple[torch.Tensor, ...], axes: Sequence[Mapping[int, str]]
) -> None:
    sizes: dict[str, tuple[int, str]] = {}
    for name, tensor, mine in zip(names, tensors, axes, strict=True):
        for axis, label in mine.items():
            if label == ROWS:
                continue  # check_rows says more
            size, first = sizes.setdefault(label, (tensor.shape[axis], f"axis {axis} of {name!r}"))
            if size != tensor.shape[axis]:
                raise BadExample(
                    f"the dynamic axis {label!r} is {size} at {first} and {tensor.shape[axis]} at axis "
                    f"{axis} of {name!r}; axes of one name have one size, give them two names"
                )


def with_enough(
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


def served_axis(axis: int, rows_dim: int) -> int:
    """Where an axis of the network's tensor is once its rows are in dim 0."""
    return 0 if axis == rows_dim else axis + (axis < rows_dim)


def check_rows(names: Sequence[str], tensors: Sequence[torch.Tensor], rows_dims: Sequence[int]) -> None:
    rows = {n: t.shape[dim] for n, t, dim in zip(names, tensors, rows_dims, strict=True)}
    if len(set(rows.values())) > 1:
        where = "dim 0" if not any(rows_dims) else "the dims called 'rows', or else dim 0"
        raise BadExample(
            f"the example inputs have different numbers of rows in {where}: {rows}; expected one number. Make "
            "what is no row a buffer of the network, and name the dim where an input has its rows elsewhere: "
            f"dynamic_axes={{{names[-1]!r}: {{1: {ROWS!r}}}}}. {SERVE_TOGETHER}"
        )
