"""y = scale * x + shift, elementwise and constant: the one thing the fold carries through a graph.

Both tensors are float64 and have the rank of x; an axis along which neither varies has size 1, an axis along
which one varies has its full (static) size. So a batch norm on (N, C, H, W) is scale, shift of shape (1, C,
1, 1); one whose channels all agree is (1, 1, 1, 1) and fits along any axis. Axes with a dynamic size never
vary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def _varies(tensor: Tensor, axis: int) -> bool:
    return tensor.shape[axis] > 1 and not bool((tensor == tensor.narrow(axis, 0, 1)).all())


def common_shape(*tensors: Tensor) -> list[int]:
    """The shape to which tensors of one rank broadcast."""
    return [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]


@dataclass(frozen=True, eq=False)
class Affine:
    """y = scale * x + shift. Make one with Affine.of, which keeps the form said above."""

    scale: Tensor
    shift: Tensor

    @staticmethod
    def of(scale: Tensor, shift: Tensor) -> Affine:
        """The affine map with these tensors (same rank, broadcastable against each other)."""
        shape = common_shape(scale, shift)
        scale, shift = scale.double().expand(shape), shift.double().expand(shape)
        for axis in range(scale.ndim):
            if scale.shape[axis] > 1 and not _varies(scale, axis) and not _varies(shift, axis):
                scale, shift = scale.narrow(axis, 0, 1), shift.narrow(axis, 0, 1)
        return Affine(scale.contiguous(), shift.contiguous())

    @staticmethod
    def identity(rank: int) -> Affine:
        one = torch.ones([1] * rank, dtype=torch.float64)
        return Affine(one, torch.zeros_like(one))

    @property
    def rank(self) -> int:
        return self.scale.ndim

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes along which the map varies."""
        return tuple(axis for axis, size in enumerate(self.scale.shape) if size > 1)

    @property
    def has_shift(self) -> bool:
        return bool((self.shift != 0).any())

    @property
    def keeps_order(self) -> bool:
        """True when no scale is negative: larger inputs give outputs at least as large."""
        return bool((self.scale >= 0).all())

    def scales_like(self, other: Affine) -> bool:
        return bool((self.scale == other.scale).all())

    @property
    def is_identity(self) -> bool:
        return bool((self.scale == 1).all()) and not self.has_shift

    @property
    def is_finite(self) -> bool:
        return bool(self.scale.isfinite().all() and self.shift.isfinite().all())

    def along(self, axis: int, size: int) -> tuple[Tensor, Tensor] | None:
        """(scale, shift) as vectors of length size when the map varies along no other axis, else None."""
        if any(other != axis for other in self.axes):
            return None
        return self.scale.reshape(-1).expand(size), self.shift.reshape(-1).expand(size)

    def after(self, first: Affine) -> Affine:
        """The map that does first, then self."""
        return Affine.of(self.scale * first.scale, self.scale * first.shift + self.shift)

    def scale_only(self) -> Affine:
        return Affine.of(self.scale, torch.zeros_like(self.shift))

    def with_shift(self, shift: Tensor) -> Affine:
        return Affine.of(self.scale, shift)

    def map(self, move: Callable[[Tensor], Tensor]) -> Affine:
        """The map with both tensors moved alike (permuted, reshaped, cut)."""
        return Affine.of(move(self.scale), move(self.shift))

    def expand_axis(self, axis: int, size: int) -> Affine:
        """The same map with its tensors at full size along axis; not in the form said above, for building others."""
        sizes = [-1] * self.rank
        sizes[axis] = size
        return Affine(self.scale.expand(sizes), self.shift.expand(sizes))

    def padded(self, axis: int, start: int, size: int, total: int) -> Affine:
        """This map on [start, start + size) of an axis with total entries, and the identity elsewhere."""
        inner = self.expand_axis(axis, size)
        shape = list(inner.scale.shape)
        shape[axis] = total
        scale = torch.ones(shape, dtype=torch.float64)
        shift = torch.zeros(shape, dtype=torch.float64)
        scale.narrow(axis, start, size).copy_(inner.scale)
        shift.narrow(axis, start, size).copy_(inner.shift)
        return Affine.of(scale, shift)

    def cut(self, axis: int, start: int, size: int) -> Affine:
        """This map seen by [start, start + size) of axis."""
        if self.scale.shape[axis] == 1:
            return self
        return self.map(lambda tensor: tensor.narrow(axis, start, size))
