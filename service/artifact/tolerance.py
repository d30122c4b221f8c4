"""How far an answer may be from the reference where it is computed with fewer digits than float32's.

Used by the export for fp16 and bf16 files, and by the server for GPUs that compute in TF32.
"""

from typing import Final

FP32_ROUNDOFF: Final = 2.0**-24
TF32_ROUNDOFF: Final = 2.0**-11
LOWER_ERROR_FACTOR: Final = 4.0
_LEAST_ROUNDINGS: Final = 8.0
_LARGEST: Final = 0.1


def lower_tolerance(own_error: float, roundoff: float) -> float:
    """4 times what rounding to that unit roundoff should cost the network, at least 8 roundings, at most a tenth.

    Args:
        own_error: relative, of the network in float32 against float64.
        roundoff: unit roundoff of the arithmetic, 2**-11 for fp16 and TF32.
    """
    expected = own_error * roundoff / FP32_ROUNDOFF
    return min(_LARGEST, max(_LEAST_ROUNDINGS * roundoff, LOWER_ERROR_FACTOR * expected))
