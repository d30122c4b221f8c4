"""Moves of entries: views, permutations, shuffles, repeats. They only move numbers, so y = a * x + c moves with them.

The arithmetic of views is in views.py. Permutations move axes; shuffles reorder the entries of one axis; pixel shuffles
trade blocks of channels for pixels; repeats read an entry several times, which must then be wanted the same way.
"""

from typing import Any

import torch

from foldserve.models.export.fold.affine import Affine
from foldserve.models.export.fold.graph import aten, axis_in, describe, rank_of, shape_of, static
from foldserve.models.export.fold.plan import NotFoldable
from foldserve.models.export.fold.rule import Match
from foldserve.models.export.fold.rules.commuting import Commuting, first
from foldserve.models.export.fold.rules.views import through_view


def _view_to_input(match: Match) -> Affine:
    source = match.node(first(match))
    return through_view(match.affine, shape_of(match.value), shape_of(source))


def _view_to_output(match: Match) -> Affine:
    source = match.node(first(match))
    return through_view(match.affine, shape_of(source), shape_of(match.call))


def _permutation(match: Match) -> list[int]:
    """perm, as in output axis i = input axis perm[i]."""
    values, rank = match.arguments, rank_of(match.call)
    if match.call.target is aten.permute.default:
        return [axis_in(dim, rank) for dim in values["dims"]]
    perm = list(range(rank))
    if match.call.target is aten.t.default:
        return perm[::-1]
    first, second = axis_in(values["dim0"], rank), axis_in(values["dim1"], rank)
    perm[first], perm[second] = second, first
    return perm


def _permute_to_input(match: Match) -> Affine:
    perm = _permutation(match)
    inverse = [perm.index(axis) for axis in range(len(perm))]
    return match.affine.map(lambda tensor: tensor.permute(inverse))


def _permute_to_output(match: Match) -> Affine:
    perm = _permutation(match)
    return match.affine.map(lambda tensor: tensor.permute(perm))


def _shuffled(match: Match) -> tuple[int, torch.Tensor]:
    """(axis, index) with output[..., i, ...] = input[..., index[i], ...] along axis."""
    values, target = match.arguments, match.call.target
    source = match.node("self")
    axis = 1
    if target in (aten.flip.default, aten.roll.default):
        dims = [axis_in(dim, rank_of(source)) for dim in values["dims"]]
        varying = [axis for axis in match.affine.axes if axis in dims]
        if len(varying) > 1 or (target is aten.roll.default and not dims):
            raise NotFoldable(f"{describe(match.call)} moves several axes of the norm")
        axis = varying[0] if varying else dims[0]
    if target is aten.index_select.default:
        axis = axis_in(values["dim"], rank_of(source))
    size = static(shape_of(source)[axis])
    if size is None:
        if axis in match.affine.axes:
            raise NotFoldable(f"{describe(match.call)} reorders an axis of dynamic size")
        return axis, torch.zeros(1, dtype=torch.long)
    index = torch.arange(size)
    if target is aten.flip.default:
        return axis, index.flip(0)
    if target is aten.roll.default:
        # A dim may be named twice, and is then rolled twice.
        shifts = [shift for dim, shift in zip(dims, values["shifts"], strict=True) if dim == axis]
        if not all(isinstance(shift, int) for shift in shifts):
            raise NotFoldable(f"{describe(match.call)} rolls by a dynamic number")
        return axis, index.roll(sum(shifts))
    if target is aten.index_select.default:
        chosen = match.constants.value(values["index"])
        if chosen is None:
            raise NotFoldable(f"{describe(match.call)} picks by an index that is not a constant")
        return axis, chosen.reshape(-1).long() % size
    return axis, index.reshape(values["groups"], -1).t().reshape(-1)


def _shuffle_to_output(match: Match) -> Affine:
    axis, index = _shuffled(match)
    if axis not in match.affine.axes:
        return match.affine
    return match.affine.map(lambda tensor: tensor.index_select(axis, index))


def _shuffle_to_input(match: Match) -> Affine:
    axis, index = _shuffled(match)
    if axis not in match.affine.axes:
        return match.affine
    size = static(shape_of(match.node("self"))[axis])
    assert size is not None, "_shuffled refuses dynamic axes that vary"
    shape = list(match.affine.scale.shape)
    shape[axis] = size
    ones = torch.ones(shape, dtype=torch.float64)
    moved = Affine(
        ones.index_copy(axis, index, match.affine.scale),
        torch.zeros_like(ones).index_copy(axis, index, match.affine.shift),
    )
    # An entry that is picked twice must be wanted the same way twice.
    for wanted, made in ((match.affine.scale, moved.scale), (match.affine.shift, moved.shift)):
        if not torch.equal(made.index_select(axis, index), wanted):
            raise NotFoldable(f"{describe(match.call)} repeats channels that the norm treats differently")
    return Affine.of(moved.scale, moved.shift)


def _pixel_axis(match: Match, rank: int) -> int:
    axis = rank - 3
    if any(mine != axis for mine in match.affine.axes):
        raise NotFoldable(
            f"{describe(match.call)} moves pixels into channels, and the norm varies over pixels"
        )
    return axis


def _cut_axis(tensor: torch.Tensor, axis: int, sizes: tuple[int, int]) -> torch.Tensor:
    return tensor.reshape(*tensor.shape[:axis], *sizes, *tensor.shape[axis + 1 :])


def _blocks_merged(match: Match, axis: int, block: int) -> Affine:
    """The map with each run of block channels taken as one; they must agree."""
    if axis not in match.affine.axes:
        return match.affine
    blocks = match.affine.map(lambda tensor: _cut_axis(tensor, axis, (-1, block)))
    if axis + 1 in blocks.axes:
        raise NotFoldable(
            f"{describe(match.call)} spreads channels over pixels, and the norm treats them differently"
        )
    return blocks.map(lambda tensor: tensor.squeeze(axis + 1))


def _blocks_spread(match: Match, axis: int, block: int) -> Affine:
    """The map with each channel repeated block times."""
    if axis not in match.affine.axes:
        return match.affine
    return match.affine.map(lambda tensor: tensor.repeat_interleave(block, axis))


def _pixels(match: Match) -> tuple[int, int]:
    values = match.arguments
    factor = values[
        "upscale_factor" if match.call.target is aten.pixel_shuffle.default else "downscale_factor"
    ]
    return _pixel_axis(match, rank_of(match.call)), factor * factor


def _expand_to_input(match: Match) -> Affine:
    source = match.node("self")
    added = rank_of(match.call) - rank_of(source)
    repeated = _repeated_axes(match)
    if any(axis in repeated for axis in match.affine.axes):
        raise NotFoldable(f"{describe(match.call)} repeats along the norm's axis")
    return match.affine.map(lambda tensor: tensor.reshape(tensor.shape[added:]))


def _expand_to_output(match: Match) -> Affine:
    source = match.node("self")
    added = rank_of(match.call) - rank_of(source)
    lifted = match.affine.map(lambda tensor: tensor.reshape([1] * added + list(tensor.shape)))
    if match.call.target is aten.expand.default:
        return lifted
    for axis in lifted.axes:
        count = _repeats(match)[axis]
        if not isinstance(count, int):
            raise NotFoldable(f"{describe(match.call)} repeats the norm's axis a dynamic number of times")
        lifted = lifted.map(lambda tensor, axis=axis, count=count: torch.cat([tensor] * count, axis))  # type: ignore[misc]
    return lifted


def _repeats(match: Match) -> list[Any]:
    counts = list(match.arguments["repeats" if match.call.target is aten.repeat.default else "dims"])
    return [1] * (rank_of(match.call) - len(counts)) + counts


def _repeated_axes(match: Match) -> set[int]:
    """The output axes along which one input entry is read more than once."""
    source = match.node("self")
    added = rank_of(match.call) - rank_of(source)
    if match.call.target is not aten.expand.default:
        return {axis for axis, count in enumerate(_repeats(match)) if count != 1 or axis < added}
    sizes = shape_of(source)
    return {axis for axis in range(rank_of(match.call)) if axis < added or static(sizes[axis - added]) == 1}


def _always(match: Match) -> str | None:
    return None


INDEX_MAPS = (
    Commuting(
        "view",
        frozenset(
            {
                aten.view.default,
                aten.reshape.default,
                aten._unsafe_view.default,
                aten.flatten.using_ints,
                aten.unflatten.int,
                aten.squeeze.default,
                aten.squeeze.dim,
                aten.squeeze.dims,
                aten.unsqueeze.default,
                aten.view_as.default,
                aten.reshape_as.default,
            }
        ),
        _always,
        _view_to_input,
        _view_to_output,
    ),
    Commuting(
        "permute",
        frozenset({aten.permute.default, aten.transpose.int, aten.t.default}),
        _always,
        _permute_to_input,
        _permute_to_output,
    ),
    Commuting(
        "reorder",
        frozenset(
            {aten.channel_shuffle.default, aten.flip.default, aten.roll.default, aten.index_select.default}
        ),
        _always,
        _shuffle_to_input,
        _shuffle_to_output,
    ),
    Commuting(
        "pixel shuffle",
        frozenset({aten.pixel_shuffle.default}),
        _always,
        lambda match: _blocks_spread(match, *_pixels(match)),
        lambda match: _blocks_merged(match, *_pixels(match)),
    ),
    Commuting(
        "pixel unshuffle",
        frozenset({aten.pixel_unshuffle.default}),
        _always,
        lambda match: _blocks_merged(match, *_pixels(match)),
        lambda match: _blocks_spread(match, *_pixels(match)),
    ),
    Commuting(
        "expand",
        frozenset({aten.expand.default, aten.repeat.default, aten.tile.default}),
        _always,
        _expand_to_input,
        _expand_to_output,
    ),
)
