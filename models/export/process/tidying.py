"""Give memory back while an export runs, so that what one step used does not stand beside what the next one needs.

Torch leaves graphs and programs in reference cycles, with the weights that they read; and what the C library has had
freed it keeps for itself: blocks of up to 32 MiB once it has met one of that size, which is a layer of most large
networks. Only glibc is spoken to; elsewhere nothing is done. Knows nothing of networks.

A collection looks at every object of the process, 400,000 of them torch's own once it is imported: 0.2 s, a dozen times
an export. So what was there before is set aside meanwhile (gc.freeze). And by itself it begins one after 700 new
objects, with a look at everything that a capture has made whenever that has grown by a quarter: of 1,000 layers a fifth
of the export. So it begins fewer of its own, and each step ends with one.
"""

import contextlib
import ctypes
import gc
from collections.abc import Iterator

# mallopt(3). From the first size on, a block lies in pages of its own, which free() gives back at once.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_OWN_PAGES_BYTES = 4 * 2**20
# New objects until a collection of the newest, in the place of 700: of all of them after a million, some 200 MB.
_YOUNG_OBJECTS = 10_000
# Where glibc comes to by itself once a block of 32 MiB was freed, and stays.
_USUAL_LARGEST_BYTES = 32 * 2**20


def give_back_memory() -> None:
    """Collect what only cycles hold, and return freed memory to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def large_blocks_given_back() -> Iterator[None]:
    """Within the block, what is freed of 4 MiB and more is the system's again at once."""
    _set_malloc(_M_MMAP_THRESHOLD, _OWN_PAGES_BYTES)
    try:
        yield
    finally:
        _set_malloc(_M_MMAP_THRESHOLD, _USUAL_LARGEST_BYTES)
        _set_malloc(_M_TRIM_THRESHOLD, 2 * _USUAL_LARGEST_BYTES)


def _set_malloc(what: int, number: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(what, number)


@contextlib.contextmanager
def older_objects_aside() -> Iterator[None]:
    """Within the block, the garbage collector looks only at what was made in it, and less often than by default."""
    if gc.get_freeze_count():  # by the caller, who would not have it undone; or by an export around this one
        yield
        return
    youngest, *older = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(
        max(youngest, _YOUNG_OBJECTS) if youngest else 0, *older
    )  # 0: the caller has turned it off
    try:
        yield
    finally:
        gc.set_threshold(youngest, *older)
        gc.unfreeze()
