"""Operations that commute with y = a * x + c: the map passes through them, up or down, and no weight changes.

    averages    pools, means, resampling, reflecting pads: output = weighted mean of inputs, and the weights sum to 1
    maxima      max pools: the order of the inputs is kept when a >= 0
    homogeneous relu, leaky relu, prelu, abs: f(a * x) = a * f(x) when a >= 0, and only without a shift
    identities  dropout in evaluation, clone, detach, contiguous

All of them act on the map's channels one by one, so the map must not vary along the axes they mix. Moves of
entries (views, permutations, shuffles) are in index_maps.py, joins of several tensors in joins.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from foldserve.models.export.fold.affine import Affine
from foldserve.models.export.fold.graph import (
    aten,
    axis_in,
    describe,
    dtype_of,
    parts,
    rank_of,
    shape_of,
    static,
)
from foldserve.models.export.fold.plan import NotFoldable
from foldserve.models.export.fold.rule import Alternative, DownRule, Goal, Match, Propagated, UpRule


@dataclass(frozen=True)
class Commuting:
    """An operation on its first argument that commutes when why_not gives no reason.

    to_input: the map on the first argument from the one on the output; to_output: the other way. Both may
    refuse.
    """

    name: str
    targets: frozenset[Any]
    why_not: Callable[[Match], str | None]
    to_input: Callable[[Match], Affine]
    to_output: Callable[[Match], Affine]

    def up(self) -> UpRule:
        def steps(site: Match) -> list[Alternative]:
            return [Alternative(demands=(Goal(site.node(first(site)), self.to_input(site), site.call),))]

        return UpRule(self.name, self.targets, self.why_not, steps)

    def down(self) -> DownRule:
        def why_not(site: Match) -> str | None:
            if len(site.inputs) != 1 or site.arguments[first(site)] not in site.inputs:
                return f"{describe(site.call)} takes it as something else than its {first(site)}"
            return self.why_not(site)

        def moved(site: Match) -> Propagated:
            return Propagated(outputs={0 if has_parts(site) else None: self.to_output(site)})

        return DownRule(self.name, self.targets, why_not, moved)


def first(site: Match) -> str:
    """The name of the call's first argument."""
    target: Any = site.call.target
    name: str = target._schema.arguments[0].name
    return name


def has_parts(site: Match) -> bool:
    target: Any = site.call.target
    return len(target._schema.returns) > 1


def same(site: Match) -> Affine:
    return site.affine


def _mixes(site: Match, axes: tuple[int, ...]) -> str | None:
    """The reason when the map varies along one of the axes whose entries the call combines."""
    if any(axis in axes for axis in site.affine.axes):
        return f"{describe(site.call)} combines entries along the norm's axis"
    return None


def _last_axes(count: int) -> Callable[[Match], str | None]:
    def why_not(site: Match) -> str | None:
        rank = site.affine.rank
        return _mixes(site, tuple(range(rank - count, rank)))

    return why_not


def _avg_pool(count: int) -> Callable[[Match], str | None]:
    def why_not(site: Match) -> str | None:
        values = site.arguments
        padded = any(amount != 0 for amount in values["padding"]) and values["count_include_pad"]
        if site.affine.has_shift and (padded or values.get("divisor_override") is not None):
            return f"the norm shifts, and {describe(site.call)} counts padded zeros"
        return _last_axes(count)(site)

    return why_not


def _only_the_first_output(site: Match) -> bool:
    return not has_parts(site) or (set(parts(site.call)) <= {0} and site.output in (0, None))


def _maximum(axes_of: Callable[[Match], str | None]) -> Callable[[Match], str | None]:
    def why_not(site: Match) -> str | None:
        if not _only_the_first_output(site):
            return f"the indices that {describe(site.call)} returns are read too"
        if not site.affine.keeps_order:
            return f"the norm has a negative scale, which {describe(site.call)} does not commute with"
        return axes_of(site)

    return why_not


def _homogeneous(site: Match) -> str | None:
    if site.affine.has_shift:
        return f"the norm shifts, which {describe(site.call)} does not commute with"
    if not site.affine.keeps_order:
        return f"the norm has a negative scale, which {describe(site.call)} does not commute with"
    return None


def _identity(site: Match) -> str | None:
    values = site.arguments
    if values.get("train"):
        return f"{describe(site.call)} is in training mode"
    source = site.node(first(site))
    if dtype_of(source) != dtype_of(site.call):
        return f"{describe(site.call)} changes the dtype, which rounds"
    return None


def _reduced_axes(site: Match) -> tuple[int, ...]:
    """The axes of the first argument that a mean, sum or maximum over dimensions reduces."""
    rank = rank_of(site.node("self"))
    dims = site.arguments["dim"]
    if dims is None or dims == []:
        return tuple(range(rank))
    return tuple(axis_in(dim, rank) for dim in (dims if isinstance(dims, (list, tuple)) else [dims]))


def _reduce_to_input(site: Match) -> Affine:
    axes = _reduced_axes(site)
    if site.arguments["keepdim"]:
        affine = site.affine
        if any(axis in axes for axis in affine.axes):
            raise NotFoldable(f"{describe(site.call)} combines entries along the norm's axis")
    else:
        shape = iter(site.affine.scale.shape)
        full = [1 if axis in axes else next(shape) for axis in range(rank_of(site.node("self")))]
        affine = site.affine.map(lambda tensor: tensor.reshape(full))
    return _unsummed(site, affine, up=True)


def _reduce_to_output(site: Match) -> Affine:
    axes = _reduced_axes(site)
    if any(axis in axes for axis in site.affine.axes):
        raise NotFoldable(f"{describe(site.call)} combines entries along the norm's axis")
    affine = _unsummed(site, site.affine, up=False)
    if site.arguments["keepdim"]:
        return affine
    kept = [size for axis, size in enumerate(affine.scale.shape) if axis not in axes]
    return affine.map(lambda tensor: tensor.reshape(kept))


def _unsummed(site: Match, affine: Affine, up: bool) -> Affine:
    """For a sum, the shift is added once per entry: divide (up) or multiply (down) it by their number."""
    if site.call.target is not aten.sum.dim_IntList or not affine.has_shift:
        return affine
    count = 1
    for axis in _reduced_axes(site):
        size = static(shape_of(site.node("self"))[axis])
        if not size:
            raise NotFoldable(f"the norm shifts, and {describe(site.call)} adds a dynamic number of entries")
        count *= size
    return affine.with_shift(affine.shift / count if up else affine.shift * count)


def _always(site: Match) -> str | None:
    return None


def _grid_sample(site: Match) -> str | None:
    zeros = site.arguments["padding_mode"] == 0
    if zeros and site.affine.has_shift:
        return f"the norm shifts, and {describe(site.call)} pads with zeros"
    rank = site.affine.rank
    return _mixes(site, tuple(range(2, rank)))


def _named(*names: str) -> frozenset[Any]:
    """The overloads aten.NAME.OVERLOAD of names like 'relu.default'."""
    found = []
    for name in names:
        packet, overload = name.split(".")
        found.append(getattr(getattr(aten, packet), overload))
    return frozenset(found)


def _plain(name: str, targets: frozenset[Any], why_not: Callable[[Match], str | None]) -> Commuting:
    return Commuting(name, targets, why_not, same, same)


COMMUTING = (
    _plain(
        "identity",
        _named(
            "clone.default",
            "detach.default",
            "alias.default",
            "contiguous.default",
            "lift_fresh_copy.default",
            "_to_copy.default",
            "dropout.default",
            "feature_dropout.default",
            "alpha_dropout.default",
            "feature_alpha_dropout.default",
        ),
        _identity,
    ),
    _plain(
        "homogeneous",
        _named("relu.default", "leaky_relu.default", "prelu.default", "abs.default"),
        _homogeneous,
    ),
    *(_plain(f"average pool {n}d", _named(f"avg_pool{n}d.default"), _avg_pool(n)) for n in (1, 2, 3)),
    *(
        _plain(
            f"adaptive average pool {n}d",
            _named(f"adaptive_avg_pool{n}d.default", *([f"_adaptive_avg_pool{n}d.default"] if n > 1 else [])),
            _last_axes(n),
        )
        for n in (1, 2, 3)
    ),
    *(
        _plain(
            f"max pool {n}d",
            _named(
                f"max_pool{n}d.default",
                f"max_pool{n}d_with_indices.default",
                f"adaptive_max_pool{n}d.default",
            ),
            _maximum(_last_axes(n)),
        )
        for n in (2, 3)
    ),
    _plain(
        "max pool 1d",
        _named("max_pool1d.default", "max_pool1d_with_indices.default", "adaptive_max_pool1d.default"),
        _maximum(_last_axes(1)),
    ),
    *(
        _plain(
            f"resample {n}d",
            frozenset(
                getattr(getattr(aten, name), overload)
                for name in names
                for overload in ("default", "vec")
                if hasattr(getattr(aten, name), overload)
            ),
            _last_axes(n),
        )
        for n, names in (
            (1, ("upsample_nearest1d", "_upsample_nearest_exact1d", "upsample_linear1d")),
            (
                2,
                (
                    "upsample_nearest2d",
                    "_upsample_nearest_exact2d",
                    "upsample_bilinear2d",
                    "upsample_bicubic2d",
                    "_upsample_bilinear2d_aa",
                    "_upsample_bicubic2d_aa",
                ),
            ),
            (3, ("upsample_nearest3d", "_upsample_nearest_exact3d", "upsample_trilinear3d")),
        )
    ),
    _plain("grid sample", _named("grid_sampler.default"), _grid_sample),
    Commuting("mean", _named("mean.dim"), _always, _reduce_to_input, _reduce_to_output),
    Commuting("sum", _named("sum.dim_IntList"), _always, _reduce_to_input, _reduce_to_output),
    Commuting(
        "maximum over dimensions",
        _named("amax.default", "amin.default", "max.dim", "min.dim"),
        _maximum(_always),
        _reduce_to_input,
        _reduce_to_output,
    ),
)
