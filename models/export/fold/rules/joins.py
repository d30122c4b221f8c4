"""Calls that join tensors (cat, stack) and those that read a part of one (slice, select, split, chunk, unbind).

Through a join to its producers: each operand takes its own part of the map. To its consumers: the operands' maps are
joined, with the identity where an operand has none.
Through a part to its producer, along the axis that is cut: the whole takes the map there and the identity elsewhere,
if whoever else reads the whole reads other entries. To its consumers: the part takes its part of the map.
"""

from dataclasses import dataclass

import torch
from torch import fx

from foldserve.models.export.fold.affine import Affine, common_shape
from foldserve.models.export.fold.graph import (
    arguments,
    aten,
    axis_in,
    describe,
    is_call,
    is_tensor,
    parts,
    rank_of,
    readers,
    shape_of,
    static,
)
from foldserve.models.export.fold.plan import NotFoldable
from foldserve.models.export.fold.rule import Alternative, ConsumerRule, Goal, Match, ProducerRule, Propagated

_JOINS = frozenset({aten.cat.default, aten.stack.default})
_SPLITS = frozenset(
    {
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.chunk.default,
        aten.unbind.int,
        aten.tensor_split.sections,
        aten.tensor_split.indices,
    }
)
_DROPS_AXIS = frozenset({aten.select.int, aten.unbind.int})
_PARTS = _SPLITS | {aten.slice.Tensor, aten.select.int, aten.narrow.default}


@dataclass(frozen=True)
class Part:
    """Entries [start, start + size) of an axis of whole. start None: not known before the graph runs."""

    whole: fx.Node
    axis: int
    start: int | None
    size: int | None
    keeps_axis: bool

    def apart_from(self, other: "Part") -> bool:
        """True when the two surely read different entries."""
        if self.axis != other.axis or None in (self.start, self.size, other.start, other.size):
            return False
        assert self.start is not None, "checked above"
        assert self.size is not None, "checked above"
        assert other.start is not None, "checked above"
        assert other.size is not None, "checked above"
        return self.start + self.size <= other.start or other.start + other.size <= self.start


def part_of(call: fx.Node, output: int | None, value: fx.Node) -> Part:
    """Which part of its argument the output of a slice, select or split is."""
    values = arguments(call)
    whole = values["self"]
    axis = axis_in(values["dim"], rank_of(whole))
    total = static(shape_of(whole)[axis])
    if call.target in _DROPS_AXIS:
        index = values["index"] if call.target is aten.select.int else output
        if not isinstance(index, int) or total is None:
            return Part(whole, axis, None, None, keeps_axis=False)
        return Part(whole, axis, index % total, 1, keeps_axis=False)
    size = static(shape_of(value)[axis])
    start: int | None = None
    if call.target is aten.slice.Tensor:
        first = 0 if values["start"] is None else values["start"]
        if isinstance(first, int) and total is not None and values["step"] == 1:
            start = min(max(first + total if first < 0 else first, 0), total)
    elif call.target is aten.narrow.default:
        first = values["start"]
        start = first % total if isinstance(first, int) and total is not None else None
    elif output is not None:
        before = [static(size) for size in _sizes_before(call, output, axis)]
        start = None if None in before else sum(size for size in before if size is not None)
    return Part(whole, axis, start, size, keeps_axis=True)


def _sizes_before(call: fx.Node, output: int, axis: int) -> list[int | torch.SymInt]:
    """The sizes of the outputs of a split that come before output; its metadata lists them all."""
    return [piece.shape[axis] for piece in call.meta["val"][:output]]


def _other_parts(whole: fx.Node, call: fx.Node, output: int | None, value: fx.Node) -> list[Part]:
    """What the other readers of whole read. Raises NotFoldable when one reads all of it."""
    found = []
    for reader in readers(whole):
        if not is_call(reader, *_PARTS) or arguments(reader)["self"] is not whole:
            raise NotFoldable(f"{describe(whole)} is also read by {describe(reader)}")
        if reader.target in _SPLITS:
            for index, nodes in parts(reader).items():
                found += [part_of(reader, index, node) for node in nodes if node is not value]
        elif reader is not call:
            found.append(part_of(reader, None, reader))
    return found


def _part_alternatives(match: Match) -> list[Alternative]:
    part = part_of(match.call, match.output, match.value)
    others = _other_parts(part.whole, match.call, match.output, match.value)
    lifted = match.affine
    if not part.keeps_axis:
        lifted = lifted.map(lambda tensor: tensor.unsqueeze(part.axis))
    alternatives = []
    if not others and part.axis not in lifted.axes:
        alternatives.append(Alternative(goals=(Goal(part.whole, lifted, None),)))
    total = static(shape_of(part.whole)[part.axis])
    if part.start is not None and part.size is not None and total is not None:
        if all(part.apart_from(other) for other in others):
            padded = lifted.padded(part.axis, part.start, part.size, total)
            alternatives.append(Alternative(goals=(Goal(part.whole, padded, None),)))
        elif not alternatives:
            raise NotFoldable(f"{describe(part.whole)} is also read where {describe(match.call)} reads it")
    if not alternatives:
        raise NotFoldable(
            f"{describe(part.whole)} is also read elsewhere, and {describe(match.call)} has a dynamic place"
        )
    return alternatives


def _part_propagated(match: Match) -> Propagated:
    outputs: dict[int | None, Affine] = {}
    values = parts(match.call) if match.call.target in _SPLITS else {None: [match.call]}
    for output, nodes in values.items():
        part = part_of(match.call, output, nodes[0])
        cut = match.affine
        if part.axis in cut.axes:
            if part.start is None or part.size is None:
                raise NotFoldable(f"{describe(match.call)} reads a dynamic place of the norm's axis")
            cut = cut.cut(part.axis, part.start, part.size)
        if not part.keeps_axis:
            cut = cut.map(lambda tensor, axis=part.axis: tensor.squeeze(axis))  # type: ignore[misc]
        outputs[output] = cut
    return Propagated(outputs=outputs)


def _part_consumers_why_not(match: Match) -> str | None:
    if match.arguments["self"] not in match.inputs:
        return f"{describe(match.call)} takes it as an index"
    return None


def _operands(match: Match) -> tuple[list[fx.Node], int]:
    """The joined tensors and the axis, in the output, along which they are joined."""
    operands = list(match.arguments["tensors"])
    axis = axis_in(match.arguments["dim"], rank_of(match.call))
    expected = rank_of(match.call) - (match.call.target is aten.stack.default)
    if not all(is_tensor(operand) and rank_of(operand) == expected for operand in operands):
        raise NotFoldable(f"{describe(match.call)} joins tensors of different ranks")
    return operands, axis


def _sizes(match: Match, operands: list[fx.Node], axis: int) -> list[int | None]:
    if match.call.target is aten.stack.default:
        return [1] * len(operands)
    return [static(shape_of(operand)[axis]) for operand in operands]


def _join_alternatives(match: Match) -> list[Alternative]:
    operands, axis = _operands(match)
    goals, start = [], 0
    sizes = _sizes(match, operands, axis)
    for operand, size in zip(operands, sizes, strict=True):
        mine = match.affine
        if axis in match.affine.axes:
            if size is None:
                raise NotFoldable(f"{describe(match.call)} joins along the norm's axis, by dynamic sizes")
            mine = match.affine.cut(axis, start, size)
            start += size
        if match.call.target is aten.stack.default:
            mine = mine.map(lambda tensor: tensor.squeeze(axis))
        goals.append(Goal(operand, mine, match.call))
    return [Alternative(goals=tuple(goals))]


def _join_propagated(match: Match) -> Propagated:
    operands, axis = _operands(match)
    rank = rank_of(match.call)
    maps = []
    for operand in operands:
        mine = match.inputs.get(operand)
        if mine is None:
            maps.append(Affine.identity(rank))
        else:
            stacked = match.call.target is aten.stack.default
            maps.append(mine.map(lambda tensor: tensor.unsqueeze(axis)) if stacked else mine)
    sizes = _sizes(match, operands, axis)
    if None in sizes:
        if all(torch.equal(m.scale, maps[0].scale) and torch.equal(m.shift, maps[0].shift) for m in maps):
            return Propagated(outputs={None: maps[0]})
        raise NotFoldable(f"{describe(match.call)} joins it with others by dynamic sizes")
    shape = common_shape(*(m.scale.narrow(axis, 0, 1) for m in maps))
    pieces = []
    for mine, size in zip(maps, sizes, strict=True):
        assert size is not None, "dynamic sizes are refused above"
        shape[axis] = size
        pieces.append((mine.scale.expand(shape), mine.shift.expand(shape)))
    scale, shift = (torch.cat(tensors, axis) for tensors in zip(*pieces, strict=True))
    return Propagated(outputs={None: Affine.of(scale, shift)})


def _always(match: Match) -> str | None:
    return None


JOIN_INTO_PRODUCER = (
    ProducerRule("join", _JOINS, _always, _join_alternatives),
    ProducerRule("part", _PARTS, _always, _part_alternatives),
)
JOIN_INTO_CONSUMERS = (
    ConsumerRule("join", _JOINS, _always, _join_propagated),
    ConsumerRule("part", _PARTS, _part_consumers_why_not, _part_propagated),
)
