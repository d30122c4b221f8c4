"""Operations that commute with y = a * x + c: the map passes through them, either way, and no weight changes.

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
from foldserve.models.export.fold.rule import Alternative, ConsumerRule, Goal, Match, ProducerRule, Propagated


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

    def into_producer(self) -> ProducerRule:
        def alternatives(match: Match) -> list[Alternative]:
            return [Alternative(goals=(Goal(match.node(first(match)), self.to_input(match), match.call),))]

        return ProducerRule(self.name, self.targets, self.why_not, alternatives)

    def into_consumers(self) -> ConsumerRule:
        def why_not(match: Match) -> str | None:
            if len(match.inputs) != 1 or match.arguments[first(match)] not in match.inputs:
                return f"{describe(match.call)} takes it as something else than its {first(match)}"
            return self.why_not(match)

        def propagated(match: Match) -> Propagated:
            return Propagated(outputs={0 if has_parts(match) else None: self.to_output(match)})

        return ConsumerRule(self.name, self.targets, why_not, propagated)


def first(match: Match) -> str:
    """The name of the call's first argument."""
    target: Any = match.call.target
    name: str = target._schema.arguments[0].name
    return name


def has_parts(match: Match) -> bool:
    target: Any = match.call.target
    return len(target._schema.returns) > 1


def same(match: Match) -> Affine:
    return match.affine


def _mixes(match: Match, axes: tuple[int, ...]) -> str | None:
    """The reason when the map varies along one of the axes whose entries the call combines."""
    if any(axis in axes for axis in match.affine.axes):
        return f"{describe(match.call)} combines entries along the norm's axis"
    return None


def _last_axes(count: int) -> Callable[[Match], str | None]:
    def why_not(match: Match) -> str | None:
        rank = match.affine.rank
        return _mixes(match, tuple(range(rank - count, rank)))

    return why_not


def _avg_pool(count: int) -> Callable[[Match], str | None]:
    def why_not(match: Match) -> str | None:
        values = match.arguments
        padded = any(amount != 0 for amount in values["padding"]) and values["count_include_pad"]
        if match.affine.has_shift and (padded or values.get("divisor_override") is not None):
            return f"the norm shifts, and {describe(match.call)} counts padded zeros"
        return _last_axes(count)(match)

    return why_not


def _only_the_first_output(match: Match) -> bool:
    return not has_parts(match) or (set(parts(match.call)) <= {0} and match.output in (0, None))


def _maximum(axes_of: Callable[[Match], str | None]) -> Callable[[Match], str | None]:
    def why_not(match: Match) -> str | None:
        if not _only_the_first_output(match):
            return f"the indices that {describe(match.call)} returns are read too"
        if not match.affine.keeps_order:
            return f"the norm has a negative scale, which {describe(match.call)} does not commute with"
        return axes_of(match)

    return why_not


def _homogeneous(match: Match) -> str | None:
    if match.affine.has_shift:
        return f"the norm shifts, which {describe(match.call)} does not commute with"
    if not match.affine.keeps_order:
        return f"the norm has a negative scale, which {describe(match.call)} does not commute with"
    return None


def _identity(match: Match) -> str | None:
    values = match.arguments
    if values.get("train"):
        return f"{describe(match.call)} is in training mode"
    source = match.node(first(match))
    if dtype_of(source) != dtype_of(match.call):
        return f"{describe(match.call)} changes the dtype, which rounds"
    return None


def _reduced_axes(match: Match) -> tuple[int, ...]:
    """The axes of the first argument that a mean, sum or maximum over dimensions reduces."""
    rank = rank_of(match.node("self"))
    dims = match.arguments["dim"]
    if dims is None or dims == []:
        return tuple(range(rank))
    return tuple(axis_in(dim, rank) for dim in (dims if isinstance(dims, (list, tuple)) else [dims]))


def _reduce_to_input(match: Match) -> Affine:
    axes = _reduced_axes(match)
    if match.arguments["keepdim"]:
        affine = match.affine
        if any(axis in axes for axis in affine.axes):
            raise NotFoldable(f"{describe(match.call)} combines entries along the norm's axis")
    else:
        shape = iter(match.affine.scale.shape)
        full = [1 if axis in axes else next(shape) for axis in range(rank_of(match.node("self")))]
        affine = match.affine.map(lambda tensor: tensor.reshape(full))
    return _unsummed(match, affine, into_producer=True)


def _reduce_to_output(match: Match) -> Affine:
    axes = _reduced_axes(match)
    if any(axis in axes for axis in match.affine.axes):
        raise NotFoldable(f"{describe(match.call)} combines entries along the norm's axis")
    affine = _unsummed(match, match.affine, into_producer=False)
    if match.arguments["keepdim"]:
        return affine
    kept = [size for axis, size in enumerate(affine.scale.shape) if axis not in axes]
    return affine.map(lambda tensor: tensor.reshape(kept))


def _unsummed(match: Match, affine: Affine, into_producer: bool) -> Affine:
    """For a sum, the shift is added once per entry: divide (into the producer) or multiply it by their number."""
    if match.call.target is not aten.sum.dim_IntList or not affine.has_shift:
        return affine
    count = 1
    for axis in _reduced_axes(match):
        size = static(shape_of(match.node("self"))[axis])
        if not size:
            raise NotFoldable(f"the norm shifts, and {describe(match.call)} adds a dynamic number of entries")
        count *= size
    return affine.with_shift(affine.shift / count if into_producer else affine.shift * count)


def _always(match: Match) -> str | None:
    return None


def _grid_sample(match: Match) -> str | None:
    zeros = match.arguments["padding_mode"] == 0
    if zeros and match.affine.has_shift:
        return f"the norm shifts, and {describe(match.call)} pads with zeros"
    rank = match.affine.rank
    return _mixes(match, tuple(range(2, rank)))


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
