"""Write a folded graph in 16 bits: weights converted, casts where two types meet.

    before  y = linear(x, w, b)                                     all float32
    after   x_fp16 = to(x, float16)  y = linear(x_fp16, w_fp16, b_fp16)  y_fp32 = to(y, float32)   y is an output

Which operator runs in which type: mixed.py. Both files are written from the graph made here, so they round at the
same places. Nothing is clamped: what does not fit stays in float32, and the reason is kept for the manifest. Knows
nothing of files.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from foldserve.models.errors import PrecisionNotUsable
from foldserve.models.export.capture.capture import CapturedGraph
from foldserve.models.export.capture.graph_cleanup import where
from foldserve.models.export.capture.graph_copy import copied, without_unused
from foldserve.models.export.precision.mixed import Choice, Measurements, choose, is_float32
from foldserve.models.export.precision.precision import Precision

aten = torch.ops.aten


@dataclass(frozen=True)
class KeptFp32:
    """An operator that stays in float32 for a reason of this network, not by the lists of mixed.py."""

    where: str
    reason: str


@dataclass(frozen=True)
class Converted:
    """captured: the graph to write. kept: what stays in float32 though its kind would not have it there.

    rounded: weight in 16 bits → the weight in the graph before that it is the rounding of.
    """

    captured: CapturedGraph
    kept: tuple[KeptFp32, ...] = ()
    rounded: Mapping[str, str] = field(default_factory=dict)


def convert(
    captured: CapturedGraph, precision: Precision, batches: Sequence[tuple[Tensor, ...]]
) -> Converted:
    """The graph of captured in a precision; captured is left as it is.

    batches: flat inputs on which the size of the numbers is measured.
    Raises: PrecisionNotUsable when nothing would run in 16 bits.
    """
    graph_module = captured.graph_module
    if not precision.is_lower:
        return Converted(captured)
    largest = _largest_values(graph_module, batches)
    lacking: set[OpOverload] = set()
    while True:
        choices = choose(graph_module.graph, precision, Measurements(largest, lacking))
        lower, rounded = _written(graph_module, choices, precision)
        failed = _first_without_kernel(lower, batches[0])
        if failed is None or failed in lacking:
            break
        lacking.add(failed)
    kept = tuple(KeptFp32(where(node), choice.reason) for node, choice in choices.items() if choice.reason)
    if not any(choice.runs == precision.dtype for choice in choices.values()):
        raise PrecisionNotUsable(_nothing_lower(precision, kept))
    return Converted(captured.with_graph(lower), kept, rounded)


def _nothing_lower(precision: Precision, kept: Sequence[KeptFp32]) -> str:
    reasons = "".join(f" {one.where} stays in float32: {one.reason}." for one in kept)
    return (
        f"no operator of this network would run in {precision.word}; expected a convolution, a matrix product or a "
        f"recurrent layer at least.{reasons} Export it with precision fp32."
    )


def _written(
    original: fx.GraphModule, choices: dict[fx.Node, Choice], precision: Precision
) -> tuple[fx.GraphModule, dict[str, str]]:
    """The graph in 16 bits, and Converted.rounded of it."""
    by_name = {node.name: choice for node, choice in choices.items()}
    graph_module = copied(original)
    caster = _Caster(graph_module, precision, by_name)
    for node in list(graph_module.graph.nodes):
        if node.op == "output":
            caster.cast_inputs(node, torch.float32)
        elif node.op == "call_function" and node.name in by_name and node.target is not operator.getitem:
            caster.cast_inputs(node, by_name[node.name].runs)
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and node.name in by_name:
            node.meta["val"] = _as_type(node.meta.get("val"), by_name[node.name].runs)
    graph_module.graph.lint()
    return without_unused(graph_module), caster.rounded


class _Caster:
    """Gives a value in another type: one cast, or one converted weight, for all who read it so."""

    def __init__(
        self, graph_module: fx.GraphModule, precision: Precision, choices: dict[str, Choice]
    ) -> None:
        self._module = graph_module
        self._precision = precision
        self._choices = choices
        self._made: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}
        self.rounded: dict[str, str] = {}

    def cast_inputs(self, node: fx.Node, dtype: torch.dtype) -> None:
        """Let node read every float32 value of the original graph as dtype."""
        node.args = fx.node.map_arg(node.args, lambda source: self._in_type(source, dtype))
        node.kwargs = fx.node.map_arg(node.kwargs, lambda source: self._in_type(source, dtype))

    def _in_type(self, source: fx.Node, dtype: torch.dtype) -> fx.Node:
        if not is_float32(source.meta.get("val")):
            return source
        choice = self._choices.get(source.name)
        if dtype == (choice.runs if choice else torch.float32):
            return source
        if (source, dtype) not in self._made:
            make = self._weight if source.op == "get_attr" else self._cast
            self._made[source, dtype] = make(source, dtype)
        return self._made[source, dtype]

    def _cast(self, source: fx.Node, dtype: torch.dtype) -> fx.Node:
        # Behind all placeholders, which TorchScript and ONNX want first.
        after = source
        while after.next.op == "placeholder":
            after = after.next
        return self._node(source, after, dtype, ("call_function", aten.to.dtype, (source, dtype)))

    def _weight(self, source: fx.Node, dtype: torch.dtype) -> fx.Node:
        target = str(source.target)
        owner, _, name = target.rpartition(".")
        lower = f"{name}_{self._precision.word}"
        value = operator.attrgetter(target)(self._module).detach().to(dtype)
        self._module.get_submodule(owner).register_buffer(lower, value)
        path = f"{owner}.{lower}" if owner else lower
        self.rounded[path] = target
        return self._node(source, source, dtype, ("get_attr", path, ()))

    def _node(
        self, source: fx.Node, after: fx.Node, dtype: torch.dtype, call: tuple[str, Any, tuple[Any, ...]]
    ) -> fx.Node:
        op, target, args = call
        with self._module.graph.inserting_after(after):
            node = self._module.graph.create_node(op, target, args, name=f"{source.name}_as_{_word(dtype)}")
        node.meta = {
            key: source.meta[key] for key in ("nn_module_stack", "stack_trace") if key in source.meta
        }
        node.meta["val"] = _as_type(source.meta["val"], dtype)
        return node


def _word(dtype: torch.dtype) -> str:
    return {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(dtype, "fp32")


def _as_type(value: Any, dtype: torch.dtype) -> Any:
    """A node's `val` with its float32 tensors in dtype, sizes and all else as they are."""
    if isinstance(value, list | tuple):
        return type(value)(_as_type(item, dtype) for item in value)
    if not is_float32(value):
        return value
    with value.fake_mode:
        return value.to(dtype)


def _largest(tensor: Tensor) -> float:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return 0.0
    return float(torch.where(torch.isfinite(tensor), tensor, 0.0).abs().max())


def _largest_values(graph_module: fx.GraphModule, batches: Sequence[tuple[Tensor, ...]]) -> dict[str, float]:
    """Node name → the largest finite magnitude of its floats when graph_module runs the batches."""
    meter = _Meter(graph_module)
    with torch.no_grad():
        for inputs in batches:
            meter.run(*(tensor.clone() for tensor in inputs))
    return meter.largest


class _Meter(fx.Interpreter):
    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.largest: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.largest[n.name] = max(self.largest.get(n.name, 0.0), _largest(value))
        return value


def _first_without_kernel(graph_module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> OpOverload | None:
    """The first operator that cannot run in the type chosen for it, or gives another type than its `val` says."""
    probe = _Probe(graph_module)
    with torch.no_grad():
        try:
            probe.run(*(tensor.clone() for tensor in inputs))
        except RuntimeError:
            if probe.failed is None:
                raise
    return probe.failed


class _Probe(fx.Interpreter):
    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.failed: OpOverload | None = None

    def run_node(self, n: fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except RuntimeError:
            self.failed = n.target if isinstance(n.target, OpOverload) else None
            raise
        planned = n.meta.get("val")
        if isinstance(value, Tensor) and isinstance(planned, Tensor) and value.dtype != planned.dtype:
            self.failed = self.failed or (n.target if isinstance(n.target, OpOverload) else None)
        return value
