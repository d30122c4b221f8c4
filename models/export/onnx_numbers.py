"""Numbers that are sizes, as torch.onnx can write them: some of its translations take a Python number alone.

    before  aten.remainder.Scalar(x, n), n a size that varies, as in `index % x.shape[1]`
    after   aten.remainder.Tensor(x, scalar_tensor(n))

Needed only by to_onnx.py.
"""

import torch
from torch import fx

from models.export.graph_copy import copied

aten = torch.ops.aten

# Operator → the place of its number, and the operator that takes a tensor there.
_BY_TENSOR = {
    aten.remainder.Scalar: (1, aten.remainder.Tensor),
    aten.remainder.Scalar_Tensor: (0, aten.remainder.Tensor),
    aten.pow.Tensor_Scalar: (1, aten.pow.Tensor_Tensor),
    aten.bitwise_and.Scalar: (1, aten.bitwise_and.Tensor),
    aten.bitwise_or.Scalar: (1, aten.bitwise_or.Tensor),
    aten.bitwise_xor.Scalar: (1, aten.bitwise_xor.Tensor),
    aten.__and__.Scalar: (1, aten.bitwise_and.Tensor),
    aten.__or__.Scalar: (1, aten.bitwise_or.Tensor),
    aten.__xor__.Scalar: (1, aten.bitwise_xor.Tensor),
}


def with_sizes_as_tensors(graph_module: fx.GraphModule) -> fx.GraphModule:
    """The graph with those operators called by way of a tensor for a size; itself where there is none.

    Shares the weights.
    """
    if not any(_has_size(node) for node in graph_module.graph.nodes):
        return graph_module
    changed = copied(graph_module)
    for node in filter(_has_size, list(changed.graph.nodes)):
        place, node.target = _BY_TENSOR[node.target]
        size = node.args[place]
        is_whole = isinstance(size.meta.get("val"), int | torch.SymInt)
        with changed.graph.inserting_before(node):
            tensor = changed.graph.call_function(aten.scalar_tensor.default, (size,))
        tensor.kwargs = {"dtype": torch.int64 if is_whole else torch.float32}
        node.update_arg(place, tensor)
    changed.recompile()
    return changed


def _has_size(node: fx.Node) -> bool:
    return node.target in _BY_TENSOR and isinstance(node.args[_BY_TENSOR[node.target][0]], fx.Node)
