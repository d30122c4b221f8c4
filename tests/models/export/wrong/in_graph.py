"""Faults in the graph that TorchScript is written from: what a wrong pass or writer could do. The graph is copied."""

import copy
import operator
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

Fault = tuple[str, str, Callable[[], fx.GraphModule]]
"""The kind, the place, and what makes the wrong graph."""

_ACTIVATIONS: dict[Any, Any] = {
    aten.relu.default: aten.neg.default,
    aten.hardtanh.default: aten.relu.default,
    aten.gelu.default: aten.relu.default,
    aten.sigmoid.default: aten.tanh.default,
    aten.silu.default: aten.relu.default,
    aten.hardswish.default: aten.relu.default,
    aten.tanh.default: aten.sigmoid.default,
}


def faults(graph_module: fx.GraphModule, most: int, seed: str = "") -> Iterator[Fault]:
    """Every fault that fits, each kind at `most` places; see some()."""
    for kind, places, change in _KINDS:
        for place in some(places(graph_module), most, f"{seed} {kind}"):
            yield kind, place, _wrong(graph_module, place, change)


def some(places: list[Any], most: int, seed: str) -> list[Any]:
    """The first, the last, and others drawn between them; where only one is asked for, any."""
    if len(places) <= most:
        return places
    draw = random.Random(seed)
    if most == 1:
        return [draw.choice(places)]
    between = sorted(draw.sample(range(1, len(places) - 1), most - 2))
    return [places[index] for index in (0, *between, len(places) - 1)]


def _wrong(
    graph_module: fx.GraphModule, place: str, change: Callable[[fx.GraphModule, fx.Node], None]
) -> Callable[[], fx.GraphModule]:
    def make() -> fx.GraphModule:
        wrong = copy.deepcopy(graph_module)
        with torch.no_grad():
            change(wrong, next(node for node in wrong.graph.nodes if node.name == place))
        wrong.recompile()
        return wrong

    return make


def _value(graph_module: fx.GraphModule, node: fx.Node) -> Tensor:
    return operator.attrgetter(str(node.target))(graph_module)


def _weights(fits: Callable[[Tensor], bool]) -> Callable[[fx.GraphModule], list[str]]:
    def places(graph_module: fx.GraphModule) -> list[str]:
        found = []
        for node in graph_module.graph.nodes:
            if node.op == "get_attr" and node.users:
                value = _value(graph_module, node)
                if value.is_floating_point() and fits(value):
                    found.append(node.name)
        return found

    return places


def _calls(fits: Callable[[fx.Node], bool]) -> Callable[[fx.GraphModule], list[str]]:
    return lambda graph_module: [
        node.name for node in graph_module.graph.nodes if node.op == "call_function" and fits(node)
    ]


def _on_weight(change: Callable[[Tensor], None]) -> Callable[[fx.GraphModule, fx.Node], None]:
    return lambda graph_module, node: change(_value(graph_module, node))


def _swap_channels(weight: Tensor) -> None:
    weight[[0, -1]] = weight[[-1, 0]]


def _square_input(graph_module: fx.GraphModule, node: fx.Node) -> None:
    _replace_with(graph_module, node, aten.mul.Tensor, lambda source: (source, source))


def _replace_with(
    graph_module: fx.GraphModule, node: fx.Node, target: Any, args: Callable[[fx.Node], tuple[Any, ...]]
) -> None:
    after = node
    while after.next.op == "placeholder":
        after = after.next
    with graph_module.graph.inserting_after(after):
        changed = graph_module.graph.call_function(target, args(node))
    changed.meta = dict(node.meta)
    node.replace_all_uses_with(changed, delete_user_cb=lambda user: user is not changed)


def _other_epsilon(_: fx.GraphModule, node: fx.Node) -> None:
    place = _epsilon(node)
    assert place is not None
    node.update_arg(place, float(node.args[place]) * 100)  # type: ignore[arg-type]


def _epsilon(node: fx.Node) -> int | None:
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema else []
    place = names.index("eps") if "eps" in names else None
    return place if place is not None and place < len(node.args) else None


def _shift_pad(graph_module: fx.GraphModule, node: fx.Node) -> None:
    with graph_module.graph.inserting_before(node):
        shifted = graph_module.graph.call_function(aten.constant_pad_nd.default, (node.args[0], [1, -1]))
    shifted.meta = dict(node.args[0].meta)  # type: ignore[union-attr]
    node.update_arg(0, shifted)


def _is_padded(node: fx.Node) -> bool:
    pads = node.args[4] if len(node.args) > 4 else [0]
    return "conv" in str(node.target) and any(pads)  # type: ignore[arg-type]


def _other_activation(_: fx.GraphModule, node: fx.Node) -> None:
    node.target = _ACTIVATIONS[node.target]
    node.args, node.kwargs = node.args[:1], {}


def _is_sum(node: fx.Node) -> bool:
    summands = node.args[:2]
    return node.target is aten.add.Tensor and all(
        isinstance(n, fx.Node) and n.op == "call_function" for n in summands
    )


def _lose_summand(graph_module: fx.GraphModule, node: fx.Node) -> None:
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
    graph_module.graph.erase_node(node)


def _other_axis(_: fx.GraphModule, node: fx.Node) -> None:
    node.update_arg(1, int(node.args[1]) - 1)  # type: ignore[call-overload]


def _is_matrix(weight: Tensor) -> bool:
    return weight.dim() >= 2 and weight.numel() > 1


_KINDS: tuple[tuple[str, Callable[..., list[str]], Callable[[fx.GraphModule, fx.Node], None]], ...] = (
    ("zeroed weight", _weights(_is_matrix), _on_weight(lambda w: w.zero_())),
    ("weight of another size", _weights(_is_matrix), _on_weight(lambda w: w.mul_(1.02))),
    ("zeroed channel", _weights(_is_matrix), _on_weight(lambda w: w[len(w) // 2].zero_())),
    ("swapped channels", _weights(lambda w: _is_matrix(w) and len(w) > 1), _on_weight(_swap_channels)),
    (
        "transposed weight",
        _weights(lambda w: w.dim() == 2 and w.shape[0] == w.shape[1] > 1),
        _on_weight(lambda w: w.copy_(w.t().clone())),
    ),
    ("lost bias", _weights(lambda w: w.dim() == 1 and len(w) > 1), _on_weight(lambda w: w.zero_())),
    (
        "squared input",
        lambda graph_module: [n.name for n in graph_module.graph.nodes if n.op == "placeholder"],
        _square_input,
    ),
    ("changed epsilon", _calls(lambda node: _epsilon(node) is not None), _other_epsilon),
    ("shifted pad", _calls(_is_padded), _shift_pad),
    ("other activation", _calls(lambda node: node.target in _ACTIVATIONS), _other_activation),
    ("lost summand", _calls(_is_sum), _lose_summand),
    ("other axis", _calls(lambda node: node.target is aten.softmax.int), _other_axis),
)
