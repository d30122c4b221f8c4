"""Attention of any number of dims as torch.onnx can write it: it knows (N, heads, length, features) alone.

    before  scaled_dot_product_attention on (N, T, D), or on (N, windows, heads, T, D)
    after   the same call on four dims, and its answer in the dims that were asked for

A rule of onnx_rewrites.py.
"""

from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.functional import scaled_dot_product_attention

_DIMS = 4


def _of_other_dims(node: fx.Node) -> bool:
    return bool(node.args[0].meta["val"].dim() != _DIMS)  # type: ignore[union-attr]


def _in_four_dims(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """query (..., T, D), key and value (..., S, D), attn_mask (..., T, S) → (..., T, D)."""
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


REWRITES = {torch.ops.aten.scaled_dot_product_attention.default: (_of_other_dims, _in_four_dims)}
