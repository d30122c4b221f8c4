"""Up rules for calls with weights: y = a * f(x) + c becomes f with other weights.

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
from foldserve.models.export.fold.rule import Alternative, Goal, Match, UpRule

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


def not_constant(site: Match, *names: str) -> str | None:
    """The reason when one of these arguments is given and is not a constant."""
    for name in names:
        if not site.constants.optional(site.arguments.get(name)):
            return f"the {name} of {describe(site.call)} is not a constant"
    return None


def not_a_matrix(site: Match) -> str | None:
    """The reason when the weight of a linear call is a vector: its output then has no axis of features."""
    if site.weight("weight").ndim != 2:
        return f"the weight of {describe(site.call)} is not a matrix"
    return None


def is_transposed(call: fx.Node, values: dict[str, Any]) -> bool:
    return call.target in TRANSPOSED_CONVOLUTIONS or bool(values.get("transposed"))


def channel_axis(call: fx.Node, weight: Tensor) -> int:
    """The channel axis of a convolution's output: (N, C, ...) has it at 1, an unbatched (C, ...) at 0."""
    return rank_of(call) - (weight.ndim - 2) - 1


def _scaled_shifted(
    site: Match, bias: Tensor | None, scale: Tensor, shift: Tensor, dtype: torch.dtype
) -> Any:
    """The new bias argument: bias * scale + shift, or None when there was none and none is needed."""
    if bias is None and not bool((shift != 0).any()):
        return None
    moved = shift if bias is None else bias.double() * scale + shift
    return rounded(moved, dtype, f"{site.call.name}_bias")


def _conv_steps(site: Match) -> list[Alternative]:
    weight, bias = site.weight("weight"), site.optional_weight("bias")
    scale, shift = site.along(channel_axis(site.call, weight), site.call)
    spatial = [1] * (weight.ndim - 2)
    if is_transposed(site.call, site.arguments):
        groups = site.arguments["groups"]
        held = weight.double().reshape(groups, -1, *weight.shape[1:])  # (g, cin/g, cout/g, k...)
        scaled = (held * scale.reshape(groups, 1, -1, *spatial)).flatten(0, 1)
        filters = scaled.reshape(held.shape).transpose(1, 2).flatten(0, 1)
        rounded_weight(
            filters, site.dtype("weight"), 0, f"{site.call.name}_weight"
        )  # refuses what underflows, per filter
        new = rounded(scaled, site.dtype("weight"), f"{site.call.name}_weight")
    else:
        scaled = weight * scale.reshape(-1, 1, *spatial)  # float64, as scale is
        new = rounded_weight(scaled, site.dtype("weight"), 0, f"{site.call.name}_weight")
    return [
        Alternative(
            (site.rewrite(weight=new, bias=_scaled_shifted(site, bias, scale, shift, site.dtype("weight"))),)
        )
    ]


def _conv_why_not(site: Match) -> str | None:
    return not_constant(site, "weight", "bias") or site.wrong_axis(
        channel_axis(site.call, site.weight("weight"))
    )


def _last_axis(site: Match) -> str | None:
    return site.wrong_axis(rank_of(site.value) - 1)


def _linear_why_not(site: Match) -> str | None:
    return not_constant(site, "weight", "bias") or not_a_matrix(site) or _last_axis(site)


def _linear_steps(site: Match) -> list[Alternative]:
    weight, bias = site.weight("weight"), site.optional_weight("bias")
    scale, shift = site.along(-1, site.call)
    new = rounded_weight(weight * scale.reshape(-1, 1), site.dtype("weight"), 0, f"{site.call.name}_weight")
    return [
        Alternative(
            (site.rewrite(weight=new, bias=_scaled_shifted(site, bias, scale, shift, site.dtype("weight"))),)
        )
    ]


def _addmm_why_not(site: Match) -> str | None:
    if site.arguments["alpha"] != 1 or site.arguments["beta"] != 1:
        return f"{describe(site.call)} has alpha or beta other than 1"
    return not_constant(site, "self", "mat2") or _last_axis(site)


def _addmm_steps(site: Match) -> list[Alternative]:
    weight, bias = site.weight("mat2"), site.weight("self")
    scale, shift = site.along(-1, site.call)
    new_weight = rounded_weight(weight.double() * scale, site.dtype("mat2"), 1, f"{site.call.name}_weight")
    new_bias = rounded(bias.double() * scale + shift, site.dtype("self"), f"{site.call.name}_bias")
    return [Alternative((site.rewrite(self=new_bias, mat2=new_weight),))]


def matmul_operands(site: Match) -> tuple[str, str]:
    """The names of a matrix product's left and right operand."""
    return "self", "other" if site.call.target is aten.matmul.default else "mat2"


def _matmul_why_not(site: Match) -> str | None:
    left, right = matmul_operands(site)
    for name, axis_from_end in ((right, 1), (left, 2)):
        held = site.constants.value(site.arguments[name])
        if held is not None and held.ndim == 2:
            if axis_from_end > rank_of(site.value):
                return f"{describe(site.call)} gives a vector, so its left operand has no row axis to scale"
            return site.wrong_axis(rank_of(site.value) - axis_from_end)
    return f"neither operand of {describe(site.call)} is a constant matrix"


def _matmul_steps(site: Match) -> list[Alternative]:
    left, right = matmul_operands(site)
    weight = site.constants.value(site.arguments[right])
    name = f"{site.call.name}_weight"
    if weight is None or weight.ndim != 2:
        weight = site.weight(left)
        scale, shift = site.along(-2, site.call)
        if bool((shift != 0).any()):
            raise NotFoldable(f"{describe(site.call)} has no bias to take the norm's shift")
        new = rounded_weight(weight.double() * scale.reshape(-1, 1), site.dtype(left), 0, name)
        return [Alternative((site.rewrite(**{left: new}),))]
    scale, shift = site.along(-1, site.call)
    if not bool((shift != 0).any()):
        new = rounded_weight(weight.double() * scale, site.dtype(right), 1, name)
        return [Alternative((site.rewrite(**{right: new}),))]
    new = rounded_weight((weight.double() * scale).t(), site.dtype(right), 0, name)
    bias = rounded(shift, site.dtype(right), f"{site.call.name}_bias")
    return [Alternative((site.rewrite(aten.linear.default, input=site.node(left), weight=new, bias=bias),))]


def _embedding_steps(site: Match) -> list[Alternative]:
    table = site.weight("weight")
    scale, shift = site.along(-1, site.call)
    new = rounded(table.double() * scale + shift, site.dtype("weight"), f"{site.call.name}_weight")
    return [Alternative((site.rewrite(weight=new),))]


def _gamma_beta(
    site: Match, shape: tuple[int, ...], scale: Tensor, shift: Tensor, beta: bool = True
) -> Alternative:
    """The call with gamma * scale and beta * scale + shift, made where they were absent."""
    weight = site.optional_weight("weight")
    bias = site.optional_weight("bias") if beta else None
    given = "weight" if weight is not None else "bias" if bias is not None else None
    dtype = site.dtype(given) if given else dtype_of(site.value)
    gamma = scale if weight is None else weight.double() * scale
    changes = {"weight": rounded(gamma.expand(shape), dtype, f"{site.call.name}_weight")}
    if beta:
        moved = shift if bias is None else bias.double() * scale + shift
        changes["bias"] = rounded(moved.expand(shape), dtype, f"{site.call.name}_bias")
    return Alternative((site.rewrite(**changes),))


def _axis_one_why_not(site: Match) -> str | None:
    return not_constant(site, "weight", "bias") or site.wrong_axis(1)


def _axis_one_steps(site: Match) -> list[Alternative]:
    scale, shift = site.along(1, site.value)
    return [_gamma_beta(site, tuple(scale.shape), scale, shift)]


def _layer_norm_why_not(site: Match) -> str | None:
    first = rank_of(site.value) - len(site.arguments["normalized_shape"])
    outside = [axis for axis in site.affine.axes if axis < first]
    if outside:
        return f"{describe(site.call)} has weights from axis {first} on, the norm acts on axis {outside[0]}"
    if site.call.target is aten.rms_norm.default and site.affine.has_shift:
        return f"{describe(site.call)} has no bias to take the norm's shift"
    return not_constant(site, "weight", "bias")


def _layer_norm_steps(site: Match) -> list[Alternative]:
    shape = tuple(site.arguments["normalized_shape"])
    first = rank_of(site.value) - len(shape)
    scale, shift = (
        tensor.flatten(0, first) if first else tensor for tensor in (site.affine.scale, site.affine.shift)
    )
    scale, shift = (tensor.reshape(tensor.shape[-len(shape) :]) for tensor in (scale, shift))
    return [_gamma_beta(site, shape, scale, shift, beta=site.call.target is not aten.rms_norm.default)]


def _batch_norm_why_not(site: Match) -> str | None:
    if site.call is not site.value and (site.output != 0 or set(parts(site.call)) != {0}):
        return f"the statistics that {describe(site.call)} returns are read too"
    return not_constant(site, "weight", "bias")


def _batch_norm_steps(site: Match) -> list[Alternative]:
    """A norm before: both into what is before it, or the later one into the earlier one's weights."""
    norm = Norm(site.call, site.value, site.call.name)
    steps = []
    if why_never(norm, site.constants) is None:
        both = site.affine.after(affine_of(norm, site.constants))
        steps.append(Alternative((Bypass(site.value, norm.source),), (Goal(norm.source, both, site.call),)))
    if site.wrong_axis(1) is None:
        steps += _axis_one_steps(site)
    if not steps:
        raise NotFoldable(site.wrong_axis(1) or "")
    return steps


UP_RULES = (
    UpRule("convolution", CONVOLUTIONS | TRANSPOSED_CONVOLUTIONS, _conv_why_not, _conv_steps),
    UpRule("linear", frozenset({aten.linear.default}), _linear_why_not, _linear_steps),
    UpRule("addmm", frozenset({aten.addmm.default}), _addmm_why_not, _addmm_steps),
    UpRule("matmul", MATMULS, _matmul_why_not, _matmul_steps),
    UpRule(
        "embedding",
        frozenset({aten.embedding.default}),
        lambda site: not_constant(site, "weight") or _last_axis(site),
        _embedding_steps,
    ),
    UpRule(
        "group or instance norm",
        frozenset({aten.group_norm.default, aten.instance_norm.default}),
        _axis_one_why_not,
        _axis_one_steps,
    ),
    UpRule(
        "layer norm",
        frozenset({aten.layer_norm.default, aten.rms_norm.default}),
        _layer_norm_why_not,
        _layer_norm_steps,
    ),
    UpRule("batch norm", NORM_TARGETS, _batch_norm_why_not, _batch_norm_steps),
)
