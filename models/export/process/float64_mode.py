"""Run a network, or its graph, wholly in float64, while it believes to be in float32.

`module.double()` is not enough. A forward that says `x.float()` or `torch.zeros(n)` brings float32 back, and either
fails (mixed types) or rounds, and then the reference would be no reference. And one that asks for the type
(`torch.finfo(x.dtype).eps`, `if x.dtype == torch.float32`, `torch.tensor(0.1)`) would compute something else than
the network that is exported, which is in float32. So within `float64_arithmetic()`

    every operator computes in float64 (complex numbers in two of them): types asked for, tensors that come in and
    tensors that go out
    every question for a type is answered as in float32

Knows nothing of networks or files.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_WIDER = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex32: torch.complex128,
}
_SHOWN = {torch.float64: torch.float32, torch.complex128: torch.complex64}

_SIZES_IN_BYTES = (Tensor.element_size, Tensor.itemsize.__get__, Tensor.nbytes.__get__)  # type: ignore[attr-defined]


class _Float64Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base is untyped
    """What the operators do."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        names, written = _arguments(func)
        wide_args = [
            a if name in written else _wide(a)
            for name, a in zip((*names, *[""] * (len(args) - len(names))), args, strict=False)
        ]
        wide_kwargs = {k: v if k in written else _wide(v) for k, v in (kwargs or {}).items()}
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # for operators that are asked for no type, as zeros(n)
        try:
            result = func(*wide_args, **wide_kwargs)
        finally:
            torch.set_default_dtype(default)
        return result if written else _wide(result)


@functools.cache  # torch makes these of its schema anew each time
def _arguments(func: Any) -> tuple[tuple[str, ...], frozenset[str]]:
    """The names of an operator's arguments in order, and of those that it writes to."""
    schema = getattr(func, "_schema", None)
    arguments = () if schema is None else schema.arguments
    return tuple(a.name for a in arguments), frozenset(a.name for a in arguments if a.is_write)


class _ShownAsFloat32(TorchFunctionMode):
    """What forward is told."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.new_tensor and args[0].dtype == torch.float64:
            kwargs = {"dtype": torch.float32, **(kwargs or {})}  # the numbers as a capture rounds them
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.dtype):
            return _SHOWN.get(result, result)
        if func in _SIZES_IN_BYTES and args[0].dtype in _SHOWN:
            return result // 2
        if func is Tensor.type and isinstance(result, str):
            return result.replace("DoubleTensor", "FloatTensor")
        return result


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(_WIDER[value.dtype]) if value.dtype in _WIDER else value
    if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
        return type(value)(_wide(item) for item in value) if type(value) in {list, tuple} else value
    return wider_type(value)


def wider_type(value: Any) -> Any:
    """A float or complex type with fewer digits than float64 as the type with those, and any other value as it is."""
    return _WIDER.get(value, value) if isinstance(value, torch.dtype) else value


@contextmanager
def float64_arithmetic() -> Iterator[None]:
    """Within: operators compute in float64 alone and without gradients, and say that they are in float32.

    While an operator runs, the default type of the whole process is float64: one thread exports at a time, as with
    torch.export itself.
    """
    with torch.no_grad(), _Float64Mode(), _ShownAsFloat32():  # type: ignore[no-untyped-call]
        yield


def widened(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The tensors with the floating ones in float64, the others as they are."""
    return tuple(t.double() if t.is_floating_point() else t for t in tensors)
