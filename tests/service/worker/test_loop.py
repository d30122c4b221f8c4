"""Which tickets make a batch, and how long a window is."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.transport.records import pack_dims
from service.worker.loop import batches
from service.worker.take import Ticket
from tests.service.engine_rig import DYNAMIC, FIXED, Rig
from tests.service.test_recovery import on_loop


def ticket(slot: int, rows: int, length: int = 0, suspect: int = 0) -> Ticket:
    return Ticket(slot, 1, 0, 0, suspect, rows, 0, 0, 0, 0, 0, pack_dims((length,)))


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 3), st.booleans()), min_size=1, max_size=40),
    st.integers(1, 10),
)
def test_batches_hold_every_ticket_once_and_mix_nothing(
    wanted: list[tuple[int, int, bool]], max_rows: int
) -> None:
    tickets = [ticket(i, rows, length, suspect) for i, (rows, length, suspect) in enumerate(wanted)]
    made = [list(batch) for batch in batches(tickets, max_rows)]
    assert sorted(t.slot for batch in made for t in batch) == list(range(len(tickets)))
    for batch in made:
        assert batch
        assert len({t.dims for t in batch}) == 1
        assert sum(t.rows for t in batch) <= max_rows or len(batch) == 1
        assert len(batch) == 1 or not any(t.suspect for t in batch)
        assert [t.slot for t in batch] == sorted(t.slot for t in batch)


def test_tickets_that_fit_are_one_batch() -> None:
    tickets = [ticket(i, 2) for i in range(4)]
    assert list(batches(tickets, 8)) == [tickets]


@on_loop
async def test_window_runs_from_the_first_requests_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    request = rig.ask(1.0)
    time.sleep(0.06)  # it has waited longer than the window already
    worker = rig.new_worker(window_s=0.05)
    waits: list[float | None] = []
    monkeypatch.setattr(worker.takers[0].reader, "wait", waits.append)
    worker.loops[0].turn()
    assert waits == []
    rig.dispatcher.receive()
    assert request.right
    assert worker.metrics.batches == [(1, 0, "waited")]


@on_loop
async def test_full_batch_does_not_wait_for_the_window() -> None:
    rig = Rig(max_batch_size=4)
    for _ in range(4):
        rig.ask(1.0)
    worker = rig.new_worker(window_s=30.0)
    worker.loops[0].turn()
    assert worker.metrics.batches == [(4, 0, "full")]


@on_loop
async def test_window_closes_early_for_a_near_deadline() -> None:
    rig = Rig()
    request = rig.ask(1.0, deadline_ns=time.monotonic_ns() + 20_000_000_000)
    rig.board.batch_ns[0, 0] = 9_950_000_000  # two of them before the deadline: in 0.1 s
    worker = rig.new_worker(window_s=30.0)
    worker.loops[0].turn()
    rig.dispatcher.receive()
    assert request.right


@on_loop
async def test_other_lengths_never_meet_in_a_batch() -> None:
    rig = Rig(DYNAMIC)
    asked = [rig.ask(float(i), length=1 + i % 3) for i in range(8)]
    worker = rig.new_worker()
    for _ in range(3):
        worker.loops[0].turn()
        rig.dispatcher.receive()
    assert all(request.right for request in asked)
    assert sorted(batch.shape[1] for batch in worker.sessions[0].batches) == [1, 2, 3]


@on_loop
async def test_two_instances_and_two_models_share_nothing_but_the_process() -> None:
    rig = Rig(FIXED, FIXED)
    worker = rig.new_worker()
    first, second = rig.ask(1.0, lane=0), rig.ask(2.0, lane=1)
    worker.loops[1].turn()
    rig.dispatcher.receive()
    assert second.right
    assert first.ends == []
    worker.loops[0].turn()
    rig.dispatcher.receive()
    assert first.right


@pytest.mark.parametrize(("values", "average"), [([8] * 50, 8.0), ([1] * 50, 1.0)])
def test_averages_of_small_numbers_move(values: list[int], average: float) -> None:
    from service.transport.board import Board, Dimensions
    from service.worker.loop import Averages

    board = Board(Dimensions(1, 1, 1, 1)).map()
    averages = Averages(board, 0, 0)
    averages.add(0.001, 4)
    for rows in values:
        averages.add(0.002, rows)
    assert board.batch_rows[0, 0] / 256 == pytest.approx(average, rel=0.1)
    assert averages.batch_ns == pytest.approx(2_000_000, rel=0.1)
