"""Down rules for calls with weights: f(a * x + c) becomes f with other weights, on x.

conv        W * a[i]     b + sum of W * c over i, k     zero padding only when c = 0: border outputs see fewer taps
conv_transpose  W * a[i]                                c = 0, or every output sees every tap (1x1, stride 1)
linear      W * a        b + W @ c                      a along the last axis
batch norm  gamma * a    beta + s * (c + (a - 1) * mean)    s = gamma / sqrt(var + eps)
"""

from typing import Any

import torch
from torch import Tensor

from foldserve.models.export.fold.constants import rounded, rounded_weight
from foldserve.models.export.fold.graph import aten, describe, rank_of
from foldserve.models.export.fold.norms import NORM_TARGETS, Norm, affine_of, why_never
from foldserve.models.export.fold.rule import DownRule, Match, Propagated
from foldserve.models.export.fold.rules.into_producer import (
    CONVOLUTIONS,
    MATMULS,
    TRANSPOSED_CONVOLUTIONS,
    is_transposed,
    matmul_operands,
    not_a_matrix,
    not_constant,
)


def only_as(site: Match, name: str) -> str | None:
    """The reason when the value arrives otherwise than as the argument called name."""
    if len(site.inputs) != 1 or site.arguments[name] not in site.inputs:
        return f"{describe(site.call)} takes it as something else than its {name}"
    return None


def _input_channel_axis(site: Match) -> int:
    return rank_of(site.node("input")) - (site.weight("weight").ndim - 2) - 1


def _pads_with_zeros(site: Match) -> bool:
    """True when some output of the convolution sees a padded zero."""
    padding = site.arguments["padding"]
    kernel = site.weight("weight").shape[2:]
    if isinstance(padding, str):
        return padding == "same" and any(size > 1 for size in kernel)
    return any(amount != 0 for amount in padding)


def _every_output_sees_every_tap(site: Match) -> bool:
    values = site.arguments
    kernel = site.weight("weight").shape[2:]
    return (
        all(size == 1 for size in kernel)
        and all(stride == 1 for stride in values["stride"])
        and all(amount == 0 for amount in (*values["padding"], *values["output_padding"]))
    )


def _conv_why_not(site: Match) -> str | None:
    reason = only_as(site, "input") or not_constant(site, "weight", "bias")
    reason = reason or site.wrong_axis(_input_channel_axis(site))
    if reason is not None or not site.affine.has_shift:
        return reason
    if is_transposed(site.call, site.arguments):
        if not _every_output_sees_every_tap(site):
            return (
                f"the norm shifts, and not every output of {describe(site.call)} sees every tap of its kernel"
            )
    elif _pads_with_zeros(site):
        return f"the norm shifts, and {describe(site.call)} pads with zeros after it"
    return None


def _plus(site: Match, bias: Tensor | None, added: Tensor, dtype: torch.dtype) -> Any:
    if bias is None and not bool((added != 0).any()):
        return None
    moved = added if bias is None else bias.double() + added
    return rounded(moved, dtype, f"{site.call.name}_bias")


def _conv_moved(site: Match) -> Propagated:
    weight, bias = site.weight("weight"), site.optional_weight("bias")
    scale, shift = site.along(_input_channel_axis(site), site.node("input"))
    groups, spatial = site.arguments["groups"], [1] * (weight.ndim - 2)
    name = f"{site.call.name}_weight"
    held = weight.double()
    if is_transposed(site.call, site.arguments):  # (cin, cout/g, k...)
        scaled = held * scale.reshape(-1, 1, *spatial)
        taps = (held * shift.reshape(-1, 1, *spatial)).flatten(2).sum(2)
        added = taps.reshape(groups, -1, weight.shape[1]).sum(1).flatten()
        new = rounded(scaled, site.dtype("weight"), name)
    else:  # (cout, cin/g, k...): the filters of group j read the channels of group j
        grouped = held.reshape(groups, -1, *weight.shape[1:])
        scaled = (grouped * scale.reshape(groups, 1, -1, *spatial)).flatten(0, 1)
        added = (grouped * shift.reshape(groups, 1, -1, *spatial)).flatten(2).sum(2).flatten()
        new = rounded_weight(scaled, site.dtype("weight"), 0, name)
    return Propagated((site.rewrite(weight=new, bias=_plus(site, bias, added, site.dtype("weight"))),))


def _linear_why_not(site: Match) -> str | None:
    reason = only_as(site, "input") or not_constant(site, "weight", "bias") or not_a_matrix(site)
    return reason or site.wrong_axis(rank_of(site.node("input")) - 1)


def _linear_moved(site: Match) -> Propagated:
    weight, bias = site.weight("weight"), site.optional_weight("bias")
    scale, shift = site.along(-1, site.node("input"))
    held = weight.double()
    new = rounded_weight(held * scale, site.dtype("weight"), 0, f"{site.call.name}_weight")
    return Propagated((site.rewrite(weight=new, bias=_plus(site, bias, held @ shift, site.dtype("weight"))),))


def _addmm_why_not(site: Match) -> str | None:
    if site.arguments["alpha"] != 1 or site.arguments["beta"] != 1:
        return f"{describe(site.call)} has alpha or beta other than 1"
    reason = only_as(site, "mat1") or not_constant(site, "self", "mat2")
    return reason or site.wrong_axis(1)


def _addmm_moved(site: Match) -> Propagated:
    weight, bias = site.weight("mat2"), site.weight("self")
    scale, shift = site.along(-1, site.node("mat1"))
    held = weight.double()
    new = rounded_weight(held * scale.reshape(-1, 1), site.dtype("mat2"), 1, f"{site.call.name}_weight")
    added = rounded(bias.double() + shift @ held, site.dtype("self"), f"{site.call.name}_bias")
    return Propagated((site.rewrite(self=added, mat2=new),))


def _matmul_why_not(site: Match) -> str | None:
    left, right = matmul_operands(site)
    reason = only_as(site, left)
    if reason is not None:
        return reason
    held = site.constants.value(site.arguments[right])
    if held is None or held.ndim != 2:
        return f"the right operand of {describe(site.call)} is not a constant matrix"
    return site.wrong_axis(rank_of(site.node(left)) - 1)


def _matmul_moved(site: Match) -> Propagated:
    left, right = matmul_operands(site)
    weight = site.weight(right)
    scale, shift = site.along(-1, site.node(left))
    held, name = weight.double(), f"{site.call.name}_weight"
    scaled = held * scale.reshape(-1, 1)
    added = _plus(site, None, shift @ held, site.dtype(right))
    if added is None:
        return Propagated((site.rewrite(**{right: rounded_weight(scaled, site.dtype(right), 1, name)}),))
    new = rounded_weight(scaled.t(), site.dtype(right), 0, name)
    return Propagated((site.rewrite(aten.linear.default, input=site.node(left), weight=new, bias=added),))


def _batch_norm_why_not(site: Match) -> str | None:
    norm = Norm(site.call, site.call, site.call.name)
    return only_as(site, "input") or why_never(norm, site.constants) or site.wrong_axis(1)


def _batch_norm_moved(site: Match) -> Propagated:
    """Two norms become one: with its statistics kept, gamma and beta of the later one take the earlier one's map."""
    mean = site.weight("running_mean")
    own = affine_of(Norm(site.call, site.call, site.call.name), site.constants)
    own_scale, own_shift = (tensor.reshape(-1).expand(mean.numel()) for tensor in (own.scale, own.shift))
    scale, shift = site.along(1, site.node("input"))
    gamma = site.optional_weight("weight")
    dtype = site.dtype("running_mean" if gamma is None else "weight")
    gamma = torch.ones_like(mean) if gamma is None else gamma
    # own(scale * x + shift) = own_scale * scale * (x - mean) + beta', as the call computes it with gamma' =
    # gamma * scale.
    beta = own_scale * shift + own_shift + own_scale * scale * mean.double()
    weight = rounded(gamma.double() * scale, dtype, f"{site.call.name}_weight")
    bias = rounded(beta, dtype, f"{site.call.name}_bias")
    return Propagated((site.rewrite(weight=weight, bias=bias),))


DOWN_RULES = (
    DownRule("convolution", CONVOLUTIONS | TRANSPOSED_CONVOLUTIONS, _conv_why_not, _conv_moved),
    DownRule("linear", frozenset({aten.linear.default}), _linear_why_not, _linear_moved),
    DownRule("addmm", frozenset({aten.addmm.default}), _addmm_why_not, _addmm_moved),
    DownRule("matmul", MATMULS, _matmul_why_not, _matmul_moved),
    DownRule("batch norm", NORM_TARGETS, _batch_norm_why_not, _batch_norm_moved),
)
