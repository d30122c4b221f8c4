"""What a stored constant was before it was rounded, so that float64 can prove the very graph that is written.

    held    the constant as the files have it, in the graph's own type
    exact   the float64 value that was rounded to held, once

A graph is searched and edited once. Its constants are read exactly, by later folds and by the float64 run of the gate
(float64_graph.py), although only held is in the module. What rounding took away is at most 2**-24 of held; times 2**24
it keeps 24 further bits in a float32 without leaving its range: held + remainder has 48 bits, off by 4e-15, in half the
memory of a float64 copy. Of a small constant the float64 value itself is kept: such are what sizes and positions are
computed with, and behind a ceil() or a comparison the last bit decides. It lies in the meta data of the get_attr node,
whose copies share it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

_KEY = "exact"
_SCALE = 2.0**24
# A remainder may be off by this much of the value: a thousand such roundings stay below the gate's 1e-10.
_ROUNDOFF = 2.0**-46
# So many numbers are a small constant: 32 KiB.
_SMALL = 1 << 12
# Numbers taken at a time, so that what is in between stays small beside a large weight.
_PIECE = 1 << 18


@dataclass(frozen=True, eq=False)
class Lost:
    """What a stored constant lacks: its remainder, or (whole) the exact value itself, in float64."""

    tensor: Tensor
    whole: bool = False


def remainder(exact: Tensor, held: Tensor) -> Lost | None:
    """exact (float64) less held, times 2**24, in float32, or exact where it is small; None when nothing was lost."""
    if held.dtype == torch.float64 or not held.is_floating_point():
        return None
    if exact.numel() <= _SMALL:
        same = torch.equal(exact.nan_to_num(nan=0.0), held.double().nan_to_num(nan=0.0))
        return None if same else Lost(exact, whole=True)
    lost = torch.empty_like(held, dtype=torch.float32)
    rows = max(1, _PIECE // max(1, held[:1].numel())) if held.ndim else 1
    pieces = (torch.split(t, rows) if t.ndim else (t,) for t in (lost, exact, held))
    for made, whole, rounding in zip(*pieces, strict=True):
        # inf - inf is nothing lost
        made.copy_(torch.sub(whole, rounding.double()).nan_to_num_(nan=0.0).mul_(_SCALE))
    return Lost(lost) if bool(lost.any()) else None


def beyond(exact: Tensor, held: Tensor) -> Lost | None:
    """As remainder(), for a held that is no rounding of exact: where they are too far apart, exact itself."""
    lost = remainder(exact, held)
    if lost is None or lost.whole:
        return lost
    apart = (_sum(held, lost.tensor) - exact).nan_to_num_(nan=0.0).abs_()
    return lost if bool((apart <= _ROUNDOFF * exact.abs()).all()) else Lost(exact, whole=True)


def keep(node: fx.Node, lost: Lost | None) -> None:
    """Note at a get_attr node what remainder() or beyond() gave."""
    if lost is not None:
        node.meta[_KEY] = lost


def exact_value(node: fx.Node, held: Tensor) -> Tensor:
    """The value of a get_attr node, whose tensor is held: in float64 where held is a rounding, else held itself."""
    lost: Lost | None = node.meta.get(_KEY)
    if lost is None:
        return held
    return lost.tensor if lost.whole else _sum(held, lost.tensor)


def forget(graph: fx.Graph) -> None:
    """Let go of what only a proof needs: from here on the graph is what it holds."""
    for node in graph.nodes:
        node.meta.pop(_KEY, None)


def _sum(held: Tensor, lost: Tensor) -> Tensor:
    return lost.double().mul_(1 / _SCALE).add_(held)
