"""Which values of a graph are constants, what they are, and how new ones are rounded.

A constant is a parameter or buffer that nothing in the graph writes to, or a pure expression of constants
(weight_norm, spectral_norm, weight standardisation, pruning masks, kernels that are summed, a batch norm of a
weight). Expressions are computed once: in their own dtype, as the network itself would, which is what the files
hold; and in float64, which is what folds are computed from (exact.py). Owns the memo of values; the graph is
changed only by materialise().
"""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from foldserve.models.export.fold.exact import beyond, exact_value, remainder
from foldserve.models.export.fold.graph import aten, is_call, schema_of, value_of
from foldserve.models.export.fold.plan import NewConstant, NotFoldable, insert_constant
from foldserve.models.export.process.float64_mode import float64_arithmetic

# Data movement: free at run time, so an expression of nothing but these is left in the graph (a copy of a
# tied embedding table would cost more than its transposed view).
_VIEWS = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten._unsafe_view.default,
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.unsqueeze.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.slice.Tensor,
        aten.select.int,
        aten.expand.default,
        aten.detach.default,
        aten.alias.default,
        aten.clone.default,
        aten.lift_fresh_copy.default,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.chunk.default,
        aten.unbind.int,
        operator.getitem,
    }
)
_UNINITIALISED = ("empty", "new_empty")
# A constant expression larger than this, and larger than four times what it is made of, stays in the graph: a
# mask or grid that two small vectors span is cheaper to compute than to store.
_LARGEST_GROWN_ELEMENTS = 1 << 18


def attribute(gm: fx.GraphModule, target: str) -> Any:
    found: Any = gm
    for atom in target.split("."):
        found = getattr(found, atom)
    return found


def _written_storages(gm: fx.GraphModule) -> set[int]:
    """The storages of parameters and buffers that the graph itself writes to (running statistics in training)."""
    written: set[int] = set()
    for node in gm.graph.nodes:
        schema = schema_of(node.target) if node.op == "call_function" else None
        if schema is None or not schema.is_mutable:
            continue
        for argument in node.all_input_nodes:
            if argument.op == "get_attr":
                held = attribute(gm, str(argument.target))
                if isinstance(held, Tensor):
                    written.add(held.untyped_storage().data_ptr())
    return written


@dataclass(frozen=True)
class _Value:
    """A constant as the network itself computes it, in its own types, and as it is in float64.

    Tensors, or lists of them for calls with several outputs.
    """

    held: Any
    exact: Any


class Constants:
    """The constants of one graph. value(node) is the tensor, or None when node is not constant."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        self._written = _written_storages(gm)
        self._known: dict[fx.Node, _Value | None] = {}

    def value(self, node: object) -> Tensor | None:
        """The constant tensor that node always gives, exactly (exact.py), or None.

        In float64 where the graph's own type would hold a rounding of it.
        """
        found = self._lookup(node) if isinstance(node, fx.Node) else None
        if found is None or not isinstance(node, fx.Node):
            return None
        exact = self._exact(node)
        return exact if isinstance(exact, Tensor) else None

    def is_constant(self, node: object) -> bool:
        return isinstance(node, fx.Node) and self._lookup(node) is not None

    def optional(self, node: object) -> bool:
        """True for None and for constants: an absent bias is as good as a known one."""
        return node is None or self.is_constant(node)

    def _exact(self, node: fx.Node) -> Any:
        """The exact value of a node that is known to be constant."""
        found = self._known[node]
        assert found is not None, "the caller has seen that it is constant"
        # Stored constants are read anew each time: to keep what is exact of all of them would be twice the weights.
        return exact_value(node, found.held) if node.op == "get_attr" else found.exact

    def _lookup(self, node: fx.Node) -> "_Value | None":
        # Iterative over the expression: a long chain of constants must not run into the recursion limit.
        todo = [node]
        while todo:
            head = todo[-1]
            if head in self._known:
                todo.pop()
                continue
            missing = [n for n in head.all_input_nodes if n not in self._known]
            if missing and self._might_be_constant(head):
                todo.extend(missing)
                continue
            self._known[head] = self._compute(head)
            todo.pop()
        return self._known[node]

    def _might_be_constant(self, node: fx.Node) -> bool:
        if not is_call(node) or isinstance(value_of(node), torch.SymInt):
            return False
        if node.target is operator.getitem:
            return True
        schema = schema_of(node.target)
        if schema is None or schema.is_mutable or not schema.returns:
            return False
        target: Any = node.target
        random = torch.Tag.nondeterministic_seeded in target.tags
        return not random and not schema.name.split("::")[-1].startswith(_UNINITIALISED)

    def _compute(self, node: fx.Node) -> "_Value | None":
        if node.op == "get_attr":
            held = attribute(self._gm, str(node.target))
            if not isinstance(held, Tensor) or held.untyped_storage().data_ptr() in self._written:
                return None
            return _Value(held.detach(), held.detach())
        if not self._might_be_constant(node):
            return None
        inputs = [self._known.get(n) for n in node.all_input_nodes]
        if any(value is None for value in inputs):
            return None
        held_of = {n: value.held for n, value in zip(node.all_input_nodes, inputs, strict=True) if value}
        if self._grows_too_much(node, list(held_of.values())):
            return None
        exact_of = {n: self._exact(n) for n in node.all_input_nodes}
        try:
            with torch.no_grad():
                held = _called(node, held_of)
                if node.target in _VIEWS and all(exact_of[n] is held_of[n] for n in exact_of):
                    return _Value(held, held)
                if node.target in _VIEWS:
                    return _Value(held, _called(node, exact_of))
                with float64_arithmetic():
                    exact = _called(node, {n: _widened(value) for n, value in exact_of.items()})
        except (RuntimeError, NotImplementedError):
            return None  # no kernel for this dtype here: then it stays an expression, and is computed where it runs
        return _Value(held, exact) if _agree(held, exact) else None

    def _grows_too_much(self, node: fx.Node, inputs: list[Any]) -> bool:
        made = value_of(node)
        if not isinstance(made, Tensor) or node.target in _VIEWS:
            return False
        size: Any = made.numel()
        if not isinstance(size, int):
            return True
        held = sum(value.numel() for value in inputs if isinstance(value, Tensor))
        return size > max(_LARGEST_GROWN_ELEMENTS, 4 * held)

    def _computes(self, node: fx.Node) -> bool:
        """True when the constant expression at node does arithmetic, not just data movement."""
        todo, seen = [node], {node}
        while todo:
            head = todo.pop()
            if head.op == "call_function" and head.target not in _VIEWS:
                return True
            fresh = [n for n in head.all_input_nodes if n not in seen]
            seen.update(fresh)
            todo.extend(fresh)
        return False

    def materialise(self) -> None:
        """Replace each outermost constant expression that does arithmetic by a new constant."""
        for node in list(self._gm.graph.nodes):
            if is_call(node, aten._assert_tensor_metadata.default) and self.is_constant(node.args[0]):
                self._gm.graph.erase_node(node)  # a constant's dtype cannot change any more
                continue
            if node.op != "call_function" or not any(not self.is_constant(user) for user in node.users):
                continue
            value = self.value(node)
            if value is None or not node.all_input_nodes or not self._computes(node):
                continue
            with self._gm.graph.inserting_before(node):
                held = self._known[node].held.clone()  # type: ignore[union-attr]  # value() has seen it
                name = f"{node.name}_computed"
                made = insert_constant(self._gm, NewConstant(held, name, beyond(value, held)))
            node.replace_all_uses_with(made, delete_user_cb=lambda user: not self.is_constant(user))
        self._gm.graph.eliminate_dead_code()


def _called(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: values[n])
    target: Any = node.target
    return target(*args, **kwargs)


def _widened(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_widened(item) for item in value]
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _agree(held: Any, exact: Any) -> bool:
    """False when an expression has another outcome in float64: a whole number that a rounding decides, an overflow.

    Such an expression is no constant that a fold may build on; it stays in the graph, and each precision computes it.
    """
    if isinstance(held, list | tuple):
        return all(_agree(mine, other) for mine, other in zip(held, exact, strict=True))
    if not isinstance(held, Tensor):
        return bool(held == exact)
    if not held.is_floating_point():
        return torch.equal(held, exact)
    return torch.equal(held.isfinite(), exact.isfinite())


def rounded(value: Tensor, dtype: torch.dtype, name: str) -> NewConstant:
    """value (float64) rounded once to dtype, as a new constant. Raises NotFoldable when it is not finite there."""
    held = value.to(dtype, copy=True).contiguous()
    if not bool(held.isfinite().all()):
        word = str(dtype).removeprefix("torch.")
        raise NotFoldable(f"the folded {name} would not be finite in {word}")
    return NewConstant(held, name, remainder(value, held))


def rounded_weight(value: Tensor, dtype: torch.dtype, channel_axis: int, name: str) -> NewConstant:
    """As rounded(), for a weight with one filter per entry of channel_axis.

    Raises NotFoldable also when a filter's largest weight falls below dtype's normal numbers: it would keep only
    a few bits, and the folded answer would be wrong where the unfolded one is right (a tiny gamma in
    float16).
    """
    if value.numel():
        others = [axis for axis in range(value.ndim) if axis != channel_axis]
        largest = torch.maximum(
            value.amax(others), -value.amin(others)
        )  # of the magnitudes, without a copy of them
        if bool(((largest > 0) & (largest < torch.finfo(dtype).smallest_normal)).any()):
            word = str(dtype).removeprefix("torch.")
            raise NotFoldable(
                f"the folded {name} would lose its precision: it falls below {word}'s normal numbers"
            )
    return rounded(value, dtype, name)
