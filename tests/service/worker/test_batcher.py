"""Which tickets make the next batch, what goes on to the next instance, and how long a window is."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.service.ipc.records import pack_dims
from foldserve.service.worker.batcher import choose
from foldserve.service.worker.ticket_consumer import Ticket
from tests.service.engine.test_recovery import on_loop
from tests.service.engine_rig import DYNAMIC, Rig


def ticket(slot: int, rows: int, length: int = 0, suspect: int = 0) -> Ticket:
    return Ticket(slot, 1, 0, 0, 0, suspect, rows, 0, 0, 0, 0, 0, pack_dims((length,)))


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 3), st.booleans()), min_size=1, max_size=40),
    st.integers(1, 10),
)
def test_batches_hold_every_ticket_once_mix_nothing_and_begin_with_the_oldest(
    wanted: list[tuple[int, int, bool]], most: int
) -> None:
    waiting = [ticket(i, rows, length, suspect) for i, (rows, length, suspect) in enumerate(wanted)]
    seen: list[int] = []
    while waiting:
        batch, left = choose([], 0, waiting, most)
        assert batch[0] is waiting[0]
        assert len({t.dims for t in batch}) == 1
        assert sum(t.rows for t in batch) <= most or len(batch) == 1
        assert len(batch) == 1 or not any(t.suspect for t in batch)
        assert [t.slot for t in batch] == sorted(t.slot for t in batch)
        assert [t.slot for t in left] == sorted(t.slot for t in left)
        assert len(batch) + len(left) == len(waiting)
        seen += [t.slot for t in batch]
        waiting = left
    assert sorted(seen) == list(range(len(wanted)))


def rows(batch: Any) -> int:
    return sum(ticket.rows for ticket in batch.tickets)


@on_loop
async def test_batch_counts_rows_and_not_requests() -> None:
    rig = Rig(workers=1, max_batch_size=8)
    for _ in range(6):
        rig.ask(1.0, 2.0, 3.0, 4.0)
    batcher = rig.new_worker().batchers[0]
    batches = [batcher.next(8, wait=False) for _ in range(4)]
    assert [rows(batch) if batch else 0 for batch in batches] == [8, 8, 8, 0]


@on_loop
async def test_free_instance_gets_the_next_batch_while_another_runs_one() -> None:
    """An instance that took all that waits would leave the others idle: requests of many lengths, or of many rows."""
    rig = Rig(DYNAMIC, workers=2)
    asked = [rig.ask(float(i), length=1 + i) for i in range(30)]
    first, second = rig.new_worker(0), rig.new_worker(1)
    first.loops[0].step()
    assert len(first.sessions[0].batches) == 1
    second.loops[0].step()
    assert len(second.sessions[0].batches) == 1
    rig.dispatcher.receive()
    assert [request.right for request in asked[:3]] == [True, True, False]  # the oldest first
    rig.work(second)
    assert all(request.right for request in asked)
    assert [batch.shape[1] for batch in second.sessions[0].batches] == list(range(2, 31))


@on_loop
async def test_full_batches_behind_a_small_one_are_not_hoarded() -> None:
    rig = Rig(workers=2, max_batch_size=8)
    small = [rig.ask(1.0) for _ in range(3)]
    full = [rig.ask(*range(8)) for _ in range(6)]
    first, second = rig.new_worker(0), rig.new_worker(1)
    first.loops[0].step()
    rig.work(second)
    assert all(request.right for request in small + full)
    assert [len(batch) for batch in first.sessions[0].batches] == [3]
    assert [len(batch) for batch in second.sessions[0].batches] == [8] * 6
    assert rig.all_free()


@on_loop
async def test_void_tickets_at_the_front_do_not_decide_what_the_batch_is() -> None:
    rig = Rig(DYNAMIC, workers=1)
    gone, good = rig.ask(1.0, length=7), rig.ask(2.0, length=2)
    assert gone.allocation is not None
    gone.allocation.void_attempt()
    worker = rig.new_worker()
    worker.loops[0].step()
    rig.dispatcher.receive()
    assert good.right
    assert gone.ends == []


@on_loop
async def test_window_runs_from_the_first_requests_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(workers=1)
    request = rig.ask(1.0)
    time.sleep(0.06)  # it has waited longer than the window already
    worker = rig.new_worker(window_s=0.05)
    waits: list[int] = []
    monkeypatch.setattr(worker.batchers[0]._reader, "wait_ns", lambda left_ns, level: waits.append(left_ns))
    worker.loops[0].step()
    assert waits == []
    rig.dispatcher.receive()
    assert request.right
    assert worker.metrics.batches == [(1, 0, "waited")]


@on_loop
async def test_only_the_instance_whose_turn_it_is_holds_a_batch_open() -> None:
    rig = Rig(workers=2)
    first, second = rig.new_worker(0, window_s=0.2), rig.new_worker(1, window_s=0.2)
    rig.ask(1.0)
    seen: list[Any] = []

    def come_later(left_ns: int, level: int) -> None:
        rig.ask(2.0)
        seen.append(second.batchers[0].next(8, wait=False))

    first.batchers[0]._reader.wait_ns = come_later  # type: ignore[method-assign]
    first.loops[0].step()
    assert set(seen) == {None}
    assert len(first.sessions[0].batches[0]) == 1 + len(seen) or len(first.sessions[0].batches[0]) == 8


@on_loop
async def test_full_batch_does_not_wait_for_the_window() -> None:
    rig = Rig(workers=1, max_batch_size=4)
    for _ in range(4):
        rig.ask(1.0)
    worker = rig.new_worker(window_s=30.0)
    worker.loops[0].step()
    assert worker.metrics.batches == [(4, 0, "full")]


@on_loop
async def test_window_closes_early_for_a_near_deadline() -> None:
    rig = Rig(workers=1)
    request = rig.ask(1.0, deadline_ns=time.monotonic_ns() + 20_000_000_000)
    worker = rig.new_worker(window_s=30.0)
    worker.loops[0]._times.add(9.95, 1)  # two of them before the deadline: in 0.1 s
    worker.loops[0].step()
    rig.dispatcher.receive()
    assert request.right


@on_loop
async def test_request_given_up_within_the_window_takes_no_place() -> None:
    rig = Rig(workers=1)
    gone, good = rig.ask(1.0), rig.ask(2.0)
    worker = rig.new_worker(window_s=0.05)
    worker.batchers[0]._reader.wait_ns = lambda left_ns, level: rig.dispatcher.cancel(gone)  # type: ignore[method-assign]
    worker.loops[0].step()
    rig.dispatcher.receive()
    assert good.right
    assert [len(batch) for batch in worker.sessions[0].batches] == [1]
    assert rig.all_free()


@on_loop
async def test_other_lengths_never_meet_in_a_batch() -> None:
    rig = Rig(DYNAMIC, workers=1)
    asked = [rig.ask(float(i), length=1 + i % 3) for i in range(8)]
    worker = rig.new_worker()
    rig.work(worker)
    assert all(request.right for request in asked)
    assert [batch.shape for batch in worker.sessions[0].batches] == [(3, 1), (3, 2), (2, 3)]
