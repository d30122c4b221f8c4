"""What a scrape counts in the arenas: rows that wait and requests in flight, by model."""

import pytest

from foldserve.service.ipc.model_table import ModelTable
from foldserve.service.ipc.slots.arena import Arena, MappedArena
from foldserve.service.ipc.slots.slot_counts import count_slots
from foldserve.service.ipc.slots.slot_state import State


@pytest.fixture
def arenas() -> list[MappedArena]:
    return [Arena(index, slots=16, data_bytes=4096).map() for index in range(2)]


def fill(arena: MappedArena, slot: int, state: State, model: int, rows: int, cancelled: bool = False) -> None:
    arena.state[slot], arena.model[slot], arena.rows[slot] = state, model, rows
    arena.cancelled[slot] = cancelled


def test_empty_arenas_hold_nothing(arenas: list[MappedArena]) -> None:
    counts = count_slots(arenas, ModelTable(3).map())
    assert (counts.queued_rows.tolist(), counts.requests.tolist()) == ([0, 0, 0], [0, 0, 0])


@pytest.mark.parametrize(
    ("state", "queued", "requests"),
    [
        (State.FREE, 0, 0),
        (State.FILLING, 0, 0),
        (State.QUEUED, 5, 1),
        (State.TAKEN, 0, 1),
        (State.DONE, 0, 1),
        (State.FAILED, 0, 1),
        (State.OUTPUT_OVERFLOW, 0, 1),
    ],
)
def test_each_state_counts_as_what_it_is(
    arenas: list[MappedArena], state: State, queued: int, requests: int
) -> None:
    fill(arenas[0], 3, state, model=1, rows=5)
    counts = count_slots(arenas, ModelTable(3).map())
    assert (counts.queued_rows.tolist(), counts.requests.tolist()) == ([0, queued, 0], [0, requests, 0])


def test_all_arenas_are_counted_by_model(arenas: list[MappedArena]) -> None:
    for slot in range(4):
        fill(arenas[0], slot, State.QUEUED, model=slot % 2, rows=10 + slot)
    fill(arenas[1], 15, State.QUEUED, model=2, rows=1)
    fill(arenas[1], 0, State.TAKEN, model=2, rows=100)
    counts = count_slots(arenas, ModelTable(3).map())
    assert counts.queued_rows.tolist() == [22, 24, 1]
    assert counts.requests.tolist() == [2, 2, 2]


def test_what_nobody_waits_for_does_not_count(arenas: list[MappedArena]) -> None:
    fill(arenas[0], 0, State.QUEUED, model=0, rows=5, cancelled=True)
    fill(arenas[0], 1, State.TAKEN, model=0, rows=5, cancelled=True)
    counts = count_slots(arenas, ModelTable(1).map())
    assert (counts.queued_rows.tolist(), counts.requests.tolist()) == ([0], [0])


def test_what_is_left_of_a_model_that_was_unloaded_is_not_its_rows_next_ones(
    arenas: list[MappedArena],
) -> None:
    models = ModelTable(1).map()
    fill(arenas[0], 0, State.DONE, model=0, rows=5)
    models.add("m", "1", b"", 8)
    models.free(0)
    fill(arenas[0], 1, State.QUEUED, model=0, rows=7)
    arenas[0].generation[1] = 1
    counts = count_slots(arenas, models)
    assert (counts.queued_rows.tolist(), counts.requests.tolist()) == ([7], [1])
