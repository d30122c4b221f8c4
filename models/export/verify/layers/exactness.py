"""A file in 16 bits, run without its roundings: what is left can be compared as closely as in float32.

The tolerance of 16 bits has to be wide, and a small fault in a file would hide in it. But a file is a graph and its
weights, and each step from the network to it can be looked at by itself:

    the graph in 16 bits   is the one in float32, operator by operator, but for casts, and its weights are rounded ones
    TorchScript            runs in float64 → each layer computes what that graph's does (first_wrong_layer.py)
    ONNX                   its 16-bit types replaced by float32 → so does each of its layers

What the rounding costs is measured with the files as they are (parity.py).
"""

import operator
from collections.abc import Callable, Mapping, Sequence

import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, fx

from foldserve.models.export.writers.onnx_stream import without_weights

Types = Mapping[int, int]
Runner = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]

_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "stash_type"})
"""Those that say what type an operator casts to, makes, or computes in."""


def first_conversion_fault(
    original: fx.GraphModule, written: fx.GraphModule, rounded: Mapping[str, str]
) -> fx.Node | None:
    """The first node of original that written does not have, as it is or in 16 bits.

    rounded: weight of written → the weight of original that it should be the rounding of.
    """
    nodes = {node.name: node for node in written.graph.nodes}
    kept = {node.name for node in original.graph.nodes}

    def stands_for(node: fx.Node) -> str:
        """A cast for what it casts, a rounded weight for its own."""
        while node.name not in kept and node.target is torch.ops.aten.to.dtype:
            (node,) = node.all_input_nodes
        return f"weight {rounded.get(str(node.target), node.target)}" if node.op == "get_attr" else node.name

    def told(node: fx.Node) -> str:
        return f"{node.target}{fx.node.map_arg((node.args, node.kwargs), stands_for)}"

    wanted: list[fx.Node] = list(original.graph.nodes)
    for node in wanted:
        if node.op == "get_attr":
            wrong = any(
                _is_wrong(name, node, original, written) for name in rounded if rounded[name] == node.target
            )
        else:
            wrong = node.name not in nodes or told(node) != told(nodes[node.name])
        if wrong:
            return node
    return None


def _is_wrong(name: str, own: fx.Node, original: fx.GraphModule, written: fx.GraphModule) -> bool:
    """Whether a weight of written is another one than the rounding of its own."""
    held, exact = _weight(written, name), _weight(original, str(own.target))
    return not torch.equal(_bits(held), _bits(exact.to(held.dtype)))


def _weight(graph_module: fx.GraphModule, name: str) -> Tensor:
    found: Tensor = operator.attrgetter(name)(graph_module)
    return found.detach()


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int16)


def onnx_in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of model with float32 wherever it has a 16-bit float type."""
    return retyped(model, {TensorProto.FLOAT16: TensorProto.FLOAT, TensorProto.BFLOAT16: TensorProto.FLOAT})


def retyped(model: onnx.ModelProto, types: Types) -> onnx.ModelProto:
    """A copy of model with other types of ONNX in the place of some."""
    other = without_weights(model)
    for weight in model.graph.initializer:  # one by one: a message of all of them may not be beyond 2 GiB
        other.graph.initializer.append(weight)
    for function in other.functions:
        _retype_nodes(function.node, types)
    _retype_graph(other.graph, types)
    return other


def _retype_graph(graph: onnx.GraphProto, types: Types) -> None:
    for tensor in graph.initializer:
        _retype_tensor(tensor, types)
    for value in (*graph.input, *graph.output, *graph.value_info):
        of_value = value.type.tensor_type
        of_value.elem_type = types.get(of_value.elem_type, of_value.elem_type)
    _retype_nodes(graph.node, types)


def _retype_nodes(nodes: Sequence[onnx.NodeProto], types: Types) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _retype_tensor(attribute.t, types)
            if attribute.HasField("g"):
                _retype_graph(attribute.g, types)
            if attribute.name in _TYPE_ATTRIBUTES:
                attribute.i = types.get(attribute.i, attribute.i)


def _retype_tensor(tensor: onnx.TensorProto, types: Types) -> None:
    if tensor.data_type in types:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(types[tensor.data_type])
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
