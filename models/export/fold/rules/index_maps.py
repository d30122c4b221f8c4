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


def _view_to_input(site: Match) -> Affine:
    source = site.node(first(site))
    return through_view(site.affine, shape_of(site.value), shape_of(source))


def _view_to_output(site: Match) -> Affine:
    source = site.node(first(site))
    return through_view(site.affine, shape_of(source), shape_of(site.call))


def _permutation(site: Match) -> list[int]:
    """perm, as in output axis i = input axis perm[i]."""
    values, rank = site.arguments, rank_of(site.call)
    if site.call.target is aten.permute.default:
        return [axis_in(dim, rank) for dim in values["dims"]]
    perm = list(range(rank))
    if site.call.target is aten.t.default:
        return perm[::-1]
    first, second = axis_in(values["dim0"], rank), axis_in(values["dim1"], rank)
    perm[first], perm[second] = second, first
    return perm


def _permute_to_input(site: Match) -> Affine:
    perm = _permutation(site)
    inverse = [perm.index(axis) for axis in range(len(perm))]
    return site.affine.map(lambda tensor: tensor.permute(inverse))


def _permute_to_output(site: Match) -> Affine:
    perm = _permutation(site)
    return site.affine.map(lambda tensor: tensor.permute(perm))


def _shuffled(site: Match) -> tuple[int, torch.Tensor]:
    """(axis, index) with output[..., i, ...] = input[..., index[i], ...] along axis."""
    values, target = site.arguments, site.call.target
    source = site.node("self")
    axis = 1
    if target in (aten.flip.default, aten.roll.default):
        dims = [axis_in(dim, rank_of(source)) for dim in values["dims"]]
        varying = [axis for axis in site.affine.axes if axis in dims]
        if len(varying) > 1 or (target is aten.roll.default and not dims):
            raise NotFoldable(f"{describe(site.call)} moves several axes of the norm")
        axis = varying[0] if varying else dims[0]
    if target is aten.index_select.default:
        axis = axis_in(values["dim"], rank_of(source))
    size = static(shape_of(source)[axis])
    if size is None:
        if axis in site.affine.axes:
            raise NotFoldable(f"{describe(site.call)} reorders an axis of dynamic size")
        return axis, torch.zeros(1, dtype=torch.long)
    index = torch.arange(size)
    if target is aten.flip.default:
        return axis, index.flip(0)
    if target is aten.roll.default:
        # A dim may be named twice, and is then rolled twice.
        shifts = [shift for dim, shift in zip(dims, values["shifts"], strict=True) if dim == axis]
        if not all(isinstance(shift, int) for shift in shifts):
            raise NotFoldable(f"{describe(site.call)} rolls by a dynamic number")
        return axis, index.roll(sum(shifts))
    if target is aten.index_select.default:
        chosen = site.constants.value(values["index"])
        if chosen is None:
            raise NotFoldable(f"{describe(site.call)} picks by an index that is not a constant")
        return axis, chosen.reshape(-1).long() % size
    return axis, index.reshape(values["groups"], -1).t().reshape(-1)


def _shuffle_to_output(site: Match) -> Affine:
    axis, index = _shuffled(site)
    if axis not in site.affine.axes:
        return site.affine
    return site.affine.map(lambda tensor: tensor.index_select(axis, index))


def _shuffle_to_input(site: Match) -> Affine:
    axis, index = _shuffled(site)
    if axis not in site.affine.axes:
        return site.affine
    size = static(shape_of(site.node("self"))[axis])
    assert size is not None, "_shuffled refuses dynamic axes that vary"
    shape = list(site.affine.scale.shape)
    shape[axis] = size
    ones = torch.ones(shape, dtype=torch.float64)
    moved = Affine(
        ones.index_copy(axis, index, site.affine.scale),
        torch.zeros_like(ones).index_copy(axis, index, site.affine.shift),
    )
    # An entry that is picked twice must be wanted the same way twice.
    for wanted, made in ((site.affine.scale, moved.scale), (site.affine.shift, moved.shift)):
        if not torch.equal(made.index_select(axis, index), wanted):
            raise NotFoldable(f"{describe(site.call)} repeats channels that the norm treats differently")
    return Affine.of(moved.scale, moved.shift)


def _pixel_axis(site: Match, rank: int) -> int:
    axis = rank - 3
    if any(mine != axis for mine in site.affine.axes):
        raise NotFoldable(
            f"{describe(site.call)} moves pixels into channels, and the norm varies over pixels"
        )
    return axis


def _cut_axis(tensor: torch.Tensor, axis: int, sizes: tuple[int, int]) -> torch.Tensor:
    return tensor.reshape(*tensor.shape[:axis], *sizes, *tensor.shape[axis + 1 :])


def _blocks_merged(site: Match, axis: int, block: int) -> Affine:
    """The map with each run of block channels taken as one; they must agree."""
    if axis not in site.affine.axes:
        return site.affine
    blocks = site.affine.map(lambda tensor: _cut_axis(tensor, axis, (-1, block)))
    if axis + 1 in blocks.axes:
        raise NotFoldable(
            f"{describe(site.call)} spreads channels over pixels, and the norm treats them differently"
        )
    return blocks.map(lambda tensor: tensor.squeeze(axis + 1))


def _blocks_spread(site: Match, axis: int, block: int) -> Affine:
    """The map with each channel repeated block times."""
    if axis not in site.affine.axes:
        return site.affine
    return site.affine.map(lambda tensor: tensor.repeat_interleave(block, axis))


def _pixels(site: Match) -> tuple[int, int]:
    values = site.arguments
    factor = values[
        "upscale_factor" if site.call.target is aten.pixel_shuffle.default else "downscale_factor"
    ]
    return _pixel_axis(site, rank_of(site.call)), factor * factor


def _expand_to_input(site: Match) -> Affine:
    source = site.node("self")
    added = rank_of(site.call) - rank_of(source)
    repeated = _repeated_axes(site)
    if any(axis in repeated for axis in site.affine.axes):
        raise NotFoldable(f"{describe(site.call)} repeats along the norm's axis")
    return site.affine.map(lambda tensor: tensor.reshape(tensor.shape[added:]))


def _expand_to_output(site: Match) -> Affine:
    source = site.node("self")
    added = rank_of(site.call) - rank_of(source)
    lifted = site.affine.map(lambda tensor: tensor.reshape([1] * added + list(tensor.shape)))
    if site.call.target is aten.expand.default:
        return lifted
    for axis in lifted.axes:
        count = _repeats(site)[axis]
        if not isinstance(count, int):
            raise NotFoldable(f"{describe(site.call)} repeats the norm's axis a dynamic number of times")
        lifted = lifted.map(lambda tensor, axis=axis, count=count: torch.cat([tensor] * count, axis))  # type: ignore[misc]
    return lifted


def _repeats(site: Match) -> list[Any]:
    counts = list(site.arguments["repeats" if site.call.target is aten.repeat.default else "dims"])
    return [1] * (rank_of(site.call) - len(counts)) + counts


def _repeated_axes(site: Match) -> set[int]:
    """The output axes along which one input entry is read more than once."""
    source = site.node("self")
    added = rank_of(site.call) - rank_of(source)
    if site.call.target is not aten.expand.default:
        return {axis for axis, count in enumerate(_repeats(site)) if count != 1 or axis < added}
    sizes = shape_of(source)
    return {axis for axis in range(rank_of(site.call)) if axis < added or static(sizes[axis - added]) == 1}


def _always(site: Match) -> str | None:
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
        lambda site: _blocks_spread(site, *_pixels(site)),
        lambda site: _blocks_merged(site, *_pixels(site)),
    ),
    Commuting(
        "pixel unshuffle",
        frozenset({aten.pixel_unshuffle.default}),
        _always,
        lambda site: _blocks_merged(site, *_pixels(site)),
        lambda site: _blocks_spread(site, *_pixels(site)),
    ),
    Commuting(
        "expand",
        frozenset({aten.expand.default, aten.repeat.default, aten.tile.default}),
        _always,
        _expand_to_input,
        _expand_to_output,
    ),
)
