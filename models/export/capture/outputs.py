"""Which parts of what forward returns become outputs of the artifact, and how: decided once, on the graph.

    before  {"logits": (T, rows, C), "loss": (), "hidden": None}
    after   logits (rows, T, C); left out: loss (one number for the whole batch), hidden (None)

A server puts the rows of many requests into one batch and gives each request its own rows of every output. So an
output has the rows in dim 0. Where the network has them in another dim, the graph gets a permutation. What holds
no rows can belong to no request: one number for the whole batch, a constant of the network, None. It is left
out, and the manifest says so, with the value where it is a constant number. A larger tensor without rows that
depends on the inputs is an answer somebody waits for: it is refused, never dropped. Where the rows belong together
(row_modes.py), every tensor that depends on the inputs is an answer to the request, and kept as it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from foldserve.models.errors import NotCapturable
from foldserve.models.export.network.example.datatypes import OIP_WORDS
from foldserve.models.export.network.example.row_modes import SERVE_TOGETHER
from foldserve.models.export.network.example.structure import Path, leaves
from foldserve.models.export.network.flat import tensors_of

aten = torch.ops.aten

_Rows = frozenset[Any]
"""The symbols that stand for the number of rows."""


@dataclass(frozen=True)
class Output:
    """An output. tensor: its place among the tensors that forward returns. rows_dim: where those rows are there."""

    tensor: int
    rows_dim: int


@dataclass(frozen=True)
class LeftOut:
    """A part of what forward returns that no file answers. value: that of a constant number, else None."""

    name: str
    reason: str
    value: float | int | bool | str | None = None


@dataclass(frozen=True)
class Outputs:
    """What a network answers. names: one per kept output, as its structure calls them."""

    names: tuple[str, ...]
    kept: tuple[Output, ...]
    left_out: tuple[LeftOut, ...]

    def read(self, returned: Any) -> tuple[Tensor, ...]:
        """The outputs, rows in dim 0, of what the eager network returned."""
        tensors = tensors_of(returned)
        return tuple(_rows_first_of(tensors[output.tensor], output.rows_dim) for output in self.kept)


def _rows_first_of(tensor: Tensor, dim: int) -> Tensor:
    return tensor.movedim(dim, 0) if dim else tensor


def select_outputs(
    graph: fx.Graph, returned: Any, input_names: Sequence[str], *, together: bool = False
) -> Outputs:
    """Reduce the flat tuple that graph returns to the outputs, in place.

    graph: of flat tensors, rows in dim 0 of its inputs. returned: what eager forward gave for the example.
    together: whether the rows belong together.
    Raises: NotCapturable when nothing holds rows, or when a part is no tensor that could be served.
    """
    rows = frozenset() if together else _rows_symbols(graph, input_names)
    named = _named_leaves(returned)
    nodes: list[Any] = list(graph.output_node().args[0])  # type: ignore[arg-type]
    tensors = iter(range(len(nodes)))
    kept, names, left_out, answers = [], [], [], []
    for name, leaf in named:
        if not isinstance(leaf, Tensor):
            left_out.append(_no_tensor(name, leaf))
            continue
        place = next(tensors)
        value = nodes[place].meta["val"]
        dim = _whole(nodes[place]) if together else _rows_dim(value, rows)
        if dim is None:
            left_out.append(_without_rows(name, nodes[place], leaf, rows))
            continue
        _refuse_type(name, value)
        kept.append(Output(place, dim))
        names.append(name)
        answers.append(_rows_first(graph, nodes[place], dim))
    if not kept:
        raise NotCapturable(_nothing_kept(named, nodes, rows))
    graph.output_node().args = (tuple(answers),)
    return Outputs(tuple(names), tuple(kept), tuple(left_out))


def _rows_symbols(graph: fx.Graph, input_names: Sequence[str]) -> _Rows:
    """What the number of rows is called in the graph: each input has a symbol of its own, unless the network needs
    them to be as many."""
    sizes = [node.meta["val"].shape[0] for node in graph.find_nodes(op="placeholder")]
    for name, size in zip(input_names, sizes, strict=True):
        if isinstance(size, int):
            raise NotCapturable(
                f"the network fixes the number of rows of {name!r} at {size}; use x.shape[0] instead of a number. "
                + SERVE_TOGETHER
            )
    return frozenset(size.node.expr for size in sizes)


def _named_leaves(returned: Any) -> list[tuple[str, Any]]:
    """`y` for a single tensor; the keys of a dict or the fields of a named tuple; else y0, y1, ..."""
    found = leaves(returned)
    if len(found) == 1 and not found[0][0]:
        return [("y", found[0][1])]
    return [(_name(path, index), leaf) for index, (path, leaf) in enumerate(found)]


def _name(path: Path, index: int) -> str:
    words = [step for step in path if isinstance(step, str) and step]
    numbers = [str(step) for step in path if isinstance(step, int)]
    return "_".join(words + numbers) if words else f"y{index}"


def _rows_dim(value: Tensor, rows: _Rows) -> int | None:
    """The dim that counts the rows: dim 0 where it does, or else the only one that does."""
    dims = [dim for dim, size in enumerate(value.shape) if _is(size, rows)]
    others = [size for dim, size in enumerate(value.shape) if dim not in dims and _counts(size, rows)]
    if dims and dims[0] == 0:
        return 0
    return dims[0] if len(dims) == 1 and not others else None


def _whole(node: fx.Node) -> int | None:
    """0, for an answer is kept as it is; None for what is no answer to the inputs."""
    return None if _is_constant(node) else 0


def _is(size: Any, rows: _Rows) -> bool:
    return not isinstance(size, int) and bool(size.node.expr in rows)


def _counts(size: Any, rows: _Rows) -> bool:
    """Whether a size depends on the number of rows: rows * heads, say."""
    symbols = frozenset().union(*(one.free_symbols for one in rows))
    return not isinstance(size, int) and bool(size.node.expr.free_symbols & symbols)


def _rows_first(graph: fx.Graph, node: fx.Node, dim: int) -> fx.Node:
    """node, or a permutation of it that has dim as the first and the others in their order."""
    if dim == 0:
        return node
    dims = [dim, *(d for d in range(node.meta["val"].dim()) if d != dim)]
    with graph.inserting_before(graph.output_node()):
        moved = graph.call_function(aten.permute.default, (node, dims))
    moved.meta = {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}
    with node.meta["val"].fake_mode:
        moved.meta["val"] = node.meta["val"].permute(dims)
    return moved


def _no_tensor(name: str, leaf: Any) -> LeftOut:
    if leaf is None or isinstance(leaf, bool | int | float | complex | str | torch.SymInt):
        return LeftOut(name, f"it is {leaf!r}, no tensor")
    raise NotCapturable(
        f"output {name!r} of forward is a {type(leaf).__name__}; expected tensors in tuples, lists, dicts, "
        "dataclasses or named tuples. Return the tensors that it holds."
    )


def _without_rows(name: str, node: fx.Node, leaf: Tensor, rows: _Rows) -> LeftOut:
    """Raises: NotCapturable when a tensor without rows may be an answer to them."""
    if _is_constant(node):
        number = _number(leaf) if leaf.numel() == 1 else None
        return LeftOut(name, "it is the same for every request, since it depends on no input", number)
    # By the graph's sizes: that of x[x > 0] is 1 for some examples, and means nothing.
    if all(isinstance(size, int) and size == 1 for size in node.meta["val"].shape):
        return LeftOut(
            name,
            "it is one number for the whole batch, which holds the rows of many requests; see --rows together",
        )
    raise NotCapturable(_no_rows(f"output {name!r} of forward", node.meta["val"], rows))


def _is_constant(node: fx.Node) -> bool:
    """Whether no input, and no random number, has a say in the value of node."""
    seen, waiting = {node}, [node]
    while waiting:
        one = waiting.pop()
        draws = torch.Tag.nondeterministic_seeded in getattr(one.target, "tags", ())
        if one.op == "placeholder" or draws:
            return False
        more = set(one.all_input_nodes) - seen
        seen |= more
        waiting += more
    return True


def _number(leaf: Tensor) -> float | int | bool | str:
    """The only value of leaf, as JSON can hold it."""
    value = leaf.detach().reshape(()).item()
    exact = isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))
    return value if exact else str(value)


def _nothing_kept(named: Sequence[tuple[str, Any]], nodes: Sequence[fx.Node], rows: _Rows) -> str:
    if not named:
        return "forward returns nothing; expected a tensor, or a tuple or dict of tensors"
    name, first = next(((n, leaf) for n, leaf in named if isinstance(leaf, Tensor)), named[0])
    place = "what forward returns" if len(named) == 1 else f"output {name!r} of forward"
    if not isinstance(first, Tensor):
        return f"{place} is {first!r}; expected a tensor with the rows in dim 0"
    return _no_rows(place, nodes[0].meta["val"], rows)


def _no_rows(place: str, value: Tensor, rows: _Rows) -> str:
    shape = "(" + ", ".join("rows" if _is(size, rows) else str(size) for size in value.shape) + ")"
    return (
        f"{place} has the shape {shape}; expected dim 0 to be the rows, as in the inputs, or one other dim, "
        "since the server gives each request its own rows. Return one entry per row, or leave it out of what "
        f"forward returns. {SERVE_TOGETHER}"
    )


def _refuse_type(name: str, value: Tensor) -> None:
    if value.dtype not in OIP_WORDS:
        raise NotCapturable(
            f"output {name!r} of forward is {value.dtype}, which no client could be told; expected one of "
            f"{', '.join(str(dtype) for dtype in OIP_WORDS)}. Convert it in forward, for example with "
            ".float() or torch.view_as_real()."
        )
