"""Prove a file layer by layer: every value that it computes on the way, against float64, by that value's own size.

    before  the graph that the file was written from, and a way to ask the file for its value of a node
    answer  the first node where the file does something else than the graph, or None

The outputs alone cannot prove a layer that hardly reaches them: a deep weight of a U-Net that is 2 % too large moves
the answer by 3e-6 of its size, and float32 itself by a tenth of that. At the layer it is 2 %.

The graph runs in float64, and wherever the file has a value, what comes behind is computed from the file's. So each
layer is looked at by itself, on the very numbers that it gets in the file: differences do not add up over the depth,
and a number that is rounded to another side of a comparison moves nothing behind it. A value that the file does not
have (its writer made one operator of two) is part of the next layer.

How far a layer may be off: the tolerance; or, where that is not enough,

    20 times what float32 is off there on the same numbers   a layer that loses digits: a difference of large numbers
    a few roundings of the largest number that takes part    a result that is almost zero beside what it is made of
    the tolerance, from what float32 gives there             which may overflow where float64 does not
    4 times what the operator is off in 16 bits              in 16 bits alone: their roundings are left out here
                                                             (exactness.py), but for numbers inside of an operator

Of whole numbers and booleans those made from such must be the same. Those made from floats may differ in a tenth of the
elements (near ties), and where they tell an order, as argmax does, in all: equal numbers have none.
"""

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.fx.node import map_arg

from foldserve.models.export.capture.graph_cleanup import where
from foldserve.models.export.capture.value_sizes import bytes_of_values
from foldserve.models.export.network.difference import Difference, Scale, difference, scale_of
from foldserve.models.export.precision.precision import FP32
from foldserve.models.export.process.float64_mode import float64_arithmetic, widened
from foldserve.models.export.verify.float64_graph import Float64Interpreter
from foldserve.models.export.verify.tolerance import LARGEST_DOUBT, OWN_ERROR_FACTOR
from foldserve.service.artifact.tolerance import LOWER_ERROR_FACTOR

_HALVES = frozenset({torch.float16, torch.bfloat16})
# Whose numbers nobody has set.
_UNSET = frozenset(
    {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"}
)
_ORDERS = frozenset({"argmax", "argmin", "argsort"})
# Of the largest number that takes part in a layer: runtimes compute a sigmoid to so many digits of its input's, and not
# to those of a result that is almost zero.
_ROUNDINGS = 4
# Values are asked for so many bytes at a time, or as many as the weights have: they are all in memory at once.
_LEAST_BYTES = 1 << 26


class FileValues(Protocol):
    """A file as what it computes on the way."""

    @property
    def nodes(self) -> Collection[str]:
        """Names of the graph's nodes whose value it has."""

    def fetch(
        self, nodes: Sequence[str], inputs: tuple[Tensor, ...], known: Mapping[str, Tensor]
    ) -> Sequence[Tensor]:
        """The values of some nodes, in their order, on flat inputs. known: of nodes before, to begin with if it can.

        Raises: FormNotWritten where the file cannot be opened or run for it.
        """


@dataclass(frozen=True)
class WrongLayer:
    """Where a file does something else than its graph: the place in the user's network, and how far it is off."""

    place: str
    difference: Difference
    allowed: float


def first_wrong_layer(
    graph_module: fx.GraphModule,
    inputs: tuple[Tensor, ...],
    values: FileValues,
    tolerance: float,
    *,
    exact: bool,
) -> WrongLayer | None:
    """The first layer of a file that differs. exact: the file computes in float64, so that no layer loses digits."""
    served = _served(graph_module, inputs, values)
    wrong = _Proof(graph_module, tolerance, None, served).wrong_layer(inputs)
    if wrong is None or exact:
        return wrong
    served = _served(graph_module, inputs, values)
    return _Proof(graph_module, tolerance, _Plain(graph_module, inputs), served).wrong_layer(inputs)


def _served(
    graph_module: fx.GraphModule, inputs: tuple[Tensor, ...], values: FileValues
) -> Iterator[tuple[str, Tensor]]:
    """The file's values in the order of the graph, a part of them in memory at a time."""
    sizes = bytes_of_values(graph_module, inputs)
    limit = max(_LEAST_BYTES, sum(t.numel() * t.element_size() for t in graph_module.state_dict().values()))
    parts: list[list[str]] = [[]]
    size = 0
    for name in filter(values.nodes.__contains__, sizes):
        if parts[-1] and size + sizes[name] > limit:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += sizes[name]
    last = _last_readers(graph_module.graph)
    at = {name: index for index, name in enumerate(sizes)}
    known: dict[str, Tensor] = {}
    for part in filter(None, parts):
        found = dict(zip(part, values.fetch(part, inputs, known), strict=True))
        yield from found.items()
        end = at[part[-1]]
        known = {name: value for name, value in (known | found).items() if at.get(last[name], end) > end}


def _last_readers(graph: fx.Graph) -> dict[str, str]:
    """Of each node the last one that reads it, or itself."""
    last = {}
    for node in graph.nodes:
        last[node.name] = node.name
        for source in node.all_input_nodes:
            last[source.name] = node.name
    return last


class _Plain(fx.Interpreter):
    """The same graph on the same numbers in float32: how many digits each layer itself loses."""

    def __init__(self, graph_module: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
        super().__init__(graph_module)
        self.args_iter = iter(inputs)

    def follow(self, node: fx.Node) -> Any:
        """The value of node in float32, those before it being known."""
        self.env[node] = self.run_node(node)
        return self.env[node]

    def in_16_bits(self, node: fx.Node) -> Tensor:
        """The value of node as its operator gives it in 16 bits, from values that are rounded to them."""
        args, kwargs = map_arg((node.args, node.kwargs), self._rounded)
        value: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
        return value

    def map_nodes_to_values(self, args: Any, n: fx.Node) -> Any:
        return map_arg(args, self._widened)

    def _widened(self, node: fx.Node) -> Any:
        value = self.env[node]
        return value.float() if isinstance(value, Tensor) and value.dtype in _HALVES else value

    def _rounded(self, node: fx.Node) -> Any:
        return self.env[node].to(node.meta["val"].dtype) if _is_in_16_bits(node) else self.env[node]

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        wide = {key: _not_half(a) for key, a in kwargs.items()}
        return super().call_function(target, tuple(_not_half(a) for a in args), wide)


def _is_in_16_bits(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype in _HALVES


def _not_half(value: Any) -> Any:
    return torch.float32 if isinstance(value, torch.dtype) and value in _HALVES else value


class _Found(Exception):
    """Ends the run of a graph at the first wrong layer."""


class _Proof(Float64Interpreter):
    """Runs the graph in float64 on the file's own values, and compares."""

    def __init__(
        self,
        graph_module: fx.GraphModule,
        tolerance: float,
        plain: _Plain | None,
        served: Iterator[tuple[str, Tensor]],
    ) -> None:
        super().__init__(graph_module)
        self._tolerance = tolerance
        self._plain = plain
        self._served = served
        self._next = next(served, None)
        self._wrong: WrongLayer | None = None

    def wrong_layer(self, inputs: Sequence[Tensor]) -> WrongLayer | None:
        with torch.no_grad(), contextlib.suppress(_Found):
            self.run(*widened(inputs))
        return self._wrong

    def run_node(self, n: fx.Node) -> Any:
        with float64_arithmetic():
            want = super().run_node(n)
        if self._plain is not None:
            self._plain.follow(n)
        if self._next is not None and self._next[0] == n.name:
            got = self._next[1]
            self._next = next(self._served, None)
            if isinstance(want, Tensor) and not _is_unset(n):
                self._compare(n, got, want)
                want = _in_place_of(want, got)
                if self._plain is not None:
                    self._plain.env[n] = _in_place_of(self._plain.env[n], got)
        if self._plain is not None:
            for last in self.user_to_last_uses.get(n, []):
                self._plain.env.pop(last, None)
        return want

    def _compare(self, node: fx.Node, got: Tensor, want: Tensor) -> None:
        scale = _scale(want) if want.is_floating_point() else None
        found = difference(got, want, scale)
        allowed = _doubt(node) if scale is None else self._tolerance
        if found.max_rel <= allowed:
            return
        if scale is not None and self._plain is not None:
            allowed = max(allowed, _lost(node, self._plain, want, scale))
            plain = self._plain.env[node]
            taking_part = [want, *(self._plain.env[source] for source in node.all_input_nodes)]
            if (
                found.max_rel <= allowed
                or difference(got, plain, _scale(plain)).max_rel <= self._tolerance
                or found.max_abs <= _ROUNDINGS * FP32.roundoff * max(map(_size, taking_part))
            ):
                return
        self._wrong = WrongLayer(where(node), found, allowed)
        raise _Found


def _lost(node: fx.Node, plain: _Plain, want: Tensor, scale: Scale) -> float:
    """How far node may be off since its operator loses digits, where that is finite."""
    lost = [OWN_ERROR_FACTOR * difference(plain.env[node], want, scale).max_rel]
    if _is_in_16_bits(node):
        lost.append(LOWER_ERROR_FACTOR * difference(plain.in_16_bits(node), want, scale).max_rel)
    return max(filter(math.isfinite, lost), default=0.0)


def _size(value: Any) -> float:
    """The largest magnitude, but of a mask's."""
    is_floats = isinstance(value, Tensor) and value.is_floating_point()
    return scale_of([value], ()).whole if is_floats else 0.0


def _scale(want: Tensor) -> Scale:
    return scale_of([want], range(1, want.dim()))


def _in_place_of(value: Tensor, got: Tensor) -> Tensor:
    """got in the type and the strides of value."""
    return torch.empty_like(value).copy_(got)


def _doubt(node: fx.Node) -> float:
    """The share of elements in which whole numbers or booleans may differ."""
    if not any(_has_floats(source) for source in node.all_input_nodes):
        return 0.0
    tells_order = not isinstance(node.target, OpOverload) or node.target._opname in _ORDERS
    return 1.0 if tells_order else LARGEST_DOUBT


def _has_floats(node: fx.Node) -> bool:
    value = node.meta.get("val")
    parts = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(part, Tensor) and part.is_floating_point() for part in parts)


def _is_unset(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._opname in _UNSET
