"""Pads. Reflecting, replicating and circular ones copy entries, so every map passes. A constant one writes
its value v after the map would have acted: into its producer v becomes a * v + c, into its
consumers (v - c) / a, which must be one number.
"""

from typing import Any

import torch

from foldserve.models.export.fold.affine import Affine
from foldserve.models.export.fold.graph import aten, describe, rank_of, shape_of, static
from foldserve.models.export.fold.plan import Edit, NotFoldable
from foldserve.models.export.fold.rule import Alternative, ConsumerRule, Goal, Match, ProducerRule, Propagated
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


def _amounts(match: Match) -> dict[int, tuple[int, int]]:
    """(before, after) by axis, for the axes that are padded or cropped."""
    values = match.arguments
    flat = values["pad"] if "pad" in values else values["padding"]
    if not all(isinstance(amount, int) for amount in flat):
        raise NotFoldable(f"{describe(match.call)} pads by a dynamic amount")
    last = rank_of(match.call) - 1
    pairs = {last - i: (flat[2 * i], flat[2 * i + 1]) for i in range(len(flat) // 2)}
    return {axis: pair for axis, pair in pairs.items() if pair != (0, 0)}


def _writes_a_value(match: Match) -> bool:
    return match.call.target in _CONSTANT or match.arguments.get("mode") == "constant"


def _pads(match: Match) -> bool:
    """False for a pure crop, which writes nothing."""
    return any(amount > 0 for pair in _amounts(match).values() for amount in pair)


def _value(match: Match) -> float:
    return float(match.arguments["value"] or 0.0)


def _why_not(match: Match) -> str | None:
    amounts = _amounts(match)
    shared = [axis for axis in match.affine.axes if axis in amounts]
    if not shared:
        return None
    if not _writes_a_value(match) or len(amounts) > 1 or min(amounts[shared[0]]) < 0:
        return f"{describe(match.call)} pads the norm's axis"
    return None


def _one_number(match: Match, numbers: torch.Tensor) -> float:
    value = float(numbers.flatten()[0])
    if not bool((numbers == value).all()) or not bool(numbers.isfinite().all()):
        raise NotFoldable(
            f"{describe(match.call)} writes one value, and the norm needs another in each channel"
        )
    return value


def _new_value(match: Match, value: float) -> tuple[Edit, ...]:
    return () if value == _value(match) else (match.rewrite(value=value),)


def _alternatives(match: Match) -> list[Alternative]:
    amounts, affine = _amounts(match), match.affine
    source = match.node(first(match))
    edits: tuple[Edit, ...] = ()
    if _writes_a_value(match) and _pads(match):
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
        edits = _new_value(match, _one_number(match, outer.scale * _value(match) + outer.shift))
    return [Alternative(edits, (Goal(source, affine, match.call),))]


def _propagated(match: Match) -> Propagated:
    amounts, affine = _amounts(match), match.affine
    if not _writes_a_value(match) or not _pads(match):
        return Propagated(outputs={None: affine})
    for axis in affine.axes:
        if axis in amounts:
            total = static(shape_of(match.call)[axis])
            assert total is not None, "a varying axis is static"
            return Propagated(
                outputs={None: affine.padded(axis, amounts[axis][0], affine.scale.shape[axis], total)}
            )
    value = _one_number(match, (_value(match) - affine.shift) / affine.scale)
    return Propagated(_new_value(match, value), {None: affine})


def _consumers_why_not(match: Match) -> str | None:
    if len(match.inputs) != 1:
        return f"{describe(match.call)} takes it twice"
    return _why_not(match)


_TARGETS: frozenset[Any] = _CONSTANT | _COPYING | {aten.pad.default}
PAD_INTO_PRODUCER = (ProducerRule("pad", _TARGETS, _why_not, _alternatives),)
PAD_INTO_CONSUMERS = (ConsumerRule("pad", _TARGETS, _consumers_why_not, _propagated),)
