"""Run a captured graph in float64, from the graph itself: nothing is copied, one weight at a time is widened.

    before  the graph module that is folded and written, in float32
    after   its outputs, or the value of every node, as exact arithmetic would have them: constants as they were before
            rounding (fold/exact.py), every float type that a node asks for float64

So what a float64 gate proves is the very graph that is written, and it costs the memory of its largest weight.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx
from torch.fx.node import map_arg
from torch.utils._python_dispatch import _disable_current_modes

from foldserve.models.export.fold.exact import exact_value
from foldserve.models.export.process.float64_mode import float64_arithmetic, widened, wider_type

Weights = Callable[[Tensor], Tensor]
"""What to run with in the place of each weight."""


def run_float64(
    graph_module: fx.GraphModule, inputs: Sequence[Tensor], weights: Weights | None = None
) -> tuple[Tensor, ...]:
    """The flat outputs of graph_module, in float64 (integers stay). Raises: what an operator raises."""
    interpreter = Float64Interpreter(graph_module)
    interpreter.weights = weights
    with float64_arithmetic():
        return tuple(interpreter.run(*widened(inputs)))


class Float64Interpreter(fx.Interpreter):
    """Runs a graph within float64_arithmetic(): weights are widened where they are read."""

    weights: Weights | None = None

    def map_nodes_to_values(self, args: Any, n: fx.Node) -> Any:
        # When a weight is read, and not when it is met: a graph names all of its weights first.
        return map_arg(args, self._read)

    def _read(self, node: fx.Node) -> Any:
        value = self.env[node]
        if node.op == "get_attr" and isinstance(value, Tensor) and value.is_floating_point():
            with _disable_current_modes():  # which would widen each part of it by a copy of its own
                wide = exact_value(node, value.detach()).double()
            return wide if self.weights is None else self.weights(wide)
        return value

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Here and not in float64_arithmetic alone: composite operators look at the type before they come there.
        wide_args = tuple(wider_type(a) for a in args)
        wide_kwargs = {k: wider_type(v) for k, v in kwargs.items()}
        return super().call_function(target, wide_args, wide_kwargs)


class Recorder(fx.Interpreter):
    """Runs a graph and keeps the value of every call that gives one tensor, by node name."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op == "call_function":
            self.values[n.name] = value
        return value


class _Float64Recorder(Recorder, Float64Interpreter):
    """The same in float64."""


def float64_values(graph_module: fx.GraphModule, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """The float64 value of every call in graph_module that gives one tensor, by node name."""
    recorder = _Float64Recorder(graph_module)
    with float64_arithmetic():
        recorder.run(*widened(inputs))
    return recorder.values
