"""The network as it was before any run, for each run anew: forward may keep what it made, and what one run leaves
behind must not become part of the next one.

    fresh_copy   a copy, whose parameters are shared
    FreshRuns    the same for one run after the other: a copy serves again where a run has left nothing behind in it

Of 1,000 layers a copy takes longer than the run. Whether one is as it was is looked up, value by value; where that
cannot be told, as of an object of the user's own class, it is not used again.
"""

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn


def fresh_copy(module: nn.Module) -> nn.Module:
    """Return a copy of an eval or double copy (module_copy.py). It shares the parameters, so it costs little memory."""
    return copy.deepcopy(module, {**empty_tables(module), **{id(p): p for p in module.parameters()}})


def empty_tables(module: nn.Module) -> dict[int, Any]:
    """For deepcopy's memo: the dozen empty tables of hooks that each part has. Of each it would make a pickle."""
    return {
        id(value): type(value)()
        for part in module.modules()
        for value in vars(part).values()
        if type(value) in _TABLES and not value
    }


_TABLES = frozenset({dict, OrderedDict, set})


class FreshRuns:
    """Gives one network for one run after the other. module: what it is before a run; only read."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._copied: _Copied | None = None

    def module(self) -> nn.Module:
        """A copy that is as the network was before any run, until the next call."""
        if self._copied is None or not self._copied.is_as_before():
            self._copied = _Copied(self._module)
        return self._copied.module


class _Copied:
    """A fresh copy, part by part beside what it was copied of."""

    def __init__(self, before: nn.Module) -> None:
        self.module = fresh_copy(before)
        self._parts = [
            (part, type(part), dict(part._modules), vars(was))
            for part, was in zip(self.module.modules(), before.modules(), strict=True)
        ]

    def is_as_before(self) -> bool:
        """Whether there surely is nothing in the copy that was not in it before."""
        return all(
            type(part) is kind and part._modules == inner and _same_attributes(vars(part), was)
            for part, kind, inner, was in self._parts
        )


def _same_attributes(attributes: dict[str, Any], before: dict[str, Any]) -> bool:
    return attributes.keys() == before.keys() and all(
        value is before[name] or name == "_modules" or _same(value, before[name])
        for name, value in attributes.items()
    )


def _same(value: Any, before: Any) -> bool:
    if value is before:  # a copy shares what cannot change
        return True
    kind = type(value)
    if kind is not type(before):
        return False
    if kind in _TABLES and not value:
        return not before
    if kind in _NUMBERS_AND_TEXTS:
        return bool(value == before)
    if kind in (dict, OrderedDict):
        return list(map(id, value)) == list(map(id, before)) and all(
            _same(item, before[key]) for key, item in value.items()
        )
    if kind in (list, tuple, torch.Size):
        return len(value) == len(before) and all(map(_same, value, before))
    if kind is set:
        return set(map(id, value)) == set(map(id, before))
    if kind in (Tensor, nn.Parameter):
        return _same_tensor(value, before)
    return False


_NUMBERS_AND_TEXTS = frozenset({bool, int, float, complex, str, bytes})


def _same_tensor(tensor: Tensor, before: Tensor) -> bool:
    return (
        tensor.layout == before.layout == torch.strided
        and tensor.dtype == before.dtype
        and tensor.stride() == before.stride()
        and torch.equal(tensor, before)
    )
