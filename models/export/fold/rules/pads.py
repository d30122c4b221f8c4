"""Pads. Reflecting, replicating and circular ones copy entries, so every map passes. A constant one writes
its value v after the map would have acted: upwards v becomes a * v + c, downwards (v - c) / a, which must be
one number.
"""

from typing import Any

import torch

from foldserve.models.export.fold.affine import Affine
from foldserve.models.export.fold.graph import aten, describe, rank_of, shape_of, static
from foldserve.models.export.fold.plan import Edit, NotFoldable
from foldserve.models.export.fold.rule import Alternative, DownRule, Goal, Match, Propagated, UpRule
from foldserve.models.export.fold.rules.commuting import first

_CONSTANT = frozenset({aten.constant_pad_nd.default})
_COPYING = frozenset(
    {
        aten.reflection_pad1d.default,
        aten.reflection_pad2d.default,
        aten.reflection_pad3d.default,
        aten.replication_pad1d.default,
        aten.replication_pad2d.default,
        aten.replication_pad3d.default,
    }
)


def _amounts(site: Match) -> dict[int, tuple[int, int]]:
    """(before, after) by axis, for the axes that are padded or cropped."""
    values = site.arguments
    flat = values["pad"] if "pad" in values else values["padding"]
    if not all(isinstance(amount, int) for amount in flat):
        raise NotFoldable(f"{describe(site.call)} pads by a dynamic amount")
    last = rank_of(site.call) - 1
    pairs = {last - i: (flat[2 * i], flat[2 * i + 1]) for i in range(len(flat) // 2)}
    return {axis: pair for axis, pair in pairs.items() if pair != (0, 0)}


def _writes_a_value(site: Match) -> bool:
    return site.call.target in _CONSTANT or site.arguments.get("mode") == "constant"


def _pads(site: Match) -> bool:
    """False for a pure crop, which writes nothing."""
    return any(amount > 0 for pair in _amounts(site).values() for amount in pair)


def _value(site: Match) -> float:
    return float(site.arguments["value"] or 0.0)


def _why_not(site: Match) -> str | None:
    amounts = _amounts(site)
    shared = [axis for axis in site.affine.axes if axis in amounts]
    if not shared:
        return None
    if not _writes_a_value(site) or len(amounts) > 1 or min(amounts[shared[0]]) < 0:
        return f"{describe(site.call)} pads the norm's axis"
    return None


def _one_number(site: Match, numbers: torch.Tensor) -> float:
    value = float(numbers.flatten()[0])
    if not bool((numbers == value).all()) or not bool(numbers.isfinite().all()):
        raise NotFoldable(
            f"{describe(site.call)} writes one value, and the norm needs another in each channel"
        )
    return value


def _new_value(site: Match, value: float) -> tuple[Edit, ...]:
    return () if value == _value(site) else (site.rewrite(value=value),)


def _steps(site: Match) -> list[Alternative]:
    amounts, affine = _amounts(site), site.affine
    source = site.node(first(site))
    edits: tuple[Edit, ...] = ()
    if _writes_a_value(site) and _pads(site):
        outer = affine
        for axis in affine.axes:
            if axis in amounts:
                before, after = amounts[axis]
                total = affine.scale.shape[axis]
                rim = [
                    tensor.index_select(axis, torch.tensor([*range(before), *range(total - after, total)]))
                    for tensor in (affine.scale, affine.shift)
                ]
                outer = Affine(*rim)
                affine = affine.cut(axis, before, total - before - after)
        edits = _new_value(site, _one_number(site, outer.scale * _value(site) + outer.shift))
    return [Alternative(edits, (Goal(source, affine, site.call),))]


def _moved(site: Match) -> Propagated:
    amounts, affine = _amounts(site), site.affine
    if not _writes_a_value(site) or not _pads(site):
        return Propagated(outputs={None: affine})
    for axis in affine.axes:
        if axis in amounts:
            total = static(shape_of(site.call)[axis])
            assert total is not None, "a varying axis is static"
            return Propagated(
                outputs={None: affine.padded(axis, amounts[axis][0], affine.scale.shape[axis], total)}
            )
    value = _one_number(site, (_value(site) - affine.shift) / affine.scale)
    return Propagated(_new_value(site, value), {None: affine})


def _down_why_not(site: Match) -> str | None:
    if len(site.inputs) != 1:
        return f"{describe(site.call)} takes it twice"
    return _why_not(site)


_TARGETS: frozenset[Any] = _CONSTANT | _COPYING | {aten.pad.default}
PAD_UP = (UpRule("pad", _TARGETS, _why_not, _steps),)
PAD_DOWN = (DownRule("pad", _TARGETS, _down_why_not, _moved),)
