"""How far two answers are apart, in the one measure that the gates, the manifest and the messages use.

Floats: the largest absolute difference over the tensor, divided by the largest absolute value of the wanted
tensor (by 1 where that is all zeros). Integers and booleans: the share of elements that differ. Values that
are not finite must be the same at the same places; otherwise, and for another shape or kind, the difference
is infinite.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """max_abs: the largest absolute difference. max_rel: the same relative to the largest wanted value."""

    max_abs: float
    max_rel: float

    def worse(self, other: "Difference") -> "Difference":
        """The larger of each figure."""
        return Difference(max(self.max_abs, other.max_abs), max(self.max_rel, other.max_rel))


NONE = Difference(0.0, 0.0)
_APART = Difference(math.inf, math.inf)


def difference(got: Tensor, want: Tensor) -> Difference:
    """The difference between an answer and the wanted one; see the head of this file for the measure."""
    if got.shape != want.shape or got.is_floating_point() != want.is_floating_point():
        return _APART
    if want.numel() == 0:
        return NONE
    if not want.is_floating_point():
        differs = got.long() != want.long()
        largest = (got.double() - want.double()).abs().max()
        return Difference(float(largest), float(differs.double().mean()))
    found, wanted = got.double(), want.double()
    finite = torch.isfinite(wanted)
    if not torch.equal(torch.isfinite(found), finite) or not torch.equal(
        found[~finite].nan_to_num(nan=0.0), wanted[~finite].nan_to_num(nan=0.0)
    ):
        return _APART
    if not bool(finite.any()):
        return NONE
    most = float((found[finite] - wanted[finite]).abs().max())
    scale = float(wanted[finite].abs().max())
    return Difference(most, most / scale if scale > 0 else most)
