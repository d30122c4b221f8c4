"""Which value of an ONNX file is which node of the graph that it was written from.

torch.onnx captures the graph again and takes operators apart, so a name in the file may mean another node of ours. It
carries what is noted at a node under torch's key "custom" (torch.fx.traceback.annotate) on to all that it makes of that
node; the last of these that gives such a tensor has the node's value. What the optimiser left out of the file, or put
in a branch, the file does not have.
"""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from torch import Tensor, fx

_CUSTOM, _KEY = "custom", "foldserve_node"


def note_names(graph_module: fx.GraphModule) -> None:
    """Note at every node its name, for value_names()."""
    for node in graph_module.graph.nodes:
        if node.op == "call_function":
            node.meta[_CUSTOM] = {**(node.meta.get(_CUSTOM) or {}), _KEY: node.name}


def value_names(
    graph: fx.Graph, translated: fx.Graph, model: onnx.ModelProto, output_names: Sequence[str]
) -> dict[str, str]:
    """Node of graph → the name of its value in model. translated: the graph that torch.onnx has made of graph."""
    made: dict[str, list[fx.Node]] = {}
    for node in translated.nodes:
        if node.op == "call_function":
            made.setdefault((node.meta.get(_CUSTOM) or {}).get(_KEY, ""), []).append(node)
    # An operator that is called as an input or an output has another name in the file.
    given = {value.name for value in (*model.graph.input, *model.graph.output)}
    held = {name for node in model.graph.node for name in node.output} - given
    names = {}
    for node in graph.nodes:
        found = _made_of(node, made) if node.op == "call_function" else None
        if found is not None and _name_in_file(found) in held:
            names[node.name] = _name_in_file(found)
    outputs: Any = graph.output_node().args[0]
    for node, name in reversed(list(zip(outputs, output_names, strict=True))):
        if node.op == "call_function":
            names[node.name] = name
    return names


def _made_of(node: fx.Node, made: Mapping[str, Sequence[fx.Node]]) -> fx.Node | None:
    """The node of the translated graph that has node's value."""
    if node.target is not operator.getitem:
        candidates = made.get(node.name, ())
    else:  # what is made of one of several results is noted as made of what gives them all
        source, index = node.args
        assert isinstance(source, fx.Node)
        several = made.get(source.name, ())
        candidates = [n for n in several if n.target is operator.getitem and n.args[1] == index]
    return next((found for found in reversed(candidates) if _is_like(found, node)), None)


def _name_in_file(node: fx.Node) -> str:
    """As torch.onnx names it: of several results, the node that makes them and a number."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        return f"{node.args[0].name}__{node.args[1]}"
    return node.name


def _is_like(found: fx.Node, node: fx.Node) -> bool:
    """Whether the two give one tensor of the same type and, where it does not vary, of the same shape."""
    one, other = found.meta.get("val"), node.meta.get("val")
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or other.is_complex():
        return False
    static = [[size if isinstance(size, int) else None for size in tensor.shape] for tensor in (one, other)]
    return one.dtype == other.dtype and static[0] == static[1]
