"""Places of an arena: never shared, all taken back, and no memory of sizes that do not come again."""

from hypothesis import given
from hypothesis import strategies as st

from foldserve.service.ipc.slots.arena import Arena
from foldserve.service.ipc.slots.slot_pool import MOST_KEPT, TEXT_ROOM, SlotAllocation, SlotPool
from foldserve.service.ipc.slots.slot_state import State


def pool(slots: int = 16, data_bytes: int = 1 << 16) -> SlotPool:
    return SlotPool(Arena(0, slots, data_bytes).map())


def span(place: SlotAllocation) -> tuple[int, int]:
    return place.input_at, place.output_at + len(place.outputs)


@given(
    st.lists(st.tuples(st.integers(1, 9000), st.integers(0, 9000), st.booleans()), max_size=100), st.randoms()
)
def test_places_never_overlap_and_all_come_back(steps: list[tuple[int, int, bool]], random: object) -> None:
    places = pool()
    lent: list[SlotAllocation] = []
    for inputs, outputs, give in steps:
        if give and lent:
            places.give(lent.pop(random.randrange(len(lent))))  # type: ignore[attr-defined]
        place = places.take(inputs, outputs)
        if place is None:
            continue
        assert len(place.inputs) == inputs
        assert len(place.outputs) >= max(outputs, TEXT_ROOM)
        assert place.slot not in [other.slot for other in lent]
        begin, end = span(place)
        assert all(end <= span(other)[0] or span(other)[1] <= begin for other in lent)
        lent.append(place)
    for place in lent:
        places.give(place)
    assert places.lent_bytes == 0
    whole = places.take(1 << 15, (1 << 15) - TEXT_ROOM)
    assert whole is not None


def test_same_sizes_get_the_same_place_again() -> None:
    places = pool()
    first = places.take(100, 100)
    assert first is not None
    places.give(first)
    assert places.take(100, 100) is first


def test_slots_run_out_before_bytes_do() -> None:
    places = pool(slots=4)
    assert [places.take(1, 0) is None for _ in range(5)] == [False] * 4 + [True]


def test_ever_changing_sizes_keep_a_bounded_number_of_places() -> None:
    places = pool(slots=4096, data_bytes=1 << 26)
    touched = 0
    for size in range(1, 5000):
        place = places.take(size, 0)
        assert place is not None
        touched = max(touched, span(place)[1])
        places.give(place)
        assert len(places._kept) <= MOST_KEPT
    assert places.lent_bytes == 0
    # A size class's blocks are used again by its other sizes: a few per class, each of at most 64 places.
    assert touched < 1 << 22


def test_attempts_go_on_over_places_and_lives_of_a_slot() -> None:
    arena = Arena(0, 1, 1 << 16)
    place = SlotPool(arena.map()).take(10, 10)
    assert place is not None
    place.begin_attempt(0, 0, 1)
    place.begin_attempt(0, 0, 1)
    later = SlotPool(arena.map()).take(500, 10)  # the next life of the API server
    assert later is not None
    later.begin_attempt(0, 0, 1)
    assert later.attempt == 3


def test_attempts_wrap_instead_of_overflowing() -> None:
    places = pool()
    place = places.take(1, 1)
    assert place is not None
    place.attempt = 2**32 - 1
    place.begin_attempt(0, 0, 1)
    assert place.attempt == 0


def test_widened_place_has_the_room_and_gives_everything_back() -> None:
    arena = Arena(0, 4, 1 << 16)
    view = arena.map()
    places = SlotPool(view)
    place = places.take(100, 100)
    assert place is not None
    for room in (5000, 20000):
        assert places.widen(place, room)
        assert len(place.outputs) >= room
    assert not places.widen(place, 1 << 16)
    places.give(place)
    assert places.lent_bytes == 0
    assert view.state[place.slot] == State.FREE
    assert places.take(1 << 15, (1 << 15) - TEXT_ROOM) is not None


def test_full_arena_is_told_without_losing_what_is_kept() -> None:
    places = pool(data_bytes=1 << 14)
    kept = places.take(1000, 0)
    lent = places.take(10_000, 0)
    assert kept is not None
    assert lent is not None
    places.give(kept)
    assert places.take(8000, 0) is None
    assert places.take(500, 0) is not None  # made of what was kept


def test_whole_arena_can_be_had_at_once_whatever_its_size() -> None:
    data_bytes = (1 << 16) + 3 * 64
    places = pool(data_bytes=data_bytes)
    other = places.take(100, 100)
    assert other is not None
    assert places.could_hold(data_bytes - TEXT_ROOM, 0)
    assert places.take(data_bytes - TEXT_ROOM, 0) is None
    places.give(other)
    assert places.take(data_bytes - TEXT_ROOM, 0) is not None
    for inputs, outputs in ((data_bytes - TEXT_ROOM + 1, 0), (1, data_bytes - 63), (data_bytes, data_bytes)):
        assert not pool(data_bytes=data_bytes).could_hold(inputs, outputs)
        assert pool(data_bytes=data_bytes).take(inputs, outputs) is None
    for inputs, outputs in ((data_bytes // 2, data_bytes // 2 - 64), (1, data_bytes - 64)):
        assert pool(data_bytes=data_bytes).could_hold(inputs, outputs)
        assert pool(data_bytes=data_bytes).take(inputs, outputs) is not None


@given(st.lists(st.tuples(st.integers(1, 9000), st.integers(0, 30_000)), min_size=1, max_size=12))
def test_places_that_are_widened_where_room_is_scarce_never_overlap_and_all_come_back(
    steps: list[tuple[int, int]],
) -> None:
    places = pool()
    lent: list[SlotAllocation] = []
    for inputs, outputs in steps:
        place = places.take(inputs, inputs)
        if place is None:
            continue
        place.inputs[:] = bytes([len(lent) + 1]) * inputs
        lent.append(place)
        for widened in lent:
            if places.widen(widened, outputs):
                assert len(widened.outputs) >= max(outputs, TEXT_ROOM)
            assert len(widened.outputs) >= TEXT_ROOM  # the text of an error fits in any case
            widened.outputs[:] = bytes(len(widened.outputs))
        for number, written in enumerate(lent):
            assert bytes(written.inputs) == bytes([number + 1]) * len(written.inputs)
    for place in lent:
        places.give(place)
    assert places.lent_bytes == 0
    assert places.take(1 << 15, (1 << 15) - TEXT_ROOM) is not None
