"""Questions the rules ask about a captured graph: arguments by name, symbolic shapes, who reads a value.

Reads only; edits live in plan.py. Nothing here knows about norms. Sizes are Python ints where they are static
and torch.SymInt where they are dynamic: two sizes are the same only when that is true for every value of the
symbols, never because an example happened to have equal ones.
"""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx
from torch.fx.node import map_arg

aten = torch.ops.aten
Size = int | torch.SymInt

# These look at a value's shape, dtype or device but not at its numbers, so a fold may change the numbers
# under them.
_METADATA_READERS = frozenset(
    {
        aten.sym_size.int,
        aten.sym_size.default,
        aten.sym_numel.default,
        aten.sym_stride.int,
        aten.sym_stride.default,
        aten.sym_storage_offset.default,
        aten._assert_tensor_metadata.default,
    }
)


def is_call(node: object, *targets: object) -> bool:
    """True when node calls one of targets (any function when none is given)."""
    return (
        isinstance(node, fx.Node) and node.op == "call_function" and (not targets or node.target in targets)
    )


def schema_of(target: object) -> Any:
    return target._schema if isinstance(target, torch._ops.OpOverload) else None


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an aten call by their schema names, defaults filled in."""
    schema = schema_of(node.target)
    values = {a.name: a.default_value if a.has_default_value() else None for a in schema.arguments}
    positional = [a.name for a in schema.arguments if not a.kwarg_only]
    values.update(zip(positional, node.args, strict=False))
    values.update(node.kwargs)
    return values


def call_arguments(target: Any, values: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) that call target with values; trailing arguments equal to their default are left out."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for argument in target._schema.arguments:
        if argument.kwarg_only:
            if values[argument.name] != argument.default_value:
                kwargs[argument.name] = values[argument.name]
        else:
            args.append(values[argument.name])
    positional = [a for a in target._schema.arguments if not a.kwarg_only]
    while args and positional[len(args) - 1].has_default_value():
        default = positional[len(args) - 1].default_value
        if type(args[-1]) is not type(default) or args[-1] != default:
            break
        args.pop()
    return tuple(args), kwargs


def value_of(node: fx.Node) -> Any:
    return node.meta.get("val")


def is_tensor(node: object) -> bool:
    return isinstance(node, fx.Node) and isinstance(value_of(node), torch.Tensor)


def shape_of(node: fx.Node) -> tuple[Size, ...]:
    return tuple(value_of(node).shape)


def rank_of(node: fx.Node) -> int:
    return len(value_of(node).shape)


def dtype_of(node: fx.Node) -> torch.dtype:
    dtype: torch.dtype = value_of(node).dtype
    return dtype


def expression(size: Size) -> sympy.Expr:
    """size as a sympy expression in the graph's symbols."""
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def static(size: Size) -> int | None:
    """size as an int when it is the same for all values of the symbols, else None."""
    expr = expression(size)
    return int(expr) if expr.is_number else None


def is_float(node: fx.Node) -> bool:
    """True when node holds real floating-point numbers: the only ones that affine maps are carried through."""
    return is_tensor(node) and dtype_of(node) in (
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    )


def same_size(left: Size, right: Size) -> bool:
    """True only when the two sizes are equal for every value of the symbols."""
    return bool(sympy.expand(expression(left) - expression(right)) == 0)


def same_shape(left: fx.Node, right: fx.Node) -> bool:
    mine, theirs = shape_of(left), shape_of(right)
    return len(mine) == len(theirs) and all(same_size(a, b) for a, b in zip(mine, theirs, strict=True))


def uses(reader: fx.Node, value: fx.Node) -> int:
    """How many times reader takes value among its arguments (x + x takes x twice)."""
    count = 0

    def look(node: fx.Node) -> fx.Node:
        nonlocal count
        count += node is value
        return node

    map_arg((reader.args, reader.kwargs), look)
    return count


def readers(value: fx.Node) -> list[fx.Node]:
    """The nodes that use value's numbers, the output among them; those that only ask for its shape are left out."""
    return [user for user in value.users if not is_call(user, *_METADATA_READERS)]


def producer_of(value: fx.Node) -> tuple[fx.Node, int | None]:
    """The call that makes value, and which of its outputs value is (None when it has one output)."""
    if is_call(value, operator.getitem) and isinstance(value.args[0], fx.Node):
        index = value.args[1]
        return value.args[0], index if isinstance(index, int) else None
    return value, None


def parts(call: fx.Node) -> dict[int, list[fx.Node]]:
    """The getitem nodes of a call with several outputs, by output, those whose numbers somebody reads."""
    found: dict[int, list[fx.Node]] = {}
    for user in call.users:
        if is_call(user, operator.getitem) and readers(user):
            index = user.args[1]
            assert isinstance(index, int)
            found.setdefault(index, []).append(user)
    return found


def axis_in(dim: int, rank: int) -> int:
    """dim as a non-negative axis."""
    return dim + rank if dim < 0 else dim


def op_name(node: fx.Node) -> str:
    """A short name of what node does, for reasons: 'relu', 'conv2d', 'input'."""
    if node.op == "placeholder":
        return "input"
    if node.op == "get_attr":
        return "constant"
    if node.op == "output":
        return "output"
    schema = schema_of(node.target)
    return str(node.name) if schema is None else str(schema.name).split("::")[-1]


def describe(node: fx.Node) -> str:
    """node for a reason: what it is and its name."""
    name = op_name(node)
    if node.op == "output":
        return "the network's output"
    if node.op == "placeholder":
        return f"the network's input {node.target}"
    return node.name if name == node.name else f"{node.name} ({name})"


def module_path(node: fx.Node, names_it: Callable[[str], bool]) -> str:
    """The path of the module whose call node is, when names_it accepts its type; else path and node name."""
    stack = node.meta.get("nn_module_stack") or {}
    entries = [entry for entry in stack.values() if isinstance(entry, tuple) and len(entry) == 2]
    if not entries:
        return node.name
    path, kind = entries[-1]
    kind_name = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
    if path and names_it(kind_name.rsplit(".", 1)[-1]):
        return str(path)
    return f"{path}.{node.name}" if path else node.name


def nested_graphs(gm: fx.GraphModule) -> Iterator[tuple[str, fx.GraphModule]]:
    """The subgraphs (branches of torch.cond and the like) that gm calls, with their names."""
    for node in gm.graph.find_nodes(op="get_attr"):
        part: Any = gm
        for atom in str(node.target).split("."):
            part = getattr(part, atom)
        if isinstance(part, fx.GraphModule):
            yield str(node.target), part
            yield from ((f"{node.target}.{name}", inner) for name, inner in nested_graphs(part))
