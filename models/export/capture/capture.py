"""Capture a network as one graph of ATen operators, with torch.export.

    before  an eval copy of an nn.Module (module_copy.py) and an Example
    after   CapturedGraph: a flat fx graph, tensors in, tuple of tensors out, rows symbolic

torch.export sees hooks, parametrizations, functional norms and reused modules, and refuses what a tracer
would bake in silently (a branch on values). There is no fall-back to a tracer, on purpose. What is done to
the raw graph, and which graphs are refused: graph_cleanup.py. Who may change the graph later: the fold, on a copy.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.export import Dim

from foldserve.models.errors import BadExample, ExportError
from foldserve.models.export.capture.graph_cleanup import clean_graph
from foldserve.models.export.capture.graph_copy import without_code
from foldserve.models.export.capture.outputs import Outputs
from foldserve.models.export.capture.sizes.guards import read_assumptions
from foldserve.models.export.capture.sizes.settling import own_sizes, settle
from foldserve.models.export.capture.sizes.sizes import Sizes, find_sizes
from foldserve.models.export.capture.sizes.trials import Trials, eager_runner
from foldserve.models.export.capture.tracing.history import (
    forget_last_trace,
    without_history,
    without_origins,
)
from foldserve.models.export.capture.tracing.linear_lookups import linear_lookups
from foldserve.models.export.capture.tracing.sizes_in_calls import sizes_in_calls
from foldserve.models.export.capture.tracing.symbolic_keys import sizes_as_keys
from foldserve.models.export.capture.tracing.unguarded import without_guards
from foldserve.models.export.network.caches import copy_to_capture
from foldserve.models.export.network.example.example import Example, checked_names, unique_names
from foldserve.models.export.network.flat import FlatNetwork, tensors_of, without_wrapper
from foldserve.models.export.network.module_copy import EvalCopy
from foldserve.models.export.network.plain_names import any_names, give_plain_names
from foldserve.models.export.network.refusals import reason, refuse, refused_calls, user_line
from foldserve.models.export.process.running import plain_ways, unchecked_distributions
from foldserve.models.export.process.suppress_output import suppress_output
from foldserve.models.recurrent import symbolic_length


@dataclass(frozen=True)
class CapturedGraph:
    """A network as one graph.

    graph_module: placeholders are flat tensors named as the inputs, the output is a flat tuple of tensors;
        nodes are ATen overloads, getitem and arithmetic on sizes; weights are get_attr nodes.
    example_inputs: flat, one tensor per placeholder; larger than the user's where that fixed an axis (settling.py).
    dynamic_shapes: for torch.onnx.export on graph_module, one {axis: name} per placeholder.
    sizes: which sizes of the dynamic axes the graph answers for.
    outputs: which parts of what forward returns the outputs are.
    together: whether the rows belong together (row_modes.py).
    """

    graph_module: fx.GraphModule
    example_inputs: tuple[torch.Tensor, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dynamic_shapes: tuple[dict[int, str], ...]
    sizes: Sizes
    outputs: Outputs
    together: bool = False

    def with_graph(
        self, graph_module: fx.GraphModule, output_names: tuple[str, ...] | None = None
    ) -> "CapturedGraph":
        """The same capture around another graph module, for example the folded one."""
        names = self.output_names if output_names is None else output_names
        return dataclasses.replace(self, graph_module=graph_module, output_names=names)

    def fixed_axes(self) -> tuple[tuple[int, ...], ...]:
        """Per output, the axes other than the rows that have one size whatever the inputs."""
        first = 0 if self.together else 1
        shapes = [node.meta["val"].shape for node in self.graph_module.graph.output_node().args[0]]  # type: ignore[union-attr]
        return tuple(
            tuple(axis for axis, size in enumerate(shape) if axis >= first and isinstance(size, int))
            for shape in shapes
        )


def capture(
    network: EvalCopy, example: Example, output_names: tuple[str, ...] | None = None
) -> CapturedGraph:
    """Return the graph of network; the weights are shared with it.

    Raises: BadExample when the network cannot run the example; NotCapturable with the reason and the mend
    when torch.export refuses, or when the graph is one that cannot be served row by row (graph_cleanup.py).
    """
    returned = _run_once(network, example)
    settled = settle(
        example,
        lambda enlarged: _export(network, enlarged),
        eager_runner(lambda tensors: tensors_of(_run(network, example, tensors))),
    )
    with suppress_output(), symbolic_length(), any_names(), linear_lookups(), without_guards():
        try:
            without_origins(settled.program.graph)
            program = settled.program.run_decompositions({})
            without_origins(program.graph)
            with without_code():
                raw = program.module(check_guards=False)
        except Exception as error:
            refuse(error)
        forget_last_trace()
        without_wrapper(raw, example.names)
        give_plain_names(raw)
    assumptions = read_assumptions(program, example.axes)  # again: decomposing may assume more
    graph_module, outputs = clean_graph(raw, program, example.names, returned, together=example.together)
    without_history(graph_module.graph)
    own_names = unique_names(outputs.names, taken=example.names)
    names = checked_names("output_names", output_names, own_names)
    taken = set(names) & set(example.names)
    if taken:
        raise BadExample(
            f"output_names and the inputs share the names {sorted(taken)}; a file needs different ones"
        )
    served = eager_runner(lambda tensors: outputs.read(_run(network, example, tensors)))
    trials = Trials(served, graph_module, settled.example)
    sizes = find_sizes(own_sizes(settled.example), assumptions, trials, settled.narrowed)
    sizes.check_example(own_sizes(example))
    shapes = tuple(
        {axis: sizes.name_of(name) for axis, name in axes.items()} for axes in settled.example.axes
    )
    return CapturedGraph(
        graph_module,
        settled.example.tensors,
        example.names,
        names,
        shapes,
        sizes,
        outputs,
        example.together,
    )


def _run_once(network: EvalCopy, example: Example) -> Any:
    """Run the example eagerly, so that a wrong shape is told in the network's own words; what it returns."""
    try:
        with refused_calls():
            return _run(network, example, example.tensors)
    except ExportError:
        raise
    except Exception as error:
        shapes = ", ".join(
            f"{n}: {str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}"
            for n, t in zip(example.names, example.tensors, strict=True)
        )
        raise BadExample(
            f"the network fails on its own example ({shapes}): {reason(error)}"
            f"{user_line(error)}. Give example inputs that the network accepts, dim 0 = rows."
        ) from error


def _run(network: EvalCopy, example: Example, tensors: Sequence[torch.Tensor]) -> Any:
    with plain_ways(network.converted):
        return example.call(network.runs.module(), [t.clone() for t in tensors])


def _export(network: EvalCopy, example: Example) -> torch.export.ExportedProgram:
    # AUTO: torch.export notes what it assumes of a size, instead of refusing what is not every size.
    shapes = {"inputs": tuple(dict.fromkeys(axes, Dim.AUTO) for axes in example.axes)}
    arguments = tuple(t.clone() for t in example.tensors)
    try:
        with (
            suppress_output(),
            plain_ways(network.converted),
            unchecked_distributions(),
            symbolic_length(),
            any_names(),
            sizes_as_keys(),
            sizes_in_calls(network.module),
            linear_lookups(),
        ):
            # A copy each time: what a capture leaves in a network are stand-ins without numbers.
            flat = FlatNetwork(copy_to_capture(network.module), example)
            return torch.export.export(flat, arguments, dynamic_shapes=shapes)
    except Exception as error:
        refuse(error)
