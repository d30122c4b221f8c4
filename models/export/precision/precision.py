"""The precisions that an artifact can compute in, and what each may cost in digits.

fp32 is the network as captured. In fp16 and bf16 the weights and most operators are in 16 bits (which operators
are not: mixed.py); the inputs and outputs keep their types, so that clients need not know. Pure data: no graphs.

ONNX Runtime's CPU provider has no bfloat16 kernels for the common operators (1.31: Conv, MatMul, Add, LSTM: "could
not find an implementation"), and ONNX's Conv and LSTM take no bfloat16 before opset 22. A file that cannot be run
here cannot be shown to be right, so bf16 is written as TorchScript alone.
"""

from dataclasses import dataclass

import torch

from foldserve.models.errors import PrecisionNotUsable

# 16 times the largest number measured over the cases must still be finite: other inputs bring larger values.
_HEADROOM = 16.0


@dataclass(frozen=True)
class Precision:
    """A choice of --precision.

    word: what the user and the manifest call it. dtype: of weights and most operators.
    roundoff: the unit roundoff u of dtype; a result that is rounded to it is off by u relative, at most.
    onnx: whether model.onnx is written too.
    """

    word: str
    dtype: torch.dtype
    roundoff: float
    onnx: bool

    @property
    def is_lower(self) -> bool:
        """Whether anything has to be converted at all."""
        return self.dtype != torch.float32

    @property
    def limits(self) -> tuple[float, float]:
        """(smallest, largest) magnitude that the largest number of a tensor may have, to be held in dtype.

        Below the smallest normal number the rounding is no longer relative; above a 16th of the largest one, inputs
        a little larger than the example's would overflow.
        """
        info = torch.finfo(self.dtype)
        return info.smallest_normal, info.max / _HEADROOM

    def holds(self, largest: float) -> bool:
        """Whether a tensor whose largest magnitude is this keeps dtype's relative precision; 0 does."""
        low, high = self.limits
        return largest == 0 or low <= largest <= high


FP32 = Precision("fp32", torch.float32, 2.0**-24, onnx=True)
PRECISIONS: dict[str, Precision] = {
    "fp32": FP32,
    "fp16": Precision("fp16", torch.float16, 2.0**-11, onnx=True),
    "bf16": Precision("bf16", torch.bfloat16, 2.0**-8, onnx=False),
}


def check_precision(word: object, opset: int | None = None) -> Precision:
    """The precision of that name. Raises: PrecisionNotUsable."""
    found = PRECISIONS.get(word) if isinstance(word, str) else None
    if found is None:
        raise PrecisionNotUsable(f"precision is {word!r}; expected one of {', '.join(PRECISIONS)}")
    if opset is not None and not found.onnx:
        raise PrecisionNotUsable(
            f"opset {opset} is asked for, but precision {found.word} writes no ONNX file: ONNX Runtime's CPU provider "
            "has no bfloat16 kernels, so the file could not be compared with the network. Leave the opset away, or "
            "use precision fp16."
        )
    return found
