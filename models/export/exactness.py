"""A file in 16 bits, run without its roundings: what is left is as exact as in float32, and compared as such.

The tolerance of 16 bits has to be wide, and a small fault in a file would hide in it. But a file is a graph and its
weights, and both can be looked at by themselves:

    TorchScript   run in float64; each weight that is one of the network's, rounded, has its own value back
                  → agrees with the eager network as a float32 file does
    ONNX          its 16-bit types replaced by float32
                  → agrees as a float32 file does with the TorchScript file, run in float64 with its rounded weights

What the rounding costs is measured with the files as they are (verify.py).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from models.export.float64_mode import float64_arithmetic, widened
from models.export.to_torchscript import load_torchscript, run_torchscript

Runner = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]

_LOWER = frozenset({torch.float16, torch.bfloat16})
_LOWER_ONNX = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})


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


def onnx_in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of model with float32 wherever it has a 16-bit float type."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for function in wide.functions:
        _widen_nodes(function.node)
    _widen_graph(wide.graph)
    return wide


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


def _widen_graph(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in _LOWER_ONNX:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    _widen_nodes(graph.node)


def _widen_nodes(nodes: Sequence[onnx.NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen_tensor(attribute.t)
            if attribute.HasField("g"):
                _widen_graph(attribute.g)
            # The type that an operator casts to, or makes.
            if attribute.name in ("to", "dtype", "stash_type") and attribute.i in _LOWER_ONNX:
                attribute.i = TensorProto.FLOAT


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _LOWER_ONNX:
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), name))
