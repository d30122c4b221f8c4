"""Which operators of a network run in 16 bits, and which stay in float32.

    LOW       the ones that cost time and gain from it: convolutions, matrix products, recurrent layers
    BOUNDED   computed in float32, since sums and exponentials inside overflow or lose digits in 16 bits; what they
              give is well scaled, so what follows is in 16 bits again: softmax, norms
    WIDE      in float32, and their results too: exponentials, powers, logarithms, sums, variances, and floats made
              from whole numbers (positions, bytes of a picture)
    the rest  follow their inputs: in float32 when one of these is, else in 16 bits. So x + 1e-12 under a root, or
              (x - mean) / std of a raw input, keep their digits up to the next LOW operator

The lists are those of torch.autocast (torch.amp, "Op-Specific Behavior"), but that autocast lets what follows a norm
or a softmax run in float32. The softmax inside of an attention is the runtime's: both sum it in float32. Means and
average pools follow: they stay below the largest of what they average, and both runtimes sum in float32 inside.

Over the lists go facts about the one network, each of which keeps an operator in float32 and is told to the user:
its results, its inputs, its weights or a number in its call do not fit (measured on the export's own inputs), or
torch has no kernel of that type on the CPU, where the answers are compared.

Decides only; the graph is changed by convert.py.
"""

import math
import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from foldserve.models.export.precision.precision import Precision

_LOW = frozenset(
    {
        "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
        "linear", "matmul", "mm", "bmm", "mv", "addmm", "addbmm", "baddbmm", "addmv", "addr", "chain_matmul",
        "einsum", "bilinear", "prelu", "scaled_dot_product_attention",
        "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
    }
)  # fmt: skip
_BOUNDED = frozenset(
    {
        "softmax", "_softmax", "_safe_softmax", "softmin", "log_softmax", "_log_softmax",
        "layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "instance_norm", "rms_norm",
        "batch_norm", "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
        "cosine_similarity", "local_response_norm",
    }
)  # fmt: skip
_WIDE = frozenset(
    {
        "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "logsumexp", "_logcumsumexp", "logcumsumexp",
        "pow", "square", "rsqrt", "reciprocal", "sum", "nansum", "prod", "cumsum", "cumprod", "softplus",
        "var", "var_mean", "std", "std_mean", "norm", "linalg_vector_norm", "linalg_matrix_norm", "dist",
        "cdist", "_cdist_forward", "renorm", "acos", "asin", "atanh", "cosh", "sinh", "tan", "erfinv",
        "grid_sampler", "grid_sampler_2d", "grid_sampler_3d",
    }
)  # fmt: skip


class Kind(Enum):
    """How an operator is treated; see the head of this file."""

    LOW = "low"
    BOUNDED = "bounded"
    WIDE = "wide"
    FOLLOWS = "follows"


@dataclass(frozen=True)
class Choice:
    """runs: the type that an operator computes and gives its floats in.

    wide: whether the operators that follow are drawn into float32. reason: why it is in float32 though its kind alone
    would not have it there; "" otherwise.
    """

    runs: torch.dtype
    wide: bool
    reason: str = ""


@dataclass(frozen=True)
class Measurements:
    """What was measured of one network.

    largest: node name → largest finite magnitude of its floats over the cases, 0 for none; inputs and weights too.
    lacking: operators without a kernel for the precision's type on the CPU.
    """

    largest: Mapping[str, float]
    lacking: Collection[OpOverload] = ()


def is_float32(value: object) -> bool:
    """Whether a node's `val` is a float32 tensor: only such values are ever converted."""
    return isinstance(value, Tensor) and value.dtype == torch.float32


def has_float32(node: fx.Node) -> bool:
    """Whether node gives a float32 tensor, or several tensors with one among them."""
    value = node.meta.get("val")
    return any(is_float32(v) for v in value) if isinstance(value, list | tuple) else is_float32(value)


def kind_of(node: fx.Node) -> Kind:
    """The kind of a call of an operator."""
    target = node.target
    if not isinstance(target, OpOverload):
        return Kind.FOLLOWS
    name = target._opname
    if name in _LOW:
        return Kind.LOW
    if name in _BOUNDED:
        return Kind.BOUNDED
    floats_in = any(has_float32(n) for n in node.all_input_nodes)
    asks_for_type = any(isinstance(a, torch.dtype) for a in (*node.args, *node.kwargs.values()))
    if name in _WIDE or asks_for_type or (has_float32(node) and not floats_in):
        return Kind.WIDE
    return Kind.FOLLOWS


def choose(graph: fx.Graph, precision: Precision, facts: Measurements) -> dict[fx.Node, Choice]:
    """The choice for every node that gives or takes float32. Weights have none: they are stored as they are read."""
    choices: dict[fx.Node, Choice] = {}
    constants: set[fx.Node] = set()
    for node in graph.nodes:
        sources = node.all_input_nodes
        if node.op == "get_attr":
            constants.add(node)
        elif node.op == "placeholder" and has_float32(node):
            choices[node] = Choice(torch.float32, wide=True)
        elif node.op == "call_function" and (has_float32(node) or any(has_float32(n) for n in sources)):
            if sources and constants.issuperset(sources):
                # Made of weights alone: once per model at most, so all its digits are kept at no cost.
                constants.add(node)
                choices[node] = Choice(torch.float32, wide=not _fits(node, precision, facts))
            else:
                choices[node] = _choice(node, choices, precision, facts)
    return choices


def _choice(
    node: fx.Node, choices: Mapping[fx.Node, Choice], precision: Precision, facts: Measurements
) -> Choice:
    if node.target is operator.getitem:  # one of several results: where and how they were computed
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return Choice(choices[source].runs, choices[source].wide)
    kind = kind_of(node)
    if kind is Kind.WIDE:
        return Choice(torch.float32, wide=True)
    if kind is Kind.BOUNDED:
        return Choice(torch.float32, wide=not _fits(node, precision, facts))
    if kind is Kind.FOLLOWS and any(choices[n].wide for n in node.all_input_nodes if n in choices):
        return Choice(torch.float32, wide=True)
    reason = _does_not_fit(node, precision, facts)
    if reason:
        return Choice(torch.float32, wide=True, reason=reason)
    if node.target in facts.lacking:
        lacks = f"torch has no {precision.word} kernel for it on the CPU, where the answers are compared"
        return Choice(torch.float32, wide=False, reason=lacks)
    return Choice(precision.dtype, wide=False)


def _fits(node: fx.Node, precision: Precision, facts: Measurements) -> bool:
    """Whether every result of node, one tensor or several, can be held in the precision's type."""
    return all(precision.holds(largest) for largest in _largest_of_each(node, facts))


def _largest_of_each(node: fx.Node, facts: Measurements) -> list[float]:
    results = [node, *(user for user in node.users if user.target is operator.getitem)]
    return [facts.largest.get(result.name, 0.0) for result in results]


def _does_not_fit(node: fx.Node, precision: Precision, facts: Measurements) -> str:
    """Why node cannot be computed in the precision's type, or "". Only fp16 has so small a range."""
    low, high = precision.limits
    word, most = precision.word, float(torch.finfo(precision.dtype).max)
    for largest in _largest_of_each(node, facts):
        if precision.holds(largest):
            continue
        return f"its results go up to {largest:.3g}, and {word} is used from {low:.2g} to {high:.4g}"
    for source in filter(has_float32, node.all_input_nodes):
        largest = facts.largest.get(source.name, 0.0)
        is_weight = source.op == "get_attr"
        # A tiny bias is lost without harm beside results that fit; a tiny matrix is the result.
        tiny = kind_of(node) is Kind.LOW and 0 < largest < low and _dims(source) > 1
        if tiny or largest > (most if is_weight else high):
            name = f"weight {source.target}" if is_weight else f"input {source.name}"
            return f"its {name} goes up to {largest:.3g}, and {word} holds {low:.2g} to {most:.4g}"
    for number in _numbers(node):
        if abs(number) > most or 0 < abs(number) < low:
            return f"the number {number:.3g} stands in its call, and {word} holds {low:.2g} to {most:.4g}"
    return ""


def _dims(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, Tensor) else 0


def _numbers(node: fx.Node) -> list[float]:
    """The finite numbers that node's operator computes with (not sizes, dims or positions)."""
    assert isinstance(node.target, OpOverload)
    arguments = node.target._schema.arguments
    given: list[tuple[Any, Any]] = [(a, v) for a, v in zip(arguments, node.args, strict=False)]
    given += [(a, node.kwargs[a.name]) for a in arguments if a.name in node.kwargs]
    numbers = []
    for argument, value in given:
        plain = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if (
            plain and "int" not in str(argument.type).lower()
        ):  # x + 1e-12 has its number where a tensor may stand
            numbers.append(float(value))
    return numbers
