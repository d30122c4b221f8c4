"""Which bytes of an arena are free: blocks by size class, split off the end, merged only when space runs out.

Private to the API server that owns the arena, so plain Python and no locks. Freed blocks go to a list of
their own size and come back last in, first out, which keeps the touched memory small and warm; only when a
size cannot be had are all free blocks sorted and merged. Sizes are rounded up to four steps per power of
two, so at most a fifth of a block is unused.
"""

from typing import Final

ALIGNMENT: Final = 64
"""Bytes: a cache line, and enough for any vector load of a model that reads an arena in place."""


def rounded(nbytes: int) -> int:
    """The block size for nbytes: a multiple of ALIGNMENT, at most 25 % above (or one alignment step)."""
    if nbytes <= 4 * ALIGNMENT:
        return max(ALIGNMENT, -(-nbytes // ALIGNMENT) * ALIGNMENT)
    step = max(ALIGNMENT, 1 << ((nbytes - 1).bit_length() - 3))
    return -(-nbytes // step) * step


def aligned(nbytes: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class FreeListAllocator:
    """The free space of `size` bytes from `start`."""

    def __init__(self, start: int, size: int) -> None:
        self._fresh = start
        self._end = start + size
        self._size = size
        self._free: dict[int, list[int]] = {}
        self.used_bytes = 0

    def allocate(self, nbytes: int) -> tuple[int, int] | None:
        """A block of at least nbytes as (offset, size), or None when there is no such space left."""
        size = rounded(nbytes)
        if size > self._size:  # what rounding makes too large fits all the same when nothing else is there
            size = aligned(nbytes)
        blocks = self._free.get(size)
        if blocks:
            self.used_bytes += size
            return blocks.pop(), size
        offset = self._fresh
        if offset + size > self._end:
            if self.used_bytes + size > self._size:
                return None  # told at once: under a flood this is the common answer, and merging is slow
            self._merge()
            found = self._cut(size)
            if found is None:
                return None
            offset = found
        else:
            self._fresh = offset + size
        self.used_bytes += size
        return offset, size

    def free(self, offset: int, size: int) -> None:
        """Return a block that allocate() gave."""
        self.used_bytes -= size
        self._free.setdefault(size, []).append(offset)

    def _cut(self, size: int) -> int | None:
        """First fit over merged blocks; what is left of the block goes back as a block of its own."""
        if self._fresh + size <= self._end:
            offset = self._fresh
            self._fresh += size
            return offset
        for have in sorted(self._free):
            blocks = self._free[have]
            if have >= size and blocks:
                offset = blocks.pop()
                if have > size:
                    self._free.setdefault(have - size, []).append(offset + size)
                return offset
        return None

    def _merge(self) -> None:
        """Join neighbouring free blocks, and give those at the end back to the fresh space."""
        spans = sorted((offset, size) for size, blocks in self._free.items() for offset in blocks)
        merged: list[list[int]] = []
        for offset, size in spans:
            if merged and sum(merged[-1]) == offset:
                merged[-1][1] += size
            else:
                merged.append([offset, size])
        if merged and sum(merged[-1]) == self._fresh:
            self._fresh = merged.pop()[0]
        self._free = {}
        for offset, size in merged:
            self._free.setdefault(size, []).append(offset)
