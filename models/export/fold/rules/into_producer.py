"""Into a producer with weights: y = a * f(x) + c becomes f with other weights.

    conv             W * a[o]                     b * a + c      a along the channel axis, ndim - spatial - 1
    conv_transpose   W(g, cin/g, cout/g) * a(g, ., cout/g)       same
    linear, matmul   W * a[o]                     b * a + c      a along the last axis
    embedding        table * a + c                               a along the last axis
    normalisations   gamma * a                    beta * a + c   group, instance: axis 1; layer: its own axes

W is constant in all of them. Holds for any stride, padding, dilation and groups: each output channel is a sum
of products with its own filter. A map that does not vary at all fits whatever the axis.
"""

from typing import Any

import torch
from torch import Tensor, fx

from foldserve.models.export.fold.constants import rounded, rounded_weight
from foldserve.models.export.fold.graph import aten, describe, dtype_of, parts, rank_of
from foldserve.models.export.fold.norms import NORM_TARGETS, Norm, affine_of, why_never
from foldserve.models.export.fold.plan import Bypass, NotFoldable
from foldserve.models.export.fold.rule import Alternative, Goal, Match, ProducerRule

CONVOLUTIONS = frozenset(
    {
        aten.conv1d.default,
        aten.conv2d.default,
        aten.conv3d.default,
        aten.conv1d.padding,
        aten.conv2d.padding,
        aten.conv3d.padding,
        aten.convolution.default,
    }
)
TRANSPOSED_CONVOLUTIONS = frozenset(
    {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
)
MATMULS = frozenset({aten.mm.default, aten.matmul.default})


def not_constant(match: Match, *names: str) -> str | None:
    """The reason when one of these arguments is given and is not a constant."""
    for name in names:
        if not match.constants.optional(match.arguments.get(name)):
            return f"the {name} of {describe(match.call)} is not a constant"
    return None


def not_a_matrix(match: Match) -> str | None:
    """The reason when the weight of a linear call is a vector: its output then has no axis of features."""
    if match.weight("weight").ndim != 2:
        return f"the weight of {describe(match.call)} is not a matrix"
    return None


def is_transposed(call: fx.Node, values: dict[str, Any]) -> bool:
    return call.target in TRANSPOSED_CONVOLUTIONS or bool(values.get("transposed"))


def channel_axis(call: fx.Node, weight: Tensor) -> int:
    """The channel axis of a convolution's output: (N, C, ...) has it at 1, an unbatched (C, ...) at 0."""
    return rank_of(call) - (weight.ndim - 2) - 1


def _scaled_shifted(
    match: Match, bias: Tensor | None, scale: Tensor, shift: Tensor, dtype: torch.dtype
) -> Any:
    """The new bias argument: bias * scale + shift, or None when there was none and none is needed."""
    if bias is None and not bool((shift != 0).any()):
        return None
    moved = shift if bias is None else bias.double() * scale + shift
    return rounded(moved, dtype, f"{match.call.name}_bias")


def _conv_alternatives(match: Match) -> list[Alternative]:
    weight, bias = match.weight("weight"), match.optional_weight("bias")
    scale, shift = match.along(channel_axis(match.call, weight), match.call)
    spatial = [1] * (weight.ndim - 2)
    if is_transposed(match.call, match.arguments):
        groups = match.arguments["groups"]
        held = weight.double().reshape(groups, -1, *weight.shape[1:])  # (g, cin/g, cout/g, k...)
        scaled = (held * scale.reshape(groups, 1, -1, *spatial)).flatten(0, 1)
        filters = scaled.reshape(held.shape).transpose(1, 2).flatten(0, 1)
        rounded_weight(
            filters, match.dtype("weight"), 0, f"{match.call.name}_weight"
        )  # refuses what underflows, per filter
        new = rounded(scaled, match.dtype("weight"), f"{match.call.name}_weight")
    else:
        scaled = weight * scale.reshape(-1, 1, *spatial)  # float64, as scale is
        new = rounded_weight(scaled, match.dtype("weight"), 0, f"{match.call.name}_weight")
    return [
        Alternative(
            (
                match.rewrite(
                    weight=new, bias=_scaled_shifted(match, bias, scale, shift, match.dtype("weight"))
                ),
            )
        )
    ]


def _conv_why_not(match: Match) -> str | None:
    return not_constant(match, "weight", "bias") or match.wrong_axis(
        channel_axis(match.call, match.weight("weight"))
    )


def _last_axis(match: Match) -> str | None:
    return match.wrong_axis(rank_of(match.value) - 1)


def _linear_why_not(match: Match) -> str | None:
    return not_constant(match, "weight", "bias") or not_a_matrix(match) or _last_axis(match)


def _linear_alternatives(match: Match) -> list[Alternative]:
    weight, bias = match.weight("weight"), match.optional_weight("bias")
    scale, shift = match.along(-1, match.call)
    new = rounded_weight(weight * scale.reshape(-1, 1), match.dtype("weight"), 0, f"{match.call.name}_weight")
    return [
        Alternative(
            (
                match.rewrite(
                    weight=new, bias=_scaled_shifted(match, bias, scale, shift, match.dtype("weight"))
                ),
            )
        )
    ]


def _addmm_why_not(match: Match) -> str | None:
    if match.arguments["alpha"] != 1 or match.arguments["beta"] != 1:
        return f"{describe(match.call)} has alpha or beta other than 1"
    return not_constant(match, "self", "mat2") or _last_axis(match)


def _addmm_alternatives(match: Match) -> list[Alternative]:
    weight, bias = match.weight("mat2"), match.weight("self")
    scale, shift = match.along(-1, match.call)
    new_weight = rounded_weight(weight.double() * scale, match.dtype("mat2"), 1, f"{match.call.name}_weight")
    new_bias = rounded(bias.double() * scale + shift, match.dtype("self"), f"{match.call.name}_bias")
    return [Alternative((match.rewrite(self=new_bias, mat2=new_weight),))]


def matmul_operands(match: Match) -> tuple[str, str]:
    """The names of a matrix product's left and right operand."""
    return "self", "other" if match.call.target is aten.matmul.default else "mat2"


def _matmul_why_not(match: Match) -> str | None:
    left, right = matmul_operands(match)
    for name, axis_from_end in ((right, 1), (left, 2)):
        held = match.constants.value(match.arguments[name])
        if held is not None and held.ndim == 2:
            if axis_from_end > rank_of(match.value):
                return f"{describe(match.call)} gives a vector, so its left operand has no row axis to scale"
            return match.wrong_axis(rank_of(match.value) - axis_from_end)
    return f"neither operand of {describe(match.call)} is a constant matrix"


def _matmul_alternatives(match: Match) -> list[Alternative]:
    left, right = matmul_operands(match)
    weight = match.constants.value(match.arguments[right])
    name = f"{match.call.name}_weight"
    if weight is None or weight.ndim != 2:
        weight = match.weight(left)
        scale, shift = match.along(-2, match.call)
        if bool((shift != 0).any()):
            raise NotFoldable(f"{describe(match.call)} has no bias to take the norm's shift")
        new = rounded_weight(weight.double() * scale.reshape(-1, 1), match.dtype(left), 0, name)
        return [Alternative((match.rewrite(**{left: new}),))]
    scale, shift = match.along(-1, match.call)
    if not bool((shift != 0).any()):
        new = rounded_weight(weight.double() * scale, match.dtype(right), 1, name)
        return [Alternative((match.rewrite(**{right: new}),))]
    new = rounded_weight((weight.double() * scale).t(), match.dtype(right), 0, name)
    bias = rounded(shift, match.dtype(right), f"{match.call.name}_bias")
    return [Alternative((match.rewrite(aten.linear.default, input=match.node(left), weight=new, bias=bias),))]


def _embedding_alternatives(match: Match) -> list[Alternative]:
    table = match.weight("weight")
    scale, shift = match.along(-1, match.call)
    new = rounded(table.double() * scale + shift, match.dtype("weight"), f"{match.call.name}_weight")
    return [Alternative((match.rewrite(weight=new),))]


def _gamma_beta(
    match: Match, shape: tuple[int, ...], scale: Tensor, shift: Tensor, beta: bool = True
) -> Alternative:
    """The call with gamma * scale and beta * scale + shift, made where they were absent."""
    weight = match.optional_weight("weight")
    bias = match.optional_weight("bias") if beta else None
    given = "weight" if weight is not None else "bias" if bias is not None else None
    dtype = match.dtype(given) if given else dtype_of(match.value)
    gamma = scale if weight is None else weight.double() * scale
    changes = {"weight": rounded(gamma.expand(shape), dtype, f"{match.call.name}_weight")}
    if beta:
        moved = shift if bias is None else bias.double() * scale + shift
        changes["bias"] = rounded(moved.expand(shape), dtype, f"{match.call.name}_bias")
    return Alternative((match.rewrite(**changes),))


def _axis_one_why_not(match: Match) -> str | None:
    return not_constant(match, "weight", "bias") or match.wrong_axis(1)


def _axis_one_alternatives(match: Match) -> list[Alternative]:
    scale, shift = match.along(1, match.value)
    return [_gamma_beta(match, tuple(scale.shape), scale, shift)]


def _layer_norm_why_not(match: Match) -> str | None:
    first = rank_of(match.value) - len(match.arguments["normalized_shape"])
    outside = [axis for axis in match.affine.axes if axis < first]
    if outside:
        return f"{describe(match.call)} has weights from axis {first} on, the norm acts on axis {outside[0]}"
    if match.call.target is aten.rms_norm.default and match.affine.has_shift:
        return f"{describe(match.call)} has no bias to take the norm's shift"
    return not_constant(match, "weight", "bias")


def _layer_norm_alternatives(match: Match) -> list[Alternative]:
    shape = tuple(match.arguments["normalized_shape"])
    first = rank_of(match.value) - len(shape)
    scale, shift = (
        tensor.flatten(0, first) if first else tensor for tensor in (match.affine.scale, match.affine.shift)
    )
    scale, shift = (tensor.reshape(tensor.shape[-len(shape) :]) for tensor in (scale, shift))
    return [_gamma_beta(match, shape, scale, shift, beta=match.call.target is not aten.rms_norm.default)]


def _batch_norm_why_not(match: Match) -> str | None:
    if match.call is not match.value and (match.output != 0 or set(parts(match.call)) != {0}):
        return f"the statistics that {describe(match.call)} returns are read too"
    return not_constant(match, "weight", "bias")


def _batch_norm_alternatives(match: Match) -> list[Alternative]:
    """A norm before: both into what is before it, or the later one into the earlier one's weights."""
    norm = Norm(match.call, match.value, match.call.name)
    alternatives = []
    if why_never(norm, match.constants) is None:
        both = match.affine.after(affine_of(norm, match.constants))
        alternatives.append(
            Alternative((Bypass(match.value, norm.source),), (Goal(norm.source, both, match.call),))
        )
    if match.wrong_axis(1) is None:
        alternatives += _axis_one_alternatives(match)
    if not alternatives:
        raise NotFoldable(match.wrong_axis(1) or "")
    return alternatives


WEIGHTS_INTO_PRODUCER = (
    ProducerRule("convolution", CONVOLUTIONS | TRANSPOSED_CONVOLUTIONS, _conv_why_not, _conv_alternatives),
    ProducerRule("linear", frozenset({aten.linear.default}), _linear_why_not, _linear_alternatives),
    ProducerRule("addmm", frozenset({aten.addmm.default}), _addmm_why_not, _addmm_alternatives),
    ProducerRule("matmul", MATMULS, _matmul_why_not, _matmul_alternatives),
    ProducerRule(
        "embedding",
        frozenset({aten.embedding.default}),
        lambda match: not_constant(match, "weight") or _last_axis(match),
        _embedding_alternatives,
    ),
    ProducerRule(
        "group or instance norm",
        frozenset({aten.group_norm.default, aten.instance_norm.default}),
        _axis_one_why_not,
        _axis_one_alternatives,
    ),
    ProducerRule(
        "layer norm",
        frozenset({aten.layer_norm.default, aten.rms_norm.default}),
        _layer_norm_why_not,
        _layer_norm_alternatives,
    ),
    ProducerRule("batch norm", NORM_TARGETS, _batch_norm_why_not, _batch_norm_alternatives),
)
