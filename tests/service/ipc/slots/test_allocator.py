"""Space is handed out without overlap, comes back whole, and is not lost to fragments."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.service.ipc.slots.allocator import ALIGNMENT, FreeListAllocator, rounded

SIZE = 1 << 16


@given(st.integers(1, 1 << 40))
def test_rounding_keeps_alignment_and_wastes_at_most_a_fifth_of_a_block(nbytes: int) -> None:
    size = rounded(nbytes)
    assert size >= nbytes
    assert size % ALIGNMENT == 0
    assert size - nbytes <= max(ALIGNMENT - 1, size // 5)


@given(st.lists(st.one_of(st.integers(1, SIZE // 4), st.none()), max_size=200), st.randoms())
def test_blocks_never_overlap_and_all_space_comes_back(steps: list[int | None], random: object) -> None:
    allocator = FreeListAllocator(ALIGNMENT, SIZE)
    lent: list[tuple[int, int]] = []
    for step in steps:
        if step is None:
            if lent:
                allocator.free(*lent.pop(random.randrange(len(lent))))  # type: ignore[attr-defined]
            continue
        block = allocator.allocate(step)
        if block is None:
            # Only when it is full, or when no gap is wide enough.
            free = SIZE - sum(size for _, size in lent)
            assert free < rounded(step) or widest_gap(lent) < rounded(step)
            continue
        offset, size = block
        assert offset >= ALIGNMENT
        assert offset + size <= ALIGNMENT + SIZE
        assert all(offset + size <= at or at + have <= offset for at, have in lent)
        lent.append(block)
        assert allocator.used_bytes == sum(size for _, size in lent)
    for block in lent:
        allocator.free(*block)
    assert allocator.used_bytes == 0
    assert allocator.allocate(SIZE) == (ALIGNMENT, SIZE)


def widest_gap(lent: list[tuple[int, int]]) -> int:
    edges = [(ALIGNMENT, 0), *sorted(lent), (ALIGNMENT + SIZE, 0)]
    return max(after[0] - sum(before) for before, after in itertools.pairwise(edges))


def test_freed_block_comes_back_first_so_that_memory_stays_small() -> None:
    allocator = FreeListAllocator(0, SIZE)
    first = allocator.allocate(1000)
    assert first is not None
    allocator.free(*first)
    assert allocator.allocate(1000) == first


@pytest.mark.parametrize("nbytes", [SIZE + 1, 1 << 40])
def test_more_than_there_is_cannot_be_had(nbytes: int) -> None:
    assert FreeListAllocator(0, SIZE).allocate(nbytes) is None
