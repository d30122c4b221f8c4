"""Into a sibling: a norm of x that is added to a convolution of the same x is one more tap of its kernel (RepVGG).

    before   t * conv(x; W, b) + s * (a * x + c)
    after    t * conv(x; W', b')      W'[o, o mod (cin / groups), middle] = W + (s / t) * a[o]    b' = b + (s / t) * c

Holds when the convolution keeps the shape: stride 1, odd kernel k, padding dil * (k - 1) / 2, cin = cout.

The norm and the convolution may stand anywhere in one sum of same-shaped tensors (RepVGG, MobileOne), with
signs (FastViT subtracts). A square linear layer is the same with its diagonal. Holds when the norm's output
is read by the sum alone, and so is the convolution's. Source: Ding et al. 2021, arXiv:2101.03697, section
3.3.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from foldserve.models.export.fold.candidates import Candidate
from foldserve.models.export.fold.constants import Constants, rounded, rounded_weight
from foldserve.models.export.fold.graph import (
    aten,
    describe,
    dtype_of,
    is_call,
    rank_of,
    readers,
    same_shape,
    uses,
)
from foldserve.models.export.fold.plan import Bypass, Edit, NotFoldable, Plan, Rewrite
from foldserve.models.export.fold.rule import Match
from foldserve.models.export.fold.rules.elementwise import ELEMENTWISE, SUMS, own_map, summands
from foldserve.models.export.fold.rules.into_producer import (
    CONVOLUTIONS,
    channel_axis,
    is_transposed,
    not_constant,
)


@dataclass(frozen=True)
class _Term:
    """coefficient * node, a term of the sum that the norm is a term of; ratio = the norm's coefficient by its own."""

    node: fx.Node
    ratio: float


def into_sibling(candidate: Candidate, constants: Constants) -> Plan:
    """A plan that puts candidate into a convolution it is added to. Raises NotFoldable with the reason."""
    candidate = _with_those_behind(candidate, constants)
    value = candidate.value
    taken_by = _only_reader(value)
    if taken_by is None or summands(taken_by) is None:
        raise NotFoldable("it is not a term of a sum")
    reason: NotFoldable | None = None
    for term in _other_terms(value):
        try:
            return Plan((_merged(candidate, term, constants), _without(value, taken_by)))
        except NotFoldable as error:
            reason = reason or error
    raise reason or NotFoldable("no other term of the sum is a convolution of its input")


def _with_those_behind(candidate: Candidate, constants: Constants) -> Candidate:
    """candidate and the constant maps that alone read it: 2 * norm(x) is a term like norm(x)."""
    whole = candidate
    while (reader := _only_reader(whole.value)) is not None and is_call(reader, *ELEMENTWISE):
        own = own_map(reader, constants)
        if own is None:
            break
        whole = Candidate(whole.call, reader, whole.source, own[1].after(whole.affine))
    return whole


def is_summed(candidate: Candidate) -> bool:
    """True when candidate is a term of a sum, so that a reason for not folding it there says something."""
    reader = _only_reader(candidate.value)
    return reader is not None and summands(reader) is not None


def _only_reader(value: fx.Node) -> fx.Node | None:
    found = readers(value)
    return found[0] if len(found) == 1 and uses(found[0], value) == 1 else None


def _other_terms(value: fx.Node) -> Iterator[_Term]:
    """The other terms of the largest sum that value is a term of, those that only the sum reads."""
    node, mine = value, 1.0
    while True:
        reader = _only_reader(node)
        terms = None if reader is None else summands(reader)
        if reader is None or terms is None:
            return
        own, others = _split(terms, node)
        mine *= own
        for other, coefficient in others:
            if coefficient and same_shape(other, reader) and dtype_of(other) == dtype_of(value):
                yield from _terms_of(other, mine / coefficient, reader)
        if not same_shape(node, reader):
            return
        node = reader


def _split(
    terms: tuple[tuple[fx.Node, float], ...], node: fx.Node
) -> tuple[float, list[tuple[fx.Node, float]]]:
    own = next(coefficient for term, coefficient in terms if term is node)
    return own, [(term, coefficient) for term, coefficient in terms if term is not node]


def _terms_of(node: fx.Node, ratio: float, reader: fx.Node) -> Iterator[_Term]:
    if _only_reader(node) is not reader:
        return
    terms = summands(node) if is_call(node, *SUMS) else None
    if terms is None:
        yield _Term(node, ratio)
        return
    for inner, coefficient in terms:
        if coefficient and same_shape(inner, node):
            yield from _terms_of(inner, ratio / coefficient, node)


def _merged(candidate: Candidate, term: _Term, constants: Constants) -> Edit:
    """The convolution (or linear layer) of term with the norm in its middle tap."""
    call = term.node
    match = Match(call, call, None, candidate.affine, constants)
    if is_call(call, *CONVOLUTIONS):
        reason = _conv_why_not(match, candidate.source)
    elif is_call(call, aten.linear.default):
        reason = _linear_why_not(match, candidate.source)
    else:
        reason = f"{describe(call)} is not a convolution"
    if reason is not None:
        raise NotFoldable(reason)
    weight, bias = match.weight("weight"), match.optional_weight("bias")
    axis = channel_axis(call, weight) if is_call(call, *CONVOLUTIONS) else rank_of(call) - 1
    scale, shift = match.along(axis, call)
    taps = weight.double().clone()
    middle = tuple(size // 2 for size in weight.shape[2:])
    for channel in range(weight.shape[0]):
        taps[(channel, channel % weight.shape[1], *middle)] += term.ratio * scale[channel]
    new_weight = rounded_weight(taps, match.dtype("weight"), 0, f"{call.name}_weight")
    moved = term.ratio * shift if bias is None else bias.double() + term.ratio * shift
    return match.rewrite(weight=new_weight, bias=rounded(moved, match.dtype("weight"), f"{call.name}_bias"))


def _conv_why_not(match: Match, source: fx.Node) -> str | None:
    call, values = match.call, match.arguments
    if values["input"] is not source:
        return f"{describe(call)} is not a convolution of the norm's input"
    reason = not_constant(match, "weight", "bias")
    if reason is not None:
        return reason
    if is_transposed(call, values):
        return f"{describe(call)} is transposed"
    weight = match.weight("weight")
    kernel, dilation, padding = weight.shape[2:], values["dilation"], values["padding"]
    if any(step != 1 for step in values["stride"]):
        return f"{describe(call)} has a stride"
    if any(size % 2 == 0 for size in kernel):
        return f"the kernel of {describe(call)} has no middle"
    if isinstance(padding, str):
        centred = padding == "same" or all(size == 1 for size in kernel)
    else:
        wide = padding if len(padding) == len(kernel) else list(padding) * len(kernel)
        steps = dilation if len(dilation) == len(kernel) else list(dilation) * len(kernel)
        centred = all(p == d * (k - 1) // 2 for p, d, k in zip(wide, steps, kernel, strict=True))
    if not centred:
        return f"the middle tap of {describe(call)} does not see the entry it makes"
    if weight.shape[0] != weight.shape[1] * values["groups"]:
        return f"{describe(call)} changes the number of channels"
    return match.wrong_axis(channel_axis(call, weight))


def _linear_why_not(match: Match, source: fx.Node) -> str | None:
    if match.arguments["input"] is not source:
        return f"{describe(match.call)} is not a layer of the norm's input"
    reason = not_constant(match, "weight", "bias")
    if reason is None and (match.weight("weight").ndim != 2 or len(set(match.weight("weight").shape)) != 1):
        reason = f"{describe(match.call)} changes the number of features"
    return reason or match.wrong_axis(rank_of(match.call) - 1)


def _without(value: fx.Node, taken_by: fx.Node) -> Edit:
    """The sum without the term value."""
    terms = summands(taken_by)
    assert terms is not None, "the caller has seen the sum"
    _, ((other, coefficient),) = _split(terms, value)
    if not same_shape(other, taken_by):
        raise NotFoldable(f"{describe(taken_by)} broadcasts its other term")
    if coefficient == 1:
        return Bypass(taken_by, other)
    return Rewrite(taken_by, aten.mul.Scalar, (other, coefficient))
