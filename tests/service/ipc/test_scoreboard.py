"""The numbers that every process reads."""

from foldserve.service.ipc.scoreboard import RESTARTING, TEXT_BYTES, Dimensions, Scoreboard

DIMENSIONS = Dimensions(api_servers=2, workers=3, models=2, instances=4)


def test_cells_of_two_views_are_the_same_and_of_two_names_are_not() -> None:
    shared = Scoreboard(DIMENSIONS)
    one, two = shared.map(), shared.map()
    one.queued_rows[1, 1, 0] = 5
    one.run_fixed_ns[2, 1] = 2**40
    assert (two.queued_rows[1, 1, 0], two.run_fixed_ns[2, 1]) == (5, 2**40)
    assert two.queued_bytes[1, 1, 0] == two.run_row_ns[2, 1] == two.step_since_ns[2, 3] == 0


def test_notes_are_cut_to_their_room_and_taken_back() -> None:
    board = Scoreboard(DIMENSIONS).map()
    board.write_load_error(2, 1, "x" * 5000)
    assert board.load_error(2, 1) == "x" * (TEXT_BYTES - 1)
    assert board.load_error(2, 0) == ""
    board.write_load_error(2, 1, "")
    assert board.load_error(2, 1) == ""


def test_remarks_are_lines_apart_from_the_note_and_end_with_their_worker() -> None:
    board = Scoreboard(DIMENSIONS).map()
    board.write_load_error(1, 1, "not served")
    board.write_notes(1, 1, ["plain runs: a graph\ncannot be captured", "TF32 is off"])
    assert board.notes(1, 1) == ["plain runs: a graph cannot be captured", "TF32 is off"]
    assert board.notes(1, 0) == board.notes(0, 1) == []
    assert board.load_error(1, 1) == "not served"
    board.write_notes(2, 0, ["x" * 3000])
    assert board.notes(2, 0) == ["x" * (TEXT_BYTES - 1)]
    board.worker_died(1)
    assert board.notes(1, 1) == []


def test_a_worker_hangs_when_one_of_its_runs_began_before_the_time() -> None:
    board = Scoreboard(DIMENSIONS).map()
    board.step_since_ns[1, 3] = 100
    board.step_since_ns[2, 0] = 300
    assert board.overdue_workers(since_ns=200) == [1]
    assert board.overdue_workers(since_ns=100) == []


def test_dead_worker_is_not_busy_and_what_it_served_is_to_return() -> None:
    board = Scoreboard(DIMENSIONS).map()
    for cells, place in ((board.ready, (1, 0)), (board.busy_since_ns, (1, 2)), (board.step_since_ns, (1, 2))):
        cells[place] = 7
    board.busy_since_ns[0, 2] = 7
    board.batch_limit_rows[1, 0] = board.batch_limit_rows[0, 0] = 4
    board.worker_died(1)
    assert [board.batch_limit_rows[1, 0], board.batch_limit_rows[0, 0]] == [
        0,
        4,
    ]  # the next one finds its own
    assert [board.ready[1, 0], board.busy_since_ns[1, 2], board.step_since_ns[1, 2]] == [RESTARTING, 0, 0]
    assert board.ready[1, 1] == 0
    assert board.busy_since_ns[0, 2] == 7
    board.worker_cannot_load(1, "it died")
    assert (board.ready[1, 0], board.load_error(1, 0)) == (0, "it died")
    assert sum(board.all_busy_since_ns()) == 7
