"""Additions, subtractions, multiplications and divisions: by a constant, or of two tensors.

With a constant, the call is itself a map m(x) = k * x + d, known in full: y = a * m(x) + c passes on as one
map of x and the call disappears; or, where nothing before can take that, the constant takes what it can.
Of two tensors, a sum passes a to both sides and c to either one; a product passes a to one side, and only
without c.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from foldserve.models.export.fold.affine import Affine
from foldserve.models.export.fold.constants import Constants, rounded
from foldserve.models.export.fold.graph import (
    arguments,
    aten,
    describe,
    dtype_of,
    is_tensor,
    rank_of,
    same_shape,
    shape_of,
    static,
)
from foldserve.models.export.fold.plan import Bypass, NotFoldable
from foldserve.models.export.fold.rule import Alternative, ConsumerRule, Goal, Match, ProducerRule, Propagated

_ADD = frozenset({aten.add.Tensor, aten.add.Scalar})
_SUB = frozenset({aten.sub.Tensor, aten.sub.Scalar})
_RSUB = frozenset({aten.rsub.Tensor, aten.rsub.Scalar})
_MUL = frozenset({aten.mul.Tensor, aten.mul.Scalar})
_DIV = frozenset({aten.div.Tensor, aten.div.Scalar})
_NEG = frozenset({aten.neg.default})
SUMS = _ADD | _SUB | _RSUB
ELEMENTWISE = _ADD | _SUB | _RSUB | _MUL | _DIV | _NEG


def _number(argument: object, constants: Constants) -> Tensor | None:
    """argument as a float64 tensor when it is a number or a constant, else None."""
    if isinstance(argument, (bool, int, float)):
        return torch.tensor(float(argument), dtype=torch.float64)
    held = constants.value(argument)
    return None if held is None or held.is_complex() else held.double()


def own_map(call: fx.Node, constants: Constants) -> tuple[fx.Node, Affine] | None:
    """(x, m) when call computes m(x) for one tensor x of its own shape and dtype, and constants; else None."""
    values = arguments(call)
    left = values["self"]
    right = values.get("other")
    alpha = values.get("alpha", 1)
    if call.target in _RSUB:
        left, right = right, left
    if not isinstance(alpha, (int, float)):
        return None
    numbers = (_number(left, constants), _number(right, constants))
    if call.target in _NEG:
        numbers = (None, torch.tensor(-1.0, dtype=torch.float64))
    if (numbers[0] is None) == (numbers[1] is None):
        return None
    source, constant = (left, numbers[1]) if numbers[0] is None else (right, numbers[0])
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    assert constant is not None, "exactly one of the two is a constant"
    first_is_x = numbers[0] is None
    if call.target in _ADD:
        scale, shift = (one, constant * alpha) if first_is_x else (one * alpha, constant)
    elif call.target in _SUB | _RSUB:
        # rsub(self, other, alpha) = other - alpha * self: left and right are swapped above.
        scale, shift = (one, -constant * alpha) if first_is_x else (-one * alpha, constant)
    elif call.target in _DIV:
        if not first_is_x:
            return None
        scale, shift = one / constant, zero
    else:
        scale, shift = constant, zero
    return _as_map(call, source, scale, shift)


def _as_map(call: fx.Node, source: object, scale: Tensor, shift: Tensor) -> tuple[fx.Node, Affine] | None:
    if not isinstance(source, fx.Node) or not is_tensor(source) or not same_shape(source, call):
        return None
    rank = rank_of(call)
    if dtype_of(source) != dtype_of(call) or max(scale.ndim, shift.ndim) > rank:
        return None
    scale, shift = (t.reshape([1] * (rank - t.ndim) + list(t.shape)) for t in (scale, shift))
    own = Affine.of(scale, shift)
    sizes = shape_of(call)
    if not own.is_finite or any(static(sizes[axis]) != own.scale.shape[axis] for axis in own.axes):
        return None
    return source, own


def onto(affine: Affine, operand: fx.Node, call: fx.Node) -> Affine:
    """The map of call's output as a map of one of its operands, which may be broadcast where the map does not vary."""
    added = affine.rank - rank_of(operand)
    sizes = shape_of(operand)
    for axis in affine.axes:
        if axis < added or static(sizes[axis - added]) != affine.scale.shape[axis]:
            raise NotFoldable(f"{describe(operand)} is broadcast along the norm's axis in {describe(call)}")
    return affine.map(lambda tensor: tensor.reshape(tensor.shape[added:]))


def _lifted(affine: Affine, rank: int) -> Affine:
    return affine.map(lambda tensor: tensor.reshape([1] * (rank - tensor.ndim) + list(tensor.shape)))


def summands(call: fx.Node) -> tuple[tuple[fx.Node, float], tuple[fx.Node, float]] | None:
    """((left, its coefficient), (right, its coefficient)) when call adds or subtracts two different tensors."""
    if call.op != "call_function" or call.target not in SUMS:
        return None
    values = arguments(call)
    left, right, alpha = values["self"], values["other"], values["alpha"]
    if not is_tensor(left) or not is_tensor(right) or left is right or not isinstance(alpha, (int, float)):
        return None
    if call.target in _RSUB:
        return (left, -float(alpha)), (right, 1.0)
    return (left, 1.0), (right, -float(alpha) if call.target in _SUB else float(alpha))


def _with_constant(match: Match, source: fx.Node, own: Affine) -> list[Alternative]:
    """The ways of a map through m(x) = k * x + d, the one that removes the call first."""
    call, affine = match.call, match.affine
    alternatives = [Alternative((Bypass(call, source),), (Goal(source, affine.after(own), call),))]
    if call.target in SUMS:
        alternatives.append(_shift_kept(match, source, own))
    else:
        if not affine.has_shift:
            alternatives.append(_scale_kept(match, source, own))
        if bool((own.scale != 0).all()):
            inner = Affine.of(affine.scale, affine.shift / own.scale)
            alternatives.append(Alternative(goals=(Goal(source, inner, call),)))
    return alternatives


def _shift_kept(match: Match, source: fx.Node, own: Affine) -> Alternative:
    """a * (x + d) + c = a * x + (a * d + c): the constant takes the shift, what is before only the scale."""
    constant = rounded(
        match.affine.scale * own.shift + match.affine.shift,
        dtype_of(match.call),
        f"{match.call.name}_shift",
    )
    goal = Goal(
        source, Affine.of(match.affine.scale * own.scale, torch.zeros_like(match.affine.shift)), match.call
    )
    return Alternative((match.rewrite(aten.add.Tensor, self=source, other=constant, alpha=1),), (goal,))


def _scale_kept(match: Match, source: fx.Node, own: Affine) -> Alternative:
    """a * (k * x) = (a * k) * x: the constant takes the scale, and nothing is asked of what is before."""
    constant = rounded(match.affine.scale * own.scale, dtype_of(match.call), f"{match.call.name}_scale")
    return Alternative((match.rewrite(aten.mul.Tensor, self=source, other=constant),))


def _all_alternatives(match: Match) -> list[Alternative]:
    own = own_map(match.call, match.constants)
    if own is not None:
        return _with_constant(match, *own)
    if match.call.target in SUMS:
        return _sum_alternatives(match)
    return _product_alternatives(match)


def _operands(match: Match) -> tuple[fx.Node, fx.Node]:
    """The two different tensors that a call combines."""
    left: fx.Node = match.arguments["self"]
    right: Any = match.arguments.get("other")
    if not is_tensor(left) or not is_tensor(right) or left is right:
        raise NotFoldable(f"{describe(match.call)} does not combine two different tensors")
    return left, right


def _product_alternatives(match: Match) -> list[Alternative]:
    """a * (l * r): a goes to one of the two, a divisor excepted."""
    call = match.call
    if match.affine.has_shift:
        raise NotFoldable(f"the norm shifts, which {describe(call)} of two tensors does not commute with")
    left, right = _operands(match)

    def into(side: fx.Node) -> tuple[Goal, ...]:
        return (Goal(side, onto(match.affine, side, call), call),)

    ways = [lambda: into(left), lambda: into(right)]
    return _possible(ways[:1] if call.target in _DIV else ways)


def _sum_alternatives(match: Match) -> list[Alternative]:
    """a * (p * l + q * r) + c: a goes to both, c / p to l, or c / q to r."""
    call, affine = match.call, match.affine
    terms = summands(call)
    if terms is None:
        raise NotFoldable(f"{describe(call)} does not add two different tensors")
    plain = affine.scale_only()

    def shift_into(chosen: int) -> tuple[Goal, ...]:
        goals = []
        for place, (operand, coefficient) in enumerate(terms):
            wanted = plain
            if place == chosen and affine.has_shift:
                if coefficient == 0:
                    raise NotFoldable(f"{describe(call)} multiplies {describe(operand)} by 0")
                wanted = affine.with_shift(affine.shift / coefficient)
            goals.append(Goal(operand, onto(wanted, operand, call), call))
        return tuple(goals)

    ways = [lambda: shift_into(0), lambda: shift_into(1)]
    return _possible(ways if affine.has_shift else ways[:1])


def _possible(ways: Sequence[Callable[[], tuple[Goal, ...]]]) -> list[Alternative]:
    """The alternatives of those ways that do not refuse; when all do, the first one's reason."""
    alternatives: list[Alternative] = []
    reason: NotFoldable | None = None
    for way in ways:
        try:
            alternatives.append(Alternative(goals=way()))
        except NotFoldable as error:
            reason = reason or error
    if not alternatives and reason is not None:
        raise reason
    return alternatives


def _propagated(match: Match) -> Propagated:
    own = own_map(match.call, match.constants)
    if own is not None:
        return _constant_propagated(match, *own)
    rank = rank_of(match.call)
    here = {node: _lifted(affine, rank) for node, affine in match.inputs.items()}
    identity = Affine.identity(rank)
    terms = summands(match.call) if match.call.target in SUMS else None
    if terms is not None:
        (left, p), (right, q) = terms
        of_left, of_right = here.get(left, identity), here.get(right, identity)
        if not of_left.scales_like(of_right):
            raise NotFoldable(f"{describe(match.call)} adds another tensor to it")
        return Propagated(outputs={None: Affine.of(of_left.scale, p * of_left.shift + q * of_right.shift)})
    left, right = _operands(match)
    of_left, of_right = here.get(left, identity), here.get(right, identity)
    if of_left.has_shift or of_right.has_shift:
        raise NotFoldable(
            f"the norm shifts, which {describe(match.call)} of two tensors does not commute with"
        )
    if match.call.target in _MUL:
        return Propagated(outputs={None: of_left.after(of_right)})
    if right in here:
        raise NotFoldable(f"{describe(match.call)} divides by it")
    return Propagated(outputs={None: of_left})


def _constant_propagated(match: Match, source: fx.Node, own: Affine) -> Propagated:
    """k * (a * x + c) + d: into the constant where it has room for it, else on as one map of x, without the call."""
    call, affine = match.call, match.affine
    adds = call.target in SUMS
    # An addition has room for a shift, a multiplication for a scale.
    fits = bool((affine.scale == 1).all() and (own.scale == 1).all()) if adds else not affine.has_shift
    both = own.after(affine)
    if fits:
        name = f"{call.name}_shift" if adds else f"{call.name}_scale"
        target: Any = aten.add.Tensor if adds else aten.mul.Tensor
        constant = rounded(both.shift if adds else both.scale, dtype_of(call), name)
        changes: dict[str, Any] = {"self": source, "other": constant} | ({"alpha": 1} if adds else {})
        return Propagated((match.rewrite(target, **changes),))
    return Propagated((Bypass(call, source),), {None: both})


def _producer_why_not(match: Match) -> str | None:
    if match.call.target in _NEG and own_map(match.call, match.constants) is None:
        return f"{describe(match.call)} changes the dtype"
    return None


ELEMENTWISE_INTO_PRODUCER = (ProducerRule("elementwise", ELEMENTWISE, _producer_why_not, _all_alternatives),)
ELEMENTWISE_INTO_CONSUMERS = (ConsumerRule("elementwise", ELEMENTWISE, _producer_why_not, _propagated),)
