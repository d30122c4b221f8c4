"""Allocations of an arena: never shared, all taken back, and no memory of sizes that do not come again."""

from hypothesis import given
from hypothesis import strategies as st

from foldserve.service.ipc.slots.arena import Arena
from foldserve.service.ipc.slots.slot_pool import ERROR_TEXT_BYTES, MOST_KEPT, SlotAllocation, SlotPool
from foldserve.service.ipc.slots.slot_state import State


def pool(slots: int = 16, data_bytes: int = 1 << 16) -> SlotPool:
    return SlotPool(Arena(0, slots, data_bytes).map())


def span(allocation: SlotAllocation) -> tuple[int, int]:
    return allocation.input_at, allocation.output_at + len(allocation.outputs)


@given(
    st.lists(st.tuples(st.integers(1, 9000), st.integers(0, 9000), st.booleans()), max_size=100), st.randoms()
)
def test_places_never_overlap_and_all_come_back(steps: list[tuple[int, int, bool]], random: object) -> None:
    slots = pool()
    lent: list[SlotAllocation] = []
    for inputs, outputs, give in steps:
        if give and lent:
            slots.release(lent.pop(random.randrange(len(lent))))  # type: ignore[attr-defined]
        allocation = slots.acquire(inputs, outputs)
        if allocation is None:
            continue
        assert len(allocation.inputs) == inputs
        assert len(allocation.outputs) >= max(outputs, ERROR_TEXT_BYTES)
        assert allocation.slot not in [other.slot for other in lent]
        begin, end = span(allocation)
        assert all(end <= span(other)[0] or span(other)[1] <= begin for other in lent)
        lent.append(allocation)
    for allocation in lent:
        slots.release(allocation)
    assert slots.allocated_bytes == 0
    whole = slots.acquire(1 << 15, (1 << 15) - ERROR_TEXT_BYTES)
    assert whole is not None


def test_same_sizes_get_the_same_place_again() -> None:
    slots = pool()
    first = slots.acquire(100, 100)
    assert first is not None
    slots.release(first)
    assert slots.acquire(100, 100) is first


def test_slots_run_out_before_bytes_do() -> None:
    slots = pool(slots=4)
    assert [slots.acquire(1, 0) is None for _ in range(5)] == [False] * 4 + [True]


def test_ever_changing_sizes_keep_a_bounded_number_of_places() -> None:
    slots = pool(slots=4096, data_bytes=1 << 26)
    touched = 0
    for size in range(1, 5000):
        allocation = slots.acquire(size, 0)
        assert allocation is not None
        touched = max(touched, span(allocation)[1])
        slots.release(allocation)
        assert len(slots._kept) <= MOST_KEPT
    assert slots.allocated_bytes == 0
    # A size class's blocks are used again by its other sizes: a few per class, each of at most 64 places.
    assert touched < 1 << 22


def test_attempts_go_on_over_places_and_lives_of_a_slot() -> None:
    arena = Arena(0, 1, 1 << 16)
    allocation = SlotPool(arena.map()).acquire(10, 10)
    assert allocation is not None
    allocation.begin_attempt(0, 0, 1)
    allocation.begin_attempt(0, 0, 1)
    later = SlotPool(arena.map()).acquire(500, 10)  # the next life of the API server
    assert later is not None
    later.begin_attempt(0, 0, 1)
    assert later.attempt == 3


def test_attempts_wrap_instead_of_overflowing() -> None:
    slots = pool()
    allocation = slots.acquire(1, 1)
    assert allocation is not None
    allocation.attempt = 2**32 - 1
    allocation.begin_attempt(0, 0, 1)
    assert allocation.attempt == 0


def test_widened_place_has_the_room_and_gives_everything_back() -> None:
    arena = Arena(0, 4, 1 << 16)
    view = arena.map()
    slots = SlotPool(view)
    allocation = slots.acquire(100, 100)
    assert allocation is not None
    for room in (5000, 20000):
        assert slots.grow_outputs(allocation, room)
        assert len(allocation.outputs) >= room
    assert not slots.grow_outputs(allocation, 1 << 16)
    slots.release(allocation)
    assert slots.allocated_bytes == 0
    assert view.state[allocation.slot] == State.FREE
    assert slots.acquire(1 << 15, (1 << 15) - ERROR_TEXT_BYTES) is not None


def test_full_arena_is_told_without_losing_what_is_kept() -> None:
    slots = pool(data_bytes=1 << 14)
    kept = slots.acquire(1000, 0)
    lent = slots.acquire(10_000, 0)
    assert kept is not None
    assert lent is not None
    slots.release(kept)
    assert slots.acquire(8000, 0) is None
    assert slots.acquire(500, 0) is not None  # made of what was kept


def test_whole_arena_can_be_had_at_once_whatever_its_size() -> None:
    data_bytes = (1 << 16) + 3 * 64
    slots = pool(data_bytes=data_bytes)
    other = slots.acquire(100, 100)
    assert other is not None
    assert slots.could_hold(data_bytes - ERROR_TEXT_BYTES, 0)
    assert slots.acquire(data_bytes - ERROR_TEXT_BYTES, 0) is None
    slots.release(other)
    assert slots.acquire(data_bytes - ERROR_TEXT_BYTES, 0) is not None
    for inputs, outputs in (
        (data_bytes - ERROR_TEXT_BYTES + 1, 0),
        (1, data_bytes - 63),
        (data_bytes, data_bytes),
    ):
        assert not pool(data_bytes=data_bytes).could_hold(inputs, outputs)
        assert pool(data_bytes=data_bytes).acquire(inputs, outputs) is None
    for inputs, outputs in ((data_bytes // 2, data_bytes // 2 - 64), (1, data_bytes - 64)):
        assert pool(data_bytes=data_bytes).could_hold(inputs, outputs)
        assert pool(data_bytes=data_bytes).acquire(inputs, outputs) is not None


@given(st.lists(st.tuples(st.integers(1, 9000), st.integers(0, 30_000)), min_size=1, max_size=12))
def test_places_that_are_widened_where_room_is_scarce_never_overlap_and_all_come_back(
    steps: list[tuple[int, int]],
) -> None:
    slots = pool()
    lent: list[SlotAllocation] = []
    for inputs, outputs in steps:
        allocation = slots.acquire(inputs, inputs)
        if allocation is None:
            continue
        allocation.inputs[:] = bytes([len(lent) + 1]) * inputs
        lent.append(allocation)
        for widened in lent:
            if slots.grow_outputs(widened, outputs):
                assert len(widened.outputs) >= max(outputs, ERROR_TEXT_BYTES)
            assert len(widened.outputs) >= ERROR_TEXT_BYTES  # the text of an error fits in any case
            widened.outputs[:] = bytes(len(widened.outputs))
        for number, written in enumerate(lent):
            assert bytes(written.inputs) == bytes([number + 1]) * len(written.inputs)
    for allocation in lent:
        slots.release(allocation)
    assert slots.allocated_bytes == 0
    assert slots.acquire(1 << 15, (1 << 15) - ERROR_TEXT_BYTES) is not None
