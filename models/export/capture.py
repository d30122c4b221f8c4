"""Capture a network as one graph of ATen operators, with torch.export.

    before  an eval copy of an nn.Module (copying.py) and an Example
    after   CapturedGraph: a flat fx graph, tensors in, tuple of tensors out, rows symbolic

torch.export sees hooks, parametrizations, functional norms and reused modules, and refuses what a tracer
would bake in silently (a branch on values). There is no fall-back to a tracer, on purpose. What is done to
the raw graph, and which graphs are refused: cleaning.py. Who may change the graph later: the fold, on a copy.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._dynamo.exc import UserError
from torch.export import Dim
from torch.export.dynamic_shapes import refine_dynamic_shapes_from_suggested_fixes
from torch.utils import _pytree as pytree

from models.errors import BadExample, NotCapturable
from models.export.caches import without_caches
from models.export.cleaning import clean_graph
from models.export.copying import EvalCopy, fresh_copy
from models.export.example import ROWS, Example, checked_names, unique_names
from models.export.plain_names import any_names, give_plain_names
from models.export.quiet import quiet
from models.export.refusals import reason, refuse, user_line
from models.export.running import plain_ways
from models.recurrent import symbolic_length

# Derived sizes (`length` must be a multiple of 8, say) come out of torch.export as suggestions, one round
# each.
_MOST_REFINEMENTS = 6


@dataclass(frozen=True)
class CapturedGraph:
    """A network as one graph.

    graph_module: placeholders are flat tensors named as the inputs, the output is a flat tuple of tensors;
        nodes are ATen overloads, getitem and arithmetic on sizes; weights are get_attr nodes.
    example_inputs: flat, one tensor per placeholder.
    dynamic_shapes: for torch.export on graph_module, one {axis: Dim} per placeholder.
    out_spec: how the flat outputs make up what forward returns.
    """

    graph_module: fx.GraphModule
    example_inputs: tuple[torch.Tensor, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dynamic_shapes: tuple[dict[int, Any], ...]
    out_spec: pytree.TreeSpec

    def with_graph(
        self, graph_module: fx.GraphModule, output_names: tuple[str, ...] | None = None
    ) -> "CapturedGraph":
        """The same capture around another graph module, for example the folded one."""
        names = self.output_names if output_names is None else output_names
        return dataclasses.replace(self, graph_module=graph_module, output_names=names)

    def fixed_axes(self) -> tuple[tuple[int, ...], ...]:
        """Per output, the axes other than the rows that have one size whatever the inputs."""
        shapes = [node.meta["val"].shape for node in self.graph_module.graph.output_node().args[0]]  # type: ignore[union-attr]
        return tuple(
            tuple(axis for axis, size in enumerate(shape) if axis > 0 and isinstance(size, int))
            for shape in shapes
        )


def capture(
    network: EvalCopy, example: Example, output_names: tuple[str, ...] | None = None
) -> CapturedGraph:
    """Return the graph of network; the weights are shared with it.

    Raises: BadExample when the network cannot run the example; NotCapturable with the reason and the mend
    when torch.export refuses, or when the graph is one that cannot be served row by row (cleaning.py).
    """
    _run_once(network, example)
    program, dims = _export(network, example)
    with quiet(), symbolic_length(), any_names():
        try:
            program = program.run_decompositions({})
            raw = program.module(check_guards=False)
        except Exception as error:
            refuse(error, example)
        give_plain_names(raw)
    graph_module = clean_graph(raw, program, example.names)
    out_spec = program.call_spec.out_spec
    own_names = unique_names(_output_names(out_spec), taken=example.names)
    names = checked_names("output_names", output_names, own_names)
    taken = set(names) & set(example.names)
    if taken:
        raise BadExample(
            f"output_names and the inputs share the names {sorted(taken)}; a file needs different ones"
        )
    shapes = tuple({axis: dims[label] for axis, label in axes.items()} for axes in example.axes)
    return CapturedGraph(graph_module, example.tensors, example.names, names, shapes, out_spec)


def _run_once(network: EvalCopy, example: Example) -> None:
    """Run the example eagerly, so that a wrong shape is told in the network's own words."""
    try:
        with plain_ways(network.converted):
            example.call(fresh_copy(network.module), [t.clone() for t in example.tensors])
    except Exception as error:
        shapes = ", ".join(
            f"{n}: {str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}"
            for n, t in zip(example.names, example.tensors, strict=True)
        )
        raise BadExample(
            f"the network fails on its own example ({shapes}): {reason(error)}"
            f"{user_line(error)}. Give example inputs that the network accepts, dim 0 = rows."
        ) from error


def _export(network: EvalCopy, example: Example) -> tuple[torch.export.ExportedProgram, dict[str, Any]]:
    labels = {label for axes in example.axes for label in axes.values()}
    dims: dict[str, Any] = {label: Dim(label, min=1) for label in sorted(labels)}
    arguments = tuple(pytree.tree_unflatten([t.clone() for t in example.tensors], example.in_spec))
    module = without_caches(network, example)
    for _ in range(_MOST_REFINEMENTS):
        shapes = example.dynamic_shapes(dims)
        try:
            with quiet(), plain_ways(network.converted), symbolic_length(), any_names():
                # A copy each time: what a capture leaves in a network are stand-ins without numbers.
                return torch.export.export(fresh_copy(module), arguments, dynamic_shapes=shapes), dims
        except UserError as error:
            refined = _refined(error, example, dims) or _raised(error, example, dims)
            if refined is None:
                refuse(error, example)
            dims = refined
        except Exception as error:
            refuse(error, example)
    raise NotCapturable(
        f"no sizes could be found for the dynamic axes {sorted(labels - {ROWS})}; give fewer of them"
    )


def _refined(error: Exception, example: Example, dims: dict[str, Any]) -> dict[str, Any] | None:
    """dims as torch.export suggests them (a bound, a multiple), or None where it suggests to fix one."""
    shapes = example.dynamic_shapes(dims)
    try:
        # torch appends advice after the suggestions, which its own reader stumbles over.
        suggestions = str(error).partition("The error above")[0]
        refined = refine_dynamic_shapes_from_suggested_fixes(suggestions, shapes)
    except Exception:  # no suggestions in the message, or none that torch can read back
        return None
    leaves = pytree.tree_leaves(refined, is_leaf=_is_axes)
    better: dict[str, Any] = {}
    for axes, mine in zip(example.axes, leaves, strict=True):
        for axis, label in axes.items():
            dim = mine[axis]
            if isinstance(dim, int) or (label == ROWS and _bounds(dim) != _bounds(dims[ROWS])):
                return None  # a fixed size, or a number of rows that must be a multiple
            better[label] = dim
    changed = any(_bounds(better[label]) != _bounds(dims[label]) for label in dims)
    return better if changed else None


def _raised(error: Exception, example: Example, dims: dict[str, Any]) -> dict[str, Any] | None:
    """dims with the smallest size of each axis but the rows one higher, or None where that cannot help.

    A size inside that comes out as 1 (a length of 3 before a kernel of 3) is special to torch.export, which
    then gives a guard and no suggestion. The example itself must stay inside the bounds.
    """
    if "generated guard" not in str(error):
        return None
    sizes: dict[str, int] = {}
    for axes, tensor in zip(example.axes, example.tensors, strict=True):
        for axis, label in axes.items():
            sizes[label] = min(sizes.get(label, tensor.shape[axis]), tensor.shape[axis])
    raised = dict(dims)
    for label, dim in dims.items():
        if label != ROWS and hasattr(dim, "min") and dim.min < sizes[label]:
            raised[label] = Dim(label, min=dim.min + 1, max=dim.max)
    return raised if any(_bounds(raised[label]) != _bounds(dims[label]) for label in dims) else None


def _is_axes(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(k, int) for k in value)


def _bounds(dim: Any) -> tuple[str, Any, Any]:
    return dim.__name__, getattr(dim, "min", None), getattr(dim, "max", None)


def _output_names(out_spec: pytree.TreeSpec) -> tuple[str, ...]:
    """`y` for a single tensor; the keys of a dict or the fields of a named tuple; else y0, y1, ..."""
    count = out_spec.num_leaves
    if count == 1 and out_spec.is_leaf():
        return ("y",)
    dummy = pytree.tree_unflatten(list(range(count)), out_spec)
    names = []
    for path, index in pytree.tree_flatten_with_path(dummy)[0]:
        words = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
        numbers = [str(key.idx) for key in path if hasattr(key, "idx")]
        named = "_".join([word for word in words if word] + numbers)
        names.append(named if any(words) else f"y{index}")
    return tuple(names)
