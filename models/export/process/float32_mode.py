"""Run a network whose weights were converted to float32, also where its forward names the types that they had.

    before  y = conv(x.half()).float()      the weights of conv were half, and are float32 now: half x float32 fails
    after   y = conv(x.float()).float()

Within `weights_in_float32(converted)` each of the types in converted that forward asks for is read as float32: with
its weights the whole network was converted. A type that no weight had keeps its meaning (a network in float32 that
sums in float64 goes on to do so). Works around torch.export too, so that the graph has one type from the beginning.
"""

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Methods that name a type instead of taking one.
_CASTS: dict[Any, torch.dtype] = {
    Tensor.half: torch.float16,
    Tensor.bfloat16: torch.bfloat16,
    Tensor.double: torch.float64,
}
_OLD_NAMES = {
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Double": torch.float64,
}


class _Float32Mode(TorchFunctionMode):
    def __init__(self, converted: Collection[torch.dtype]) -> None:
        super().__init__()
        self._converted = frozenset(converted)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if _CASTS.get(func) in self._converted:
            return args[0].float()
        if func is Tensor.type:
            args = [args[0], *(self._type(a) for a in args[1:])]
        wide_args = [self._read(a) for a in args]
        return func(*wide_args, **{k: self._read(v) for k, v in (kwargs or {}).items()})

    def _read(self, value: Any) -> Any:
        return torch.float32 if isinstance(value, torch.dtype) and value in self._converted else value

    def _type(self, value: Any) -> Any:
        """What Tensor.type is asked for: "torch.HalfTensor", torch.HalfTensor, or a type as anywhere."""
        text = (
            value
            if isinstance(value, str)
            else f"{value.__module__}.{value.__name__}"
            if isinstance(value, type)
            else ""
        )
        named = _OLD_NAMES.get(text.removeprefix("torch.").removesuffix("Tensor"))
        return torch.float32 if named in self._converted else value


def weights_in_float32(converted: Collection[torch.dtype]) -> contextlib.AbstractContextManager[Any]:
    """Within: forward's wishes for the types in converted are wishes for float32."""
    return _Float32Mode(converted) if converted else contextlib.nullcontext()
