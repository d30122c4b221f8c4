"""Where the entries of an affine map go when a tensor is viewed in another shape.

A view keeps the row-major order. Old and new axes are cut into groups with equal products of sizes, equal for every
value of the symbols. Within a group of static sizes the map is reshaped like the tensor. In a group with a dynamic size
the axes are split at the boundaries that both shapes share, read from the right: (n, 6) seen as (3n, 2) is (n, 3, 2).
A map may then vary along what is static on both sides. All is worked out on the sizes, nothing on an example.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from operator import mul

import sympy  # type: ignore[import-untyped]

from foldserve.models.export.fold.affine import Affine
from foldserve.models.export.fold.graph import Size, expression, static
from foldserve.models.export.fold.plan import NotFoldable

_MIXED = "a view mixes the norm's axis with one of dynamic size"


def _groups(old: Sequence[Size], new: Sequence[Size]) -> list[tuple[range, range]]:
    """Runs of old and new axes that hold the same entries, in order."""

    def products(shape: Sequence[Size]) -> list[sympy.Expr]:
        return list(accumulate((expression(size) for size in shape), mul))

    old_products, new_products = products(old), products(new)
    groups: list[tuple[range, range]] = []
    old_done = new_done = 0
    for i, product in enumerate(old_products, start=1):
        for j in range(new_done, len(new)):
            if sympy.expand(product - new_products[j]) == 0:
                groups.append((range(old_done, i), range(new_done, j + 1)))
                old_done, new_done = i, j + 1
                break
    if old_done < len(old) or new_done < len(
        new
    ):  # trailing axes of size 1, or sizes that cannot be compared
        if groups:
            last_old, last_new = groups.pop()
            old_done, new_done = last_old.start, last_new.start
        groups.append((range(old_done, len(old)), range(new_done, len(new))))
    return groups


def through_view(affine: Affine, old: Sequence[Size], new: Sequence[Size]) -> Affine:
    """The map of a tensor of shape new, when the same entries in shape old have the map affine.

    Raises NotFoldable when that would vary along a dynamic axis.
    """
    for old_axes, new_axes in reversed(_groups(old, new)):  # from the last: the axes before keep their places
        affine = _through_group(affine, old, new, old_axes, new_axes)
    return affine


def _through_group(
    affine: Affine, old: Sequence[Size], new: Sequence[Size], old_axes: range, new_axes: range
) -> Affine:
    """affine with the axes old_axes replaced by new_axes; the axes behind old_axes may be of either shape."""

    def reshaped(map_: Affine, before: range | list[int], sizes: list[int]) -> Affine:
        start = old_axes.start
        return map_.map(lambda t: t.reshape(*t.shape[:start], *sizes, *t.shape[start + len(before) :]))

    def expanded(map_: Affine, sizes: list[int]) -> Affine:
        behind = map_.rank - old_axes.start - len(sizes)
        full = [-1] * old_axes.start + sizes + [-1] * behind
        return Affine(map_.scale.expand(full), map_.shift.expand(full))

    if any(static(size) == 0 for size in (*old, *new)):
        raise NotFoldable("a view has no entries")
    if not any(axis in old_axes for axis in affine.axes):
        return reshaped(affine, old_axes, [1] * len(new_axes))
    old_sizes, new_sizes = (
        [static(shape[a]) for a in axes] for shape, axes in ((old, old_axes), (new, new_axes))
    )
    if None not in old_sizes and None not in new_sizes:
        known = [size for size in old_sizes if size is not None]
        return reshaped(expanded(affine, known), old_axes, [size for size in new_sizes if size is not None])
    factors = _factors(old_sizes, new_sizes)
    held = affine.scale.shape[old_axes.start : old_axes.stop]
    if any(
        size > 1 and size != prod(f.size for f in factors if f.old == axis) for axis, size in enumerate(held)
    ):
        raise NotFoldable(_MIXED)
    split = [f.size if held[f.old] > 1 else 1 for f in factors]
    by_factor = reshaped(affine, old_axes, split)
    varying = {f.new for i, f in enumerate(factors) if by_factor.scale.shape[old_axes.start + i] > 1}
    if any(new_sizes[axis] is None for axis in varying):
        raise NotFoldable(_MIXED)
    full = [f.size if f.new in varying else 1 for f in factors]
    sizes = [prod(full[i] for i, f in enumerate(factors) if f.new == axis) for axis in range(len(new_axes))]
    return reshaped(expanded(by_factor, full), full, sizes)


@dataclass(frozen=True)
class _Factor:
    """A run of size entries that is part of one old and of one new axis."""

    size: int
    old: int
    new: int


def _factors(old: Sequence[int | None], new: Sequence[int | None]) -> list[_Factor]:
    """The common refinement of two row-major shapes with equal products, in order; None is a dynamic size.

    Read from the right, until both sides are dynamic: (n, 6) and (3n, 2) share (3, 2), and n is left. Raises
    NotFoldable when one size does not divide the other, so that no refinement exists.
    """
    found: list[_Factor] = []
    i, j = len(old) - 1, len(new) - 1
    left, right = old[i], new[j]
    while i >= 0 and j >= 0:
        if left is None and right is None:
            break  # what is left of these two axes, and all before them, has no known boundaries
        if left is None or right is None:
            size = left if right is None else right
            assert size is not None, "one of the two is known"
        elif left % right and right % left:
            raise NotFoldable(_MIXED)
        else:
            size = min(left, right)
        found.append(_Factor(size, i, j))
        left = None if left is None else left // size
        right = None if right is None else right // size
        if left == 1:
            i -= 1
            left = old[i] if i >= 0 else 1
        if right == 1:
            j -= 1
            right = new[j] if j >= 0 else 1
    return found[::-1]
