"""A few numbers to the bytes of a tensor."""

import struct
from typing import Any, Final, final

import numpy as np

FEW: Final = 512
"""Numbers up to which struct is quicker than numpy, whose calls have a fixed cost."""


@final
class Packer:
    """Of one datatype."""

    def __init__(self, dtype: np.dtype) -> None:
        self._char = dtype.char
        self._of_count: dict[int, Any] = {}

    def of(self, count: int) -> Any:
        """What makes bytes of so many numbers, FEW at most, each an argument.

        It raises OverflowError for a number beyond the datatype's range, struct.error for what is no number.
        """
        pack = self._of_count.get(count)
        if pack is None:
            pack = self._of_count[count] = struct.Struct(f"<{count}{self._char}").pack
        return pack
