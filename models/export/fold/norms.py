"""Which nodes are batch norms, what affine map an evaluating one computes, and which can never be folded.

A norm is foldable when it uses stored statistics, and they and its weights are constants: then it is
y = a * x + c with a = gamma / sqrt(var + eps), c = beta - mean * a, per channel of axis 1 (Ioffe & Szegedy
2015, arXiv:1502.03167, Algorithm 2). A norm in training mode, or without running statistics, depends on the
other rows.
"""

from dataclasses import dataclass

import torch
from torch import fx

from foldserve.models.export.fold.affine import Affine
from foldserve.models.export.fold.constants import Constants
from foldserve.models.export.fold.graph import arguments, aten, is_call, module_path, parts, rank_of, readers
from foldserve.models.export.fold.plan import NotFoldable

_SINGLE_OUTPUT = frozenset({aten.batch_norm.default})
_EVALUATING = frozenset(
    {aten._native_batch_norm_legit_no_training.default, aten._batch_norm_no_update.default}
)
# Those with a `training` argument.
_EITHER = frozenset(
    {
        aten.batch_norm.default,
        aten.native_batch_norm.default,
        aten.cudnn_batch_norm.default,
        aten._native_batch_norm_legit.default,
        aten._native_batch_norm_legit.no_stats,
        aten._native_batch_norm_legit_functional.default,
    }
)
_TRAINING = frozenset({aten._batch_norm_with_update.default, aten._batch_norm_with_update_functional.default})
NORM_TARGETS = _EVALUATING | _EITHER | _TRAINING


@dataclass(frozen=True, eq=False)
class Norm:
    """One batch norm call. value = the node that holds its normalised output."""

    call: fx.Node
    value: fx.Node
    where: str

    @property
    def source(self) -> fx.Node:
        """The norm's input, as the graph is now: a fold before it may have changed it."""
        source: fx.Node = arguments(self.call)["input"]
        return source


def batch_norms(gm: fx.GraphModule) -> list[Norm]:
    """The batch norm calls of gm whose output somebody reads, in the order of execution."""
    found = []
    for node in gm.graph.nodes:
        if not is_call(node, *NORM_TARGETS):
            continue
        values = [node] if node.target in _SINGLE_OUTPUT else parts(node).get(0, [])
        where = module_path(node, names_it=lambda kind: "norm" in kind.lower())
        found += [Norm(node, value, where) for value in values if readers(value)]
    return found


def is_training(call: fx.Node) -> bool:
    """True when the norm uses the statistics of the batch it is given."""
    if call.target in _EVALUATING:
        return False
    values = arguments(call)
    training = call.target in _TRAINING or bool(values.get("training"))
    return training or values.get("running_mean") is None or values.get("running_var") is None


def why_never(norm: Norm, constants: Constants) -> str | None:
    """The reason why norm cannot be written as a constant affine map, or None."""
    call = norm.call
    if is_training(call):
        return "it normalises with the statistics of the batch (training mode, or no running statistics)"
    values = arguments(call)
    for name in ("running_mean", "running_var"):
        if not constants.is_constant(values[name]):
            return f"its {name} is not a constant of the graph"
    for name in ("weight", "bias"):
        if not constants.optional(values[name]):
            return f"its {name} is not a constant of the graph"
    if call.target not in _SINGLE_OUTPUT and set(parts(call)) - {0}:
        return "the statistics it returns are read too"
    return None


def affine_of(norm: Norm, constants: Constants) -> Affine:
    """a and c of norm along axis 1. Raises NotFoldable when they are not finite."""
    values = arguments(norm.call)
    mean, var = constants.value(values["running_mean"]), constants.value(values["running_var"])
    assert mean is not None, "why_never was asked first"
    assert var is not None, "why_never was asked first"
    scale = torch.rsqrt(var.double() + values["eps"])
    gamma, beta = constants.value(values["weight"]), constants.value(values["bias"])
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -mean.double() * scale
    if beta is not None:
        shift = shift + beta.double()
    shape = [1] * rank_of(norm.source)
    shape[1] = -1
    affine = Affine.of(scale.reshape(shape), shift.reshape(shape))
    if not affine.is_finite:
        raise NotFoldable("its scale or shift is not finite (a variance of zero with eps 0?)")
    return affine
