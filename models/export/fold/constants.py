"""Which values of a graph are constants, what they are, and how new ones are rounded.

A constant is a parameter or buffer that nothing in the graph writes to, or a pure expression of constants
(weight_norm, spectral_norm, weight standardisation, pruning masks, kernels that are summed, a batch norm of a
weight). Expressions are computed once, in their own dtype, as the network itself would. Owns the memo of
values; the graph is changed only by materialise().
"""

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate, map_arg

from models.export.fold.graph import aten, is_call, schema_of, value_of
from models.export.fold.plan import NewConstant, Refused, insert_constant

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


class Constants:
    """The constants of one graph. value(node) is the tensor, or None when node is not constant."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        self._written = _written_storages(gm)
        self._known: dict[fx.Node, Any] = {}
        # A module converted after its capture (a double copy for the gate) still says float32 in its
        # metadata.
        self._live_dtypes: dict[torch.dtype, torch.dtype] = {}
        for node in gm.graph.find_nodes(op="get_attr"):
            held = attribute(gm, str(node.target))
            if isinstance(held, Tensor) and held.is_floating_point() and isinstance(value_of(node), Tensor):
                self._live_dtypes[value_of(node).dtype] = held.dtype

    def value(self, node: object) -> Tensor | None:
        """The constant tensor that node always gives, or None."""
        found = self._lookup(node) if isinstance(node, fx.Node) else None
        return found if isinstance(found, Tensor) else None

    def is_constant(self, node: object) -> bool:
        return isinstance(node, fx.Node) and self._lookup(node) is not None

    def dtype_of(self, node: fx.Node) -> torch.dtype:
        """The dtype that node's value has when the graph runs."""
        dtype: torch.dtype = value_of(node).dtype
        return self._live_dtypes.get(dtype, dtype)

    def _live(self, leaf: Any) -> Any:
        """A dtype that the graph names, as it is when the graph runs."""
        return self._live_dtypes.get(leaf, leaf) if isinstance(leaf, torch.dtype) else leaf

    def optional(self, node: object) -> bool:
        """True for None and for constants: an absent bias is as good as a known one."""
        return node is None or self.is_constant(node)

    def _lookup(self, node: fx.Node) -> Any:
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

    def _compute(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            held = attribute(self._gm, str(node.target))
            if not isinstance(held, Tensor) or held.untyped_storage().data_ptr() in self._written:
                return None
            return held.detach()
        if not self._might_be_constant(node):
            return None
        inputs = [self._known.get(n) for n in node.all_input_nodes]
        if any(value is None for value in inputs) or self._grows_too_much(node, inputs):
            return None
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: self._known[n])
        args, kwargs = map_aggregate((args, kwargs), self._live)
        target: Any = node.target
        try:
            with torch.no_grad():
                return target(*args, **kwargs)
        except (RuntimeError, NotImplementedError):
            return None  # no kernel for this dtype here: then it stays an expression, and is computed where it runs

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
                made = insert_constant(self._gm, NewConstant(value.clone(), f"{node.name}_computed"))
            node.replace_all_uses_with(made, delete_user_cb=lambda user: not self.is_constant(user))
        self._gm.graph.eliminate_dead_code()


def rounded(value: Tensor, dtype: torch.dtype, name: str) -> NewConstant:
    """value (float64) rounded once to dtype, as a new constant. Raises Refused when it is not finite there."""
    held = value.to(dtype).contiguous()
    if not bool(held.isfinite().all()):
        word = str(dtype).removeprefix("torch.")
        raise Refused(f"the folded {name} would not be finite in {word}")
    return NewConstant(held.clone(), name)


def rounded_weight(value: Tensor, dtype: torch.dtype, channel_axis: int, name: str) -> NewConstant:
    """As rounded(), for a weight with one filter per entry of channel_axis.

    Raises Refused also when a filter's largest weight falls below dtype's normal numbers: it would keep only
    a few bits, and the folded answer would be wrong where the unfolded one is right (a tiny gamma in
    float16).
    """
    largest = value.abs().movedim(channel_axis, 0).flatten(1).amax(1) if value.numel() else value.new_zeros(1)
    if bool(((largest > 0) & (largest < torch.finfo(dtype).smallest_normal)).any()):
        word = str(dtype).removeprefix("torch.")
        raise Refused(f"the folded {name} would lose its precision: it falls below {word}'s normal numbers")
    return rounded(value, dtype, name)
