"""Spell out every norm that uses the statistics of the tensor it is given, not running ones.

    before  y = batch_norm(x, weight, bias, running_mean, running_var, training=True, eps)
    after   m = mean(x)  d = x - m  y = d * rsqrt(mean(d * d) + eps) * weight + bias       over all axes but 1

Holds always: it is the definition (torch.nn.BatchNorm2d, biased variance). It is needed since torch.onnx
writes such a norm, when it has running statistics, as an inference norm: an error of 0.5, without a word.
Such a norm is never foldable. Where its input is a weight (weight standardisation) it is a constant; where
its input holds several rows, the rows' answers depend on each other: parity.py refuses the network, unless its rows
belong together (row_modes.py).
"""

import operator
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

# Operator → position of (training, eps) among its arguments. Position None: always in training mode.
_NORMS: dict[Any, tuple[int | None, int]] = {
    aten._native_batch_norm_legit_functional.default: (5, 7),
    aten._native_batch_norm_legit.default: (5, 7),
    aten._native_batch_norm_legit.no_stats: (3, 5),
    aten._batch_norm_with_update_functional.default: (None, 6),
    aten._batch_norm_with_update.default: (None, 6),
}


def spell_out_training_norms(graph: fx.Graph) -> int:
    """Rewrite each norm in training mode in graph, in place. Return how many there were."""
    count = 0
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in _NORMS:
            continue
        training, eps = _NORMS[node.target]
        if training is not None and not node.args[training]:
            continue
        result = _spelled_out(graph, node, float(node.args[eps]))
        for user in list(node.users):
            # Outputs 3 and 4 (new running statistics) went with the writes to the buffers (graph_cleanup.py).
            if user.target is operator.getitem and user.args[1] == 0:
                user.replace_all_uses_with(result)
                graph.erase_node(user)
        count += 1
    graph.eliminate_dead_code()
    return count


def _spelled_out(graph: fx.Graph, norm: fx.Node, eps: float) -> fx.Node:
    x, weight, bias = norm.args[0], norm.args[1], norm.args[2]
    assert isinstance(x, fx.Node)
    dims = x.meta["val"].dim()
    others = [axis for axis in range(dims) if axis != 1]
    column = [1, -1] + [1] * (dims - 2)

    def call(target: Any, *args: Any) -> fx.Node:
        node = graph.call_function(target, args)
        node.meta = {key: norm.meta[key] for key in ("nn_module_stack", "stack_trace") if key in norm.meta}
        values = fx.node.map_arg(args, lambda n: n.meta["val"])
        with x.meta["val"].fake_mode:
            node.meta["val"] = target(*values)
        return node

    with graph.inserting_before(norm):
        centred = call(aten.sub.Tensor, x, call(aten.mean.dim, x, others, True))
        variance = call(aten.mean.dim, call(aten.mul.Tensor, centred, centred), others, True)
        y = call(aten.mul.Tensor, centred, call(aten.rsqrt.default, call(aten.add.Tensor, variance, eps)))
        if weight is not None:
            y = call(aten.mul.Tensor, y, call(aten.view.default, weight, column))
        if bias is not None:
            y = call(aten.add.Tensor, y, call(aten.view.default, bias, column))
    return y
