"""Numbers that are sizes, as torch.onnx can write them: some of its translations take a Python number alone.

    before  aten.remainder.Scalar(x, n), n a size that varies, as in `index % x.shape[1]`
    after   aten.remainder.Tensor(x, scalar_tensor(n))

Rules of onnx_rewrites.py.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten


def _has_size(node: fx.Node) -> bool:
    return all(isinstance(argument, fx.Node) for argument in node.args)


def _by_tensors(operator: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Any], Tensor]:
    """The operator of two tensors, for a tensor and a size in either order."""

    def of_size(first: Any, second: Any) -> Tensor:
        return operator(_tensor(first), _tensor(second))

    return of_size


def _tensor(given: Any) -> Tensor:
    if isinstance(given, Tensor):
        return given
    is_whole = isinstance(given, int | torch.SymInt)
    return torch.scalar_tensor(given, dtype=torch.int64 if is_whole else torch.float32)


REWRITES = {
    written: (_has_size, _by_tensors(by_tensor))
    for written, by_tensor in (
        (aten.remainder.Scalar, torch.remainder),
        (aten.remainder.Scalar_Tensor, torch.remainder),
        (aten.pow.Tensor_Scalar, torch.pow),
        (aten.bitwise_and.Scalar, torch.bitwise_and),
        (aten.bitwise_or.Scalar, torch.bitwise_or),
        (aten.bitwise_xor.Scalar, torch.bitwise_xor),
        (aten.__and__.Scalar, torch.bitwise_and),
        (aten.__or__.Scalar, torch.bitwise_or),
        (aten.__xor__.Scalar, torch.bitwise_xor),
    )
}
