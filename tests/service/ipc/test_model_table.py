"""The one table of what is served: rows, their generations and their states, as every process sees them."""

import pytest

from foldserve.service.ipc.model_table import (
    LOADED,
    SERVED,
    SPEC_BYTES,
    ModelKey,
    ModelState,
    ModelTable,
    TableFull,
)


def test_what_one_process_adds_every_other_reads() -> None:
    table = ModelTable(3)
    supervisor, other = table.map(), table.map()
    key = supervisor.add("résumé", "12", b"what there is to know", 32)
    assert key == ModelKey(0, 0, "résumé", "12")
    assert other.find_all(SERVED) == [key]
    assert other.spec(key) == b"what there is to know"
    assert (other.state[0], other.max_batch_size[0], other.error(0)) == (ModelState.LOADING, 32, "")


@pytest.mark.parametrize("state", ModelState)
def test_a_row_is_found_in_the_states_in_which_who_asks_has_a_part_in_it(state: ModelState) -> None:
    table = ModelTable(1).map()
    key = table.add("m", "1", b"", 8)
    table.move(0, state, "why")
    served = state in {ModelState.LOADING, ModelState.READY, ModelState.FAILED}
    assert table.holds(key, SERVED) == served
    assert (table.find(0, SERVED) == key) == served
    assert table.holds(key, LOADED) == (served or state is ModelState.DRAINING)
    assert table.find_all() == ([] if state is ModelState.EMPTY else [key])
    assert table.error(0) == "why"


def test_a_row_that_is_used_again_has_another_generation_and_nothing_of_the_last_version() -> None:
    table = ModelTable(1).map()
    old = table.add("a-long-name", "1", b"old and long", 8)
    table.move(0, ModelState.FAILED, "no memory")
    table.free(0)
    assert table.find_all() == []
    new = table.add("b", "2", b"new", 4)
    assert (new.row, new.generation) == (0, 1)
    assert (table.spec(new), table.error(0), table.key(0)) == (b"new", "", new)
    assert (table.spec(old), table.holds(old, SERVED)) == (None, False)


def test_rows_are_used_again_as_late_as_can_be() -> None:
    table = ModelTable(3).map()
    for name in "ab":
        table.free(table.add(name, "1", b"", 8).row)
    assert [table.add(name, "1", b"", 8).row for name in "cde"] == [2, 0, 1]


def test_a_version_is_held_once_and_no_more_versions_than_there_are_rows() -> None:
    table = ModelTable(2).map()
    table.add("a", "1", b"", 8)
    with pytest.raises(ValueError, match=r"model a version 1 is held already"):
        table.add("a", "1", b"", 8)
    table.add("a", "2", b"", 8)
    with pytest.raises(TableFull, match=r"all 2 rows of the model table hold a version; unload one first"):
        table.add("b", "1", b"", 8)


def test_what_is_too_large_for_a_row_is_refused_and_leaves_the_row_empty() -> None:
    table = ModelTable(1).map()
    with pytest.raises(ValueError, match=rf"takes {SPEC_BYTES + 1} bytes; at most {SPEC_BYTES} have room"):
        table.add("a", "1", bytes(SPEC_BYTES + 1), 8)
    assert table.find_all() == []


def test_an_error_longer_than_its_room_is_cut_and_a_longer_one_before_it_leaves_nothing() -> None:
    table = ModelTable(1).map()
    table.add("a", "1", b"", 8)
    table.move(0, ModelState.FAILED, "x" * 5000)
    assert set(table.error(0)) == {"x"}
    table.move(0, ModelState.FAILED, "short")
    assert table.error(0) == "short"
