"""A file in 16 bits, run without its roundings: what is left is as exact as in float32, and compared as such.

The tolerance of 16 bits has to be wide, and a small fault in a file would hide in it. But a file is a graph and its
weights, and both can be looked at by themselves:

    TorchScript   run in float64; each weight that is one of the network's, rounded, has its own value back
                  → agrees with the eager network as a float32 file does
    ONNX          its 16-bit types replaced by float32
                  → agrees as a float32 file does with the graph that both files are written from, run in float64
                    with its rounded weights

That graph is the network's: the TorchScript file shows it, or where there is none the graph itself, its weights too
with their own values back.

What the rounding costs is measured with the files as they are (verify.py).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, fx

from foldserve.models.export.float64_mode import float64_arithmetic, widened
from foldserve.models.export.graph_copy import copied
from foldserve.models.export.onnx_stream import without_weights
from foldserve.models.export.to_torchscript import load_torchscript, run_torchscript

Types = Mapping[int, int]
Runner = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]

_LOWER = frozenset({torch.float16, torch.bfloat16})
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "stash_type"})
"""Those that say what type an operator casts to, makes, or computes in."""


def torchscript_in_float64(path: Path, weights: Sequence[Tensor] = ()) -> Runner:
    """The file as a function that computes in float64 all through.

    weights: the network's in float32. A 16-bit weight of the file that is one of them, rounded, is replaced by it; any
    other stays, so that the answers tell that it is not the network's.
    """
    scripted = load_torchscript(path)
    own = _by_rounded(weights)
    values = {}
    for name, buffer in scripted.named_buffers():
        original = own.get(_key(buffer)) if buffer.dtype in _LOWER else None
        values[name] = (
            (buffer if original is None else original).double() if buffer.is_floating_point() else buffer
        )
    scripted.double()
    for name, buffer in scripted.named_buffers():
        buffer.copy_(values[name])

    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with float64_arithmetic():
            return run_torchscript(scripted, widened(inputs))

    return run


def with_own_weights(graph_module: fx.GraphModule, weights: Sequence[Tensor]) -> fx.GraphModule:
    """A copy of graph_module in which each 16-bit weight that is one of weights, rounded, has its own value back."""
    duplicate = copied(graph_module)
    own = _by_rounded(weights)
    for name, buffer in list(duplicate.named_buffers()):
        original = own.get(_key(buffer)) if buffer.dtype in _LOWER else None
        if original is not None:
            owner, _, attribute = name.rpartition(".")
            duplicate.get_submodule(owner).register_buffer(attribute, original)
    return duplicate


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


def _by_rounded(weights: Sequence[Tensor]) -> Mapping[object, Tensor]:
    found: dict[object, Tensor] = {}
    for weight in weights:
        if weight.dtype == torch.float32:
            for dtype in _LOWER:
                found.setdefault(_key(weight.detach().to(dtype)), weight.detach())
    return found


def _key(tensor: Tensor) -> object:
    bits = tensor.detach().contiguous().view(torch.int16).numpy().tobytes()
    return tensor.dtype, tuple(tensor.shape), bits


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
