"""Empty what earlier runs left in a network, before it is captured.

    before  self.shape == (2, 6, 8, 8), self.grid == its grid     left by a run on a batch of 2, in training say
    after   self.shape is None, self.grid is None                 as in a network that never ran

A network may remember what it made for the last shape it met (the grids of detection heads, position tables, masks by
length). A size in such a memory is a number, and a capture would compare the symbolic size with it: the number of rows
would be fixed at, or kept from, that of the last batch. What forward remembers is seen by running it: attributes that a
run on other sizes puts there anew. They are emptied on a copy, and the copy is used only where it then answers as the
network does. Knows nothing of graphs.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foldserve.models.export.network.example.dynamic_axes import ROWS
from foldserve.models.export.network.example.example import Example
from foldserve.models.export.network.example.structure import leaves
from foldserve.models.export.network.fresh import fresh_copy
from foldserve.models.export.network.module_copy import EvalCopy
from foldserve.models.export.process.running import plain_ways

# Emptied or not, the same operators run on the same numbers; another order of a sum is all that may differ.
_SAME = 1e-5

_Place = tuple[str, str]


def without_caches(network: EvalCopy, example: Example) -> EvalCopy:
    """Return the network with nothing of earlier runs in it, or as it is where that cannot be had."""
    others = _other_sizes(example)
    probe = network.runs.module()
    before = _attributes(probe)
    for tensors in others:
        _run(probe, network, example, tensors)
    after = _attributes(probe)
    written = [place for place in before if place in after and after[place] is not before[place]]
    if not written:
        return network
    for empty in (_nothing, _nothing_in_it):
        emptied = fresh_copy(network.module)
        for place in written:
            _put(emptied, place, empty(before[place]))
        if all(_answers_alike(emptied, network, example, t) for t in (example.tensors, *others)):
            return dataclasses.replace(network, module=emptied)
    return network


def _other_sizes(example: Example) -> tuple[tuple[Tensor, ...], ...]:
    """The example's numbers with other rows, and with every dynamic axis twice as long.

    Two other numbers of rows: one may be that of the last run, and nothing would be put anew.
    """
    with_dims = [t.dim() > 0 for t in example.tensors]
    rows = [
        tuple(
            _repeated(t, 0, t.shape[0] + more) if has else t
            for t, has in zip(example.tensors, with_dims, strict=True)
        )
        for more in (3, 4)
    ]
    longer = []
    for tensor, axes in zip(rows[0], example.axes, strict=True):
        for axis, label in axes.items():
            if label != ROWS:
                tensor = _repeated(tensor, axis, 2 * tensor.shape[axis])
        longer.append(tensor)
    has_others = any(label != ROWS for axes in example.axes for label in axes.values())
    return (*rows, tuple(longer)) if has_others else tuple(rows)


def _repeated(tensor: Tensor, axis: int, size: int) -> Tensor:
    return tensor.index_select(axis, torch.arange(size) % tensor.shape[axis])


def _run(
    module: nn.Module, network: EvalCopy, example: Example, tensors: Sequence[Tensor]
) -> list[Any] | None:
    """The flat answer, or None where the network does not take these sizes."""
    try:
        with plain_ways(network.converted):
            return [leaf for _, leaf in leaves(example.call(module, [t.clone() for t in tensors]))]
    except Exception:  # which sizes it takes is not asked here
        return None


def _answers_alike(module: nn.Module, network: EvalCopy, example: Example, tensors: Sequence[Tensor]) -> bool:
    want = _run(network.runs.module(), network, example, tensors)
    got = _run(fresh_copy(module), network, example, tensors)
    if want is None or got is None or len(want) != len(got):
        return want is None
    return all(_same(g, w) for g, w in zip(got, want, strict=True))


def _same(got: Any, want: Any) -> bool:
    if not isinstance(got, Tensor) or not isinstance(want, Tensor):
        return type(got) is type(want)
    if got.shape != want.shape or got.dtype != want.dtype:
        return False
    return torch.allclose(got.double(), want.double(), rtol=_SAME, atol=_SAME, equal_nan=True)


def _attributes(module: nn.Module) -> dict[_Place, Any]:
    """Every attribute and buffer of module and of its submodules, by the submodule's path and the name."""
    found: dict[_Place, Any] = {}
    for path, submodule in module.named_modules():
        for name, value in (*vars(submodule).items(), *submodule._buffers.items()):
            if name not in _TORCHS_OWN:
                found[path, name] = value
    return found


# Tables that torch keeps of a module, and its mode: no memory of forward's.
_TORCHS_OWN = frozenset(vars(nn.Module())) | {"_flat_weights", "_flat_weight_refs"}


def _put(module: nn.Module, place: _Place, value: Any) -> None:
    path, name = place
    submodule = module.get_submodule(path)
    if name in submodule._buffers:
        submodule._buffers[name] = value
    elif hasattr(type(submodule), name):
        delattr(submodule, name)  # the class says what it is before the first run
    else:
        vars(submodule)[name] = value


def copy_to_capture(module: nn.Module) -> nn.Module:
    """A fresh copy of module for one capture: what forward registers as a buffer is an attribute of the copy.

    torch.export refuses buffers that come up in forward, whatever they are for; what is computed there is the same.
    """
    duplicate = fresh_copy(module)
    for submodule in duplicate.modules():
        # Emptied ones too: torch.export takes no new tensor in the place of a buffer.
        for name, value in list(submodule._buffers.items()):
            if value is None or value.numel() == 0:
                _keep_as_attribute(submodule, name, value)
        vars(submodule)["register_buffer"] = functools.partial(_keep_as_attribute, submodule)
    return duplicate


def _keep_as_attribute(
    submodule: nn.Module, name: str, value: Tensor | None, persistent: bool = True
) -> None:
    submodule._buffers.pop(name, None)
    submodule._non_persistent_buffers_set.discard(name)
    vars(submodule)[name] = value


def _nothing(value: Any) -> Any:
    """What an attribute like value usually is before the first run: None; 0 for a number; empty for a container."""
    if isinstance(value, bool | int | float | str | dict | list | set):
        return type(value)()
    return None


def _nothing_in_it(value: Any) -> Any:
    """The same kind as value without anything in it: for a forward that looks at its shape."""
    if isinstance(value, Tensor):
        return value.new_empty((0,) * value.dim())
    if isinstance(value, tuple):
        return torch.Size() if isinstance(value, torch.Size) else ()
    if isinstance(value, bool | int | float):
        return type(value)(-1)
    return _nothing(value)
