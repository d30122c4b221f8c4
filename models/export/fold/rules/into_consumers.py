"""Into a consumer with weights: f(a * x + c) becomes f with other weights, on x.

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
from foldserve.models.export.fold.rule import ConsumerRule, Match, Propagated
from foldserve.models.export.fold.rules.into_producer import (
    CONVOLUTIONS,
    MATMULS,
    TRANSPOSED_CONVOLUTIONS,
    is_transposed,
    matmul_operands,
    not_a_matrix,
    not_constant,
)


def only_as(match: Match, name: str) -> str | None:
    """The reason when the value arrives otherwise than as the argument called name."""
    if len(match.inputs) != 1 or match.arguments[name] not in match.inputs:
        return f"{describe(match.call)} takes it as something else than its {name}"
    return None


def _input_channel_axis(match: Match) -> int:
    return rank_of(match.node("input")) - (match.weight("weight").ndim - 2) - 1


def _pads_with_zeros(match: Match) -> bool:
    """True when some output of the convolution sees a padded zero."""
    padding = match.arguments["padding"]
    kernel = match.weight("weight").shape[2:]
    if isinstance(padding, str):
        return padding == "same" and any(size > 1 for size in kernel)
    return any(amount != 0 for amount in padding)


def _every_output_sees_every_tap(match: Match) -> bool:
    values = match.arguments
    kernel = match.weight("weight").shape[2:]
    return (
        all(size == 1 for size in kernel)
        and all(stride == 1 for stride in values["stride"])
        and all(amount == 0 for amount in (*values["padding"], *values["output_padding"]))
    )


def _conv_why_not(match: Match) -> str | None:
    reason = only_as(match, "input") or not_constant(match, "weight", "bias")
    reason = reason or match.wrong_axis(_input_channel_axis(match))
    if reason is not None or not match.affine.has_shift:
        return reason
    if is_transposed(match.call, match.arguments):
        if not _every_output_sees_every_tap(match):
            return f"the norm shifts, and not every output of {describe(match.call)} sees every tap of its kernel"
    elif _pads_with_zeros(match):
        return f"the norm shifts, and {describe(match.call)} pads with zeros after it"
    return None


def _plus(match: Match, bias: Tensor | None, added: Tensor, dtype: torch.dtype) -> Any:
    if bias is None and not bool((added != 0).any()):
        return None
    moved = added if bias is None else bias.double() + added
    return rounded(moved, dtype, f"{match.call.name}_bias")


def _conv_propagated(match: Match) -> Propagated:
    weight, bias = match.weight("weight"), match.optional_weight("bias")
    scale, shift = match.along(_input_channel_axis(match), match.node("input"))
    groups, spatial = match.arguments["groups"], [1] * (weight.ndim - 2)
    name = f"{match.call.name}_weight"
    held = weight.double()
    if is_transposed(match.call, match.arguments):  # (cin, cout/g, k...)
        scaled = held * scale.reshape(-1, 1, *spatial)
        taps = (held * shift.reshape(-1, 1, *spatial)).flatten(2).sum(2)
        added = taps.reshape(groups, -1, weight.shape[1]).sum(1).flatten()
        new = rounded(scaled, match.dtype("weight"), name)
    else:  # (cout, cin/g, k...): the filters of group j read the channels of group j
        grouped = held.reshape(groups, -1, *weight.shape[1:])
        scaled = (grouped * scale.reshape(groups, 1, -1, *spatial)).flatten(0, 1)
        added = (grouped * shift.reshape(groups, 1, -1, *spatial)).flatten(2).sum(2).flatten()
        new = rounded_weight(scaled, match.dtype("weight"), 0, name)
    return Propagated((match.rewrite(weight=new, bias=_plus(match, bias, added, match.dtype("weight"))),))


def _linear_why_not(match: Match) -> str | None:
    reason = only_as(match, "input") or not_constant(match, "weight", "bias") or not_a_matrix(match)
    return reason or match.wrong_axis(rank_of(match.node("input")) - 1)


def _linear_propagated(match: Match) -> Propagated:
    weight, bias = match.weight("weight"), match.optional_weight("bias")
    scale, shift = match.along(-1, match.node("input"))
    held = weight.double()
    new = rounded_weight(held * scale, match.dtype("weight"), 0, f"{match.call.name}_weight")
    return Propagated(
        (match.rewrite(weight=new, bias=_plus(match, bias, held @ shift, match.dtype("weight"))),)
    )


def _addmm_why_not(match: Match) -> str | None:
    if match.arguments["alpha"] != 1 or match.arguments["beta"] != 1:
        return f"{describe(match.call)} has alpha or beta other than 1"
    reason = only_as(match, "mat1") or not_constant(match, "self", "mat2")
    return reason or match.wrong_axis(1)


def _addmm_propagated(match: Match) -> Propagated:
    weight, bias = match.weight("mat2"), match.weight("self")
    scale, shift = match.along(-1, match.node("mat1"))
    held = weight.double()
    new = rounded_weight(held * scale.reshape(-1, 1), match.dtype("mat2"), 1, f"{match.call.name}_weight")
    added = rounded(bias.double() + shift @ held, match.dtype("self"), f"{match.call.name}_bias")
    return Propagated((match.rewrite(self=added, mat2=new),))


def _matmul_why_not(match: Match) -> str | None:
    left, right = matmul_operands(match)
    reason = only_as(match, left)
    if reason is not None:
        return reason
    held = match.constants.value(match.arguments[right])
    if held is None or held.ndim != 2:
        return f"the right operand of {describe(match.call)} is not a constant matrix"
    return match.wrong_axis(rank_of(match.node(left)) - 1)


def _matmul_propagated(match: Match) -> Propagated:
    left, right = matmul_operands(match)
    weight = match.weight(right)
    scale, shift = match.along(-1, match.node(left))
    held, name = weight.double(), f"{match.call.name}_weight"
    scaled = held * scale.reshape(-1, 1)
    added = _plus(match, None, shift @ held, match.dtype(right))
    if added is None:
        return Propagated((match.rewrite(**{right: rounded_weight(scaled, match.dtype(right), 1, name)}),))
    new = rounded_weight(scaled.t(), match.dtype(right), 0, name)
    return Propagated((match.rewrite(aten.linear.default, input=match.node(left), weight=new, bias=added),))


def _batch_norm_why_not(match: Match) -> str | None:
    norm = Norm(match.call, match.call, match.call.name)
    return only_as(match, "input") or why_never(norm, match.constants) or match.wrong_axis(1)


def _batch_norm_propagated(match: Match) -> Propagated:
    """Two norms become one: with its statistics kept, gamma and beta of the later one take the earlier one's map."""
    mean = match.weight("running_mean")
    own = affine_of(Norm(match.call, match.call, match.call.name), match.constants)
    own_scale, own_shift = (tensor.reshape(-1).expand(mean.numel()) for tensor in (own.scale, own.shift))
    scale, shift = match.along(1, match.node("input"))
    gamma = match.optional_weight("weight")
    dtype = match.dtype("running_mean" if gamma is None else "weight")
    gamma = torch.ones_like(mean) if gamma is None else gamma
    # own(scale * x + shift) = own_scale * scale * (x - mean) + beta', as the call computes it with gamma' =
    # gamma * scale.
    beta = own_scale * shift + own_shift + own_scale * scale * mean.double()
    weight = rounded(gamma.double() * scale, dtype, f"{match.call.name}_weight")
    bias = rounded(beta, dtype, f"{match.call.name}_bias")
    return Propagated((match.rewrite(weight=weight, bias=bias),))


WEIGHTS_INTO_CONSUMERS = (
    ConsumerRule("convolution", CONVOLUTIONS | TRANSPOSED_CONVOLUTIONS, _conv_why_not, _conv_propagated),
    ConsumerRule("linear", frozenset({aten.linear.default}), _linear_why_not, _linear_propagated),
    ConsumerRule("addmm", frozenset({aten.addmm.default}), _addmm_why_not, _addmm_propagated),
    ConsumerRule("matmul", MATMULS, _matmul_why_not, _matmul_propagated),
    ConsumerRule("batch norm", NORM_TARGETS, _batch_norm_why_not, _batch_norm_propagated),
)
