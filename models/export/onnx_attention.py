"""Attention of any number of dims as torch.onnx can write it: it knows (N, heads, length, features) alone.

    before  scaled_dot_product_attention on (N, T, D), or on (N, windows, heads, T, D)
    after   the same call on four dims, and its answer in the dims that were asked for

Needed only by to_onnx.py.
"""

from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.functional import scaled_dot_product_attention

from models.export.graph_copy import copied

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
_DIMS = 4


def with_attention_in_four_dims(graph_module: fx.GraphModule) -> fx.GraphModule:
    """The graph with attention called by way of four dims; itself where there is no attention. Shares the weights."""
    if not any(node.target is _ATTENTION for node in graph_module.graph.nodes):
        return graph_module
    changed = copied(graph_module)
    for node in changed.graph.nodes:
        if node.target is _ATTENTION:
            node.target = _in_four_dims
    changed.recompile()
    return changed


def _in_four_dims(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """query (..., T, D), key and value (..., S, D), attn_mask (..., T, S) → (..., T, D)."""
    if query.dim() == _DIMS:
        return scaled_dot_product_attention(query, key, value, attn_mask, *args, **kwargs)
    shapes = (query.shape[:-2], key.shape[:-2], value.shape[:-2])
    leading = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]

    def four(tensor: Tensor) -> Tensor:
        wide = tensor.expand(*leading, *tensor.shape[-2:])
        return wide.flatten(0, -_DIMS) if wide.dim() > _DIMS else wide[(None,) * (_DIMS - wide.dim())]

    mask = attn_mask
    if mask is not None and mask.dim() > 2:  # else it is the same for all
        mask = four(mask)
    answer = scaled_dot_product_attention(four(query), four(key), four(value), mask, *args, **kwargs)
    return answer.reshape(*leading, *answer.shape[-2:])
