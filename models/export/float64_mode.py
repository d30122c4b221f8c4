"""Run a network, or its graph, wholly in float64, also where it names a smaller float type itself.

`module.double()` is not enough: a forward that says `x.float()` or `torch.zeros(n)` brings float32 back, and
either fails (mixed types) or rounds, and then the reference would be no reference. Inside
`float64_arithmetic()` every float type that an operator is asked for becomes float64. Knows nothing of
networks or files.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_SMALLER = frozenset({torch.float32, torch.float16, torch.bfloat16})


class _Float64Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base is untyped
    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        wide_args = [torch.float64 if is_smaller_float(a) else a for a in args]
        wide_kwargs = {k: torch.float64 if is_smaller_float(v) else v for k, v in (kwargs or {}).items()}
        return func(*wide_args, **wide_kwargs)


def is_smaller_float(value: object) -> bool:
    """Whether value is a float type with fewer digits than float64."""
    return isinstance(value, torch.dtype) and value in _SMALLER


@contextmanager
def float64_arithmetic() -> Iterator[None]:
    """Within: float64 is the default type, no gradients, and no operator casts to a smaller float type.

    The default type is the whole process's: one thread exports at a time, as with torch.export itself.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), _Float64Mode():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.set_default_dtype(default)


def widened(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The tensors with the floating ones in float64, the others as they are."""
    return tuple(t.double() if t.is_floating_point() else t for t in tensors)
