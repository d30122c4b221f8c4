"""Run a network in float64 with every sum taken in another order: how far that moves an answer is float64's own error.

    before  mm(a, b)                         after  mm(a.flip(-1), b.flip(0))
            convolution(x, w), no groups            convolution(x.flip(1), w.flip(1)); transposed: w.flip(0)
            sum, mean over dims                     of x.flip(dims)

The numbers are the same and only the roundings are not. A fold changes roundings too, so its gate (parity.py) cannot
ask for more digits than this leaves. Knows nothing of networks or files.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class OtherOrder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base is untyped
    """Within: products, convolutions, sums and means add their terms from the last to the first."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        turned = _TURNED.get(func)
        return func(*(turned(*args) if turned else args), **(kwargs or {}))


def _product(a: Any, b: Any) -> tuple[Any, ...]:
    return a.flip(-1), b.flip(-2)


def _sum_of_product(bias: Any, a: Any, b: Any) -> tuple[Any, ...]:
    return bias, *_product(a, b)


def _convolution(x: Any, weight: Any, *rest: Any) -> tuple[Any, ...]:
    transposed, groups = rest[4], rest[6]
    if groups != 1:
        return x, weight, *rest
    return x.flip(-weight.dim() + 1), weight.flip(0 if transposed else 1), *rest


def _reduction(x: Any, dims: Any = None, *rest: Any) -> tuple[Any, ...]:
    return x.flip(list(dims) if dims else list(range(x.dim()))), dims, *rest


def _whole(x: Any) -> tuple[Any, ...]:
    return (x.flip(list(range(x.dim()))),)


_TURNED: dict[Any, Callable[..., tuple[Any, ...]]] = {
    aten.mm.default: _product,
    aten.bmm.default: _product,
    aten.addmm.default: _sum_of_product,
    aten.baddbmm.default: _sum_of_product,
    aten.convolution.default: _convolution,
    aten.sum.dim_IntList: _reduction,
    aten.mean.dim: _reduction,
    aten.sum.default: _whole,
    aten.mean.default: _whole,
}
