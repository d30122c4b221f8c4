"""Give memory back between the steps of an export.

Torch leaves graphs and programs in reference cycles, with the weights that they read; and what the C library has had
freed in pieces it keeps for itself. Either would stand beside what the next step needs. Knows nothing of networks.
"""

import contextlib
import ctypes
import gc


def give_back_memory() -> None:
    """Collect what only cycles hold, and return freed memory to the system (where the C library can: glibc)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
