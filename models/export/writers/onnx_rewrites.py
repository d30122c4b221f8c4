"""Operators that torch.onnx writes for the example's sizes alone, or not at all, as others that it writes for all.

    before  aten.adaptive_avg_pool2d(x, [3, 3])      torch.onnx asks whether 3 divides the height, and keeps one answer
    after   a call of a function here, which torch.onnx traces: indices made from the size, a gather, a mean

Only for the ONNX file, TorchScript has all of these. The sizes of windows and the nearest element are computed as
torch's CPU kernels do (aten/src/ATen/native/AdaptivePooling.h, UpSample.h), in the same type, so that no element is
another one. None of the functions branches on a size that varies. More rules: onnx_attention.py, onnx_numbers.py.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from foldserve.models.export.capture.graph_copy import copied
from foldserve.models.export.writers import onnx_attention, onnx_numbers

aten = torch.ops.aten


def rewritten(graph_module: fx.GraphModule) -> fx.GraphModule:
    """graph_module with the operators rewritten that need it; itself where none does. The weights are shared."""
    wanted = {
        node.name
        for node in graph_module.graph.nodes
        if node.op == "call_function" and node.target in _REWRITES and _REWRITES[node.target][0](node)
    }
    if not wanted:
        return graph_module
    changed = copied(graph_module)
    for node in changed.graph.nodes:
        if node.name in wanted:
            _rewrite(node)
    changed.recompile()
    return changed


def _rewrite(node: fx.Node) -> None:
    """Let node call its rewrite, with the operator's arguments in order (those that have a name alone: as they are),
    and how many tensors come out, if a list."""
    arguments: list[Any] = []
    for place, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if not argument.kwarg_only:
            given = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
            arguments.append(argument.default_value if given is None else given)
    taken = {argument.name for argument in node.target._schema.arguments if not argument.kwarg_only}  # type: ignore[union-attr]
    named = {name: given for name, given in node.kwargs.items() if name not in taken}
    if isinstance(node.meta["val"], list):
        arguments.append(len(node.meta["val"]))
    node.target, node.args, node.kwargs = _REWRITES[node.target][1], tuple(arguments), named


def _always(node: fx.Node) -> bool:
    return True


def _of_varying_size(node: fx.Node) -> bool:
    """Whether a size that is not static has to do with the axes behind the first two."""
    return not all(isinstance(size, int) for size in (*_input(node)[2:], *_output(node)[2:]))


def _has_varying_argument(node: fx.Node) -> bool:
    """Whether a number among the arguments is computed from a size."""
    return len(node.all_input_nodes) > 1


def _values_alone(node: fx.Node) -> bool:
    """Whether the indices that a maximum has beside its values are not asked for."""
    return all(user.target is operator.getitem and user.args[1] == 0 for user in node.users)


def _not_a_multiple(node: fx.Node) -> bool:
    """Whether sizes, and no factors, are asked for, and no multiples of the input's, where every runtime agrees."""
    if node.args[1] is None:
        return False
    pairs = zip(_input(node)[2:], _output(node)[2:], strict=True)
    return not all(isinstance(a, int) and isinstance(b, int) and b % a == 0 for a, b in pairs)


def _input(node: fx.Node) -> Sequence[Any]:
    return tuple(node.args[0].meta["val"].shape)  # type: ignore[union-attr]


def _output(node: fx.Node) -> Sequence[Any]:
    value = node.meta["val"]
    return tuple((value[0] if isinstance(value, list | tuple) else value).shape)


def _windows(x: Tensor, axis: int, count: Any) -> tuple[Tensor, Tensor, Tensor]:
    """x with `axis` taken apart into `count` windows of one length, which elements are inside, how many are."""
    size = x.shape[axis]
    number = torch.arange(count)
    start = number * size // count
    end = ((number + 1) * size + count - 1) // count
    length = size // count + 2
    places = start.unsqueeze(1) + torch.arange(length)
    taken = x.index_select(axis, places.clamp(max=size - 1).flatten())
    behind = x.ndim - axis - 1
    shape = (count, *[1] * behind)
    return (
        taken.reshape(*x.shape[:axis], count, length, *x.shape[axis + 1 :]),
        (places < end.unsqueeze(1)).reshape(count, length, *[1] * behind),
        (end - start).reshape(shape),
    )


def _adaptive_avg_pool(x: Tensor, output_size: Sequence[Any]) -> Tensor:
    for axis, count in zip(range(-len(output_size), 0), output_size, strict=True):
        if isinstance(count, int) and count == 1:
            x = x.mean(axis, keepdim=True)
            continue
        taken, inside, number = _windows(x, x.ndim + axis, count)
        x = torch.where(inside, taken, 0.0).sum(axis) / number.to(x.dtype)
    return x


def _adaptive_max_pool(x: Tensor, output_size: Sequence[Any]) -> tuple[Tensor]:
    for axis, count in zip(range(-len(output_size), 0), output_size, strict=True):
        if isinstance(count, int) and count == 1:
            x = x.amax(axis, keepdim=True)
            continue
        taken, inside, _ = _windows(x, x.ndim + axis, count)
        x = torch.where(inside, taken, -math.inf).amax(axis)
    return (x,)


def _nearest(x: Tensor, output_size: Sequence[Any], *_: Any) -> Tensor:
    for axis, size in zip(range(2, x.ndim), output_size, strict=True):
        places = torch.arange(size, dtype=torch.float32) * _ratio(x.shape[axis], size)
        x = x.index_select(axis, places.floor().long().clamp(max=x.shape[axis] - 1))
    return x


def _nearest_exact(x: Tensor, output_size: Sequence[Any], *_: Any) -> Tensor:
    for axis, size in zip(range(2, x.ndim), output_size, strict=True):
        middles = (torch.arange(size, dtype=torch.float64) + 0.5) * _ratio(x.shape[axis], size).double()
        places = (middles - 0.5).float().clamp(min=0.0) + 0.5  # multiplied and subtracted with one rounding
        x = x.index_select(axis, places.floor().long().clamp(max=x.shape[axis] - 1))
    return x


def _ratio(size: Any, output_size: Any) -> Tensor:
    """Rounded to float32, as the kernels have it."""
    return torch.full((), size, dtype=torch.float32) / torch.full((), output_size, dtype=torch.float32)


def _roll(x: Tensor, shifts: Any, dims: Any) -> Tensor:
    if not dims:
        return _roll(x.flatten(), shifts, [0]).reshape(x.shape)
    for shift, axis in zip(shifts, dims, strict=True):
        size = x.shape[axis]
        places = torch.arange(size) - torch.full((), shift)
        x = x.index_select(axis, places.remainder(torch.full((), size)))
    return x


def _split(x: Tensor, size: Any, axis: int, count: int) -> list[Tensor]:
    return _parts(x, [*[size] * (count - 1), x.shape[axis] - size * (count - 1)], axis, count)


def _parts(x: Tensor, sizes: Sequence[Any], axis: int, count: int) -> list[Tensor]:
    parts, start = [], 0
    for size in sizes:
        parts.append(x.narrow(axis, start, size))
        start += size
    return parts


def _median(x: Tensor, axis: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    return _nth(x, (x.shape[axis] - 1) // 2, axis, keepdim)


def _kth(x: Tensor, k: Any, axis: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    return _nth(x, k - 1, axis, keepdim)


def _nth(x: Tensor, place: Any, axis: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    """The element at a place of the sorted ones, and where it was."""
    found = tuple(part.index_select(axis, torch.full((1,), place)) for part in x.sort(axis))
    return found if keepdim else tuple(part.squeeze(axis) for part in found)  # type: ignore[return-value]


_REWRITES: dict[Any, tuple[Callable[[fx.Node], bool], Callable[..., Any]]] = {
    aten.adaptive_avg_pool1d.default: (_of_varying_size, _adaptive_avg_pool),
    aten.adaptive_avg_pool2d.default: (_of_varying_size, _adaptive_avg_pool),
    aten.adaptive_avg_pool3d.default: (_of_varying_size, _adaptive_avg_pool),
    aten.adaptive_max_pool1d.default: (_values_alone, _adaptive_max_pool),
    aten.adaptive_max_pool2d.default: (_values_alone, _adaptive_max_pool),
    aten.adaptive_max_pool3d.default: (_values_alone, _adaptive_max_pool),
    aten.upsample_nearest1d.vec: (_not_a_multiple, _nearest),
    aten.upsample_nearest2d.vec: (_not_a_multiple, _nearest),
    aten.upsample_nearest3d.vec: (_not_a_multiple, _nearest),
    aten._upsample_nearest_exact1d.vec: (_not_a_multiple, _nearest_exact),
    aten._upsample_nearest_exact2d.vec: (_not_a_multiple, _nearest_exact),
    aten._upsample_nearest_exact3d.vec: (_not_a_multiple, _nearest_exact),
    aten.roll.default: (_has_varying_argument, _roll),
    aten.split.Tensor: (_has_varying_argument, _split),
    aten.split_with_sizes.default: (_has_varying_argument, _parts),
    aten.median.dim: (_always, _median),
    aten.kthvalue.default: (_always, _kth),
    **onnx_attention.REWRITES,
    **onnx_numbers.REWRITES,
}
