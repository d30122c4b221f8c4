"""Priority levels in batches: their order, what rides in the padding, and that nothing waits for ever.

By a clock of the test's own, and then with the engine's real parts.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldserve.service.ipc.records import TICKET_STRUCT, TICKETS_PER_TURN, pack_dims
from foldserve.service.repository.buckets import bucket_for
from foldserve.service.worker import batcher as batcher_module
from foldserve.service.worker.batcher import Batch, Batcher
from foldserve.service.worker.ticket_consumer import Ticket
from foldserve.service.worker.turn import SoleTurn, pack_waiting, unpack_waiting
from tests.service.engine.test_recovery import on_loop
from tests.service.engine_rig import DYNAMIC, Rig

MS = 1_000_000
BUCKETS = (1, 4, 8)
MOST = BUCKETS[-1]


@dataclass
class Simulation:
    """The pipes of one instance, and a clock that the test moves."""

    levels: int
    age_ns: int
    buckets: Sequence[int] = BUCKETS
    window_ns: int = 0
    now_ns: int = 1
    come: Callable[[int], None] = lambda left_ns: None
    """Called when the instance waits within a window."""
    tickets: list[Ticket] = field(default_factory=list)
    level_of: list[int] = field(default_factory=list)
    taken_ns: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pipes: list[deque[Ticket]] = [deque() for _ in range(self.levels)]
        self.turn = SoleTurn()
        parts: Any = (
            self,
            self.turn,
            self,
            self.window_ns,
            lambda rows: 0,
            self.bucket,
            self.levels,
            self.age_ns,
        )
        self.batcher = Batcher(*parts)

    def bucket(self, rows: int) -> int:
        """The batch size of so many rows."""
        return bucket_for(rows, self.buckets)

    def ask(self, level: int, rows: int = 1, length: int = 0, suspect: int = 0) -> int:
        """Queue a request. Returns: its number."""
        number = len(self.tickets)
        dims = pack_dims((length,))
        made = Ticket(number, 1, 0, 0, 0, suspect, rows, 0, 0, 0, self.now_ns, 1 << 62, dims)
        self.tickets.append(made)
        self.level_of.append(level)
        self.pipes[level].append(made)
        return number

    def next(self, wait: bool = False) -> Batch | None:
        """The instance's next batch."""
        with pytest.MonkeyPatch.context() as patch:
            clock = SimpleNamespace(monotonic_ns=lambda: self.now_ns)
            patch.setattr(batcher_module, "time", clock)
            return self.batcher.next(MOST, wait)

    def numbers(self, wait: bool = False) -> list[int]:
        """The requests in its next batch."""
        batch = self.next(wait)
        return [] if batch is None else [ticket.slot for ticket in batch.tickets]

    def waits(self, level: int) -> list[int]:
        """The requests of a level that wait, in their order."""
        in_hand = unpack_waiting(self.turn._kept, self.levels)[level]
        return [ticket.slot for ticket in (*in_hand, *self.pipes[level])]

    # -- stands for the TicketReader

    def read(self, at_most: int, level: int) -> bytes:
        pipe = self.pipes[level]
        return b"".join(TICKET_STRUCT.pack(*pipe.popleft()) for _ in range(min(at_most, len(pipe))))

    def wait(self) -> None:
        assert any(self.pipes)

    def wait_ns(self, left_ns: int, level: int) -> None:
        before_ns = self.now_ns
        self.come(left_ns)
        if self.now_ns == before_ns and not any(self.pipes[: level + 1]):
            self.now_ns += left_ns

    # -- stands for the TicketConsumer

    def is_unloaded(self) -> bool:
        return False

    def rest(self) -> None:
        pass

    def mark(self, tickets: Sequence[Ticket]) -> list[Ticket]:
        for ticket in tickets:
            assert ticket.slot not in self.taken_ns
            self.taken_ns[ticket.slot] = self.now_ns
        return list(tickets)

    def still_wanted(self, tickets: Sequence[Ticket]) -> Sequence[Ticket]:
        return tickets


@given(
    levels=st.integers(2, 8),
    age_ms=st.integers(1, 60),
    most_run_ms=st.integers(1, 40),
    buckets=st.sampled_from(((), BUCKETS)),
    asked=st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 7), st.integers(1, 2 * MOST), st.integers(0, 1)),
        max_size=25,
    ),
    flood=st.sets(st.integers(0, 7), min_size=1),
    data=st.data(),
)
@settings(max_examples=300, deadline=None)
def test_every_request_is_taken_in_the_time_that_ageing_promises_whatever_comes(
    levels: int,
    age_ms: int,
    most_run_ms: int,
    buckets: Sequence[int],
    asked: list[tuple[int, int, int, int]],
    flood: set[int],
    data: st.DataObject,
) -> None:
    """Some levels are kept full for as long as anything waits, and more comes at any time."""
    of = Simulation(levels, age_ms * MS, buckets)
    coming = deque(asked)
    promised: dict[int, int] = {}
    step_ns = age_ms * MS + 2 * (levels - 1) * most_run_ms * MS
    due_ns = 0
    while coming or any(number not in of.taken_ns for number in promised):
        while coming and due_ns <= of.now_ns:
            after_ms, level, rows, length = coming.popleft()
            due_ns += after_ms * MS
            level %= levels
            before = len(of.waits(level))
            number = of.ask(level, rows, length)
            if level:
                promised[number] = of.now_ns + (before + 1) * step_ns
        for level in {level % levels for level in flood}:
            while sum(of.tickets[number].rows for number in of.waits(level)) < 2 * MOST:
                of.ask(level)
        batch = of.next()
        assert batch is not None
        assert all(of.now_ns <= latest for number, latest in promised.items() if number not in of.taken_ns)
        of.now_ns += data.draw(st.integers(1, most_run_ms)) * MS
    assert all(of.taken_ns[number] <= latest for number, latest in promised.items())


@given(
    levels=st.integers(1, 8),
    buckets=st.sampled_from(((), BUCKETS)),
    asked=st.lists(
        st.tuples(st.integers(0, 7), st.integers(1, 10), st.integers(0, 1), st.booleans()),
        min_size=1,
        max_size=80,
    ),
)
def test_batches_take_levels_in_order_and_bulk_rides_in_padding_alone(
    levels: int, buckets: Sequence[int], asked: list[tuple[int, int, int, bool]]
) -> None:
    of = Simulation(levels, age_ns=1 << 61, buckets=buckets)
    for level, rows, length, suspect in asked:
        of.ask(level % levels, rows, length, suspect)
    bulk = levels - 1
    taken: list[int] = []
    while len(taken) < len(asked):
        before = [of.waits(level) for level in range(levels)]
        batch = of.next()
        assert batch is not None
        numbers = [ticket.slot for ticket in batch.tickets]
        first = next(level for level in range(levels) if before[level])
        assert (batch.level, numbers[0]) == (first, before[first][0])
        found = [of.level_of[number] for number in numbers]
        assert found == sorted(found)
        rows = sum(ticket.rows for ticket in batch.tickets)
        assert rows <= MOST or len(numbers) == 1
        assert len({ticket.dims for ticket in batch.tickets}) == 1
        assert len(numbers) == 1 or not any(ticket.suspect for ticket in batch.tickets)
        if bulk and first < bulk:
            others = sum(of.tickets[number].rows for number in numbers if of.level_of[number] < bulk)
            assert bucket_for(rows, buckets) == bucket_for(others, buckets)
        taken += numbers
    assert sorted(taken) == list(range(len(asked)))


def test_bulk_fills_what_a_bucket_pads_and_no_more() -> None:
    of = Simulation(2, age_ns=1 << 61)
    bulk = [of.ask(1) for _ in range(9)]
    high = of.ask(0, rows=2)
    assert of.numbers() == [high, *bulk[:2]]  # of a bucket of 4
    assert of.numbers() == bulk[2:]  # nothing else waits


def test_bulk_that_does_not_fit_the_padding_waits() -> None:
    of = Simulation(2, age_ns=1 << 61)
    wide, other_length, narrow = of.ask(1, rows=3), of.ask(1, length=1), of.ask(1)
    high = of.ask(0, rows=2)
    assert of.numbers() == [high, narrow]
    assert of.numbers() == [wide]
    assert of.numbers() == [other_length]


def test_a_backlog_that_cannot_be_used_never_hides_a_higher_request() -> None:
    """Each bulk request has a length of its own: what is in hand is full of them."""
    of = Simulation(4, age_ns=1 << 61)
    for at in range(3 * TICKETS_PER_TURN):
        of.ask(3, length=at)
        of.ask(2, length=at)
    assert of.numbers() == [1]
    first, second = of.ask(1, length=900), of.ask(0, length=901)
    assert (of.numbers(), of.numbers(), of.numbers()) == ([second], [first], [3])


def test_age_of_a_level_begins_again_when_its_oldest_is_taken() -> None:
    of = Simulation(2, age_ns=100 * MS)
    bulk = [of.ask(1, rows=MOST) for _ in range(3)]
    led: list[int] = []
    for _ in range(50):
        of.ask(0, rows=MOST)
        of.now_ns += 10 * MS
        led += [number for number in of.numbers() if of.level_of[number]]
    assert led == bulk
    times = [of.taken_ns[number] for number in bulk]
    assert [after - before for before, after in pairwise(times)] == [100 * MS] * 2


def test_short_age_takes_no_more_than_every_second_batch() -> None:
    of = Simulation(2, age_ns=1)
    for _ in range(10):
        of.ask(1, rows=MOST)
        of.ask(0, rows=MOST)
    found = []
    for _ in range(20):
        of.now_ns += 10 * MS
        found += [of.level_of[number] for number in of.numbers()]
    assert found == [1, 0] * 10


def test_request_of_a_higher_level_joins_an_open_batch_of_bulk_or_closes_it() -> None:
    for rows, expected in ((MOST - 1, [[0, 1]]), (MOST, [[0], [1]])):
        of = Simulation(3, age_ns=1 << 61, window_ns=500 * MS)
        of.ask(2)

        def come(left_ns: int, of: Simulation = of, rows: int = rows) -> None:
            of.now_ns += 5 * MS
            if len(of.tickets) == 1:
                of.ask(0, rows=rows)

        of.come = come
        assert [of.numbers(wait=True) for _ in expected] == expected
        assert of.taken_ns[1] <= 10 * MS


def test_window_of_a_batch_does_not_wake_for_bulk_that_it_does_not_take() -> None:
    of = Simulation(2, age_ns=1 << 61, window_ns=50 * MS)
    of.ask(0)
    for _ in range(20):
        of.ask(1)
    waits: list[int] = []
    of.come = waits.append
    assert of.numbers(wait=True) == [0]
    assert len(waits) == 1


def test_what_is_in_hand_travels_whole_with_its_levels() -> None:
    of = Simulation(8, age_ns=1)
    room = TICKETS_PER_TURN // 8
    waiting = [[of.tickets[of.ask(level)] for _ in range(room)] for level in range(8)]
    assert unpack_waiting(pack_waiting(waiting), 8) == waiting
    assert unpack_waiting(pack_waiting([[]]), 1) == [[]]


# -- the engine's real parts


@on_loop
async def test_instances_share_the_order_and_what_the_others_have_in_hand() -> None:
    rig = Rig(DYNAMIC, workers=2, levels=3, age_s=3600)
    low = [rig.ask(float(at), length=1 + at, priority=3) for at in range(5)]
    middle = [rig.ask(float(at), length=1 + at, priority=2) for at in range(5)]
    first, second = rig.new_worker(0), rig.new_worker(1)
    first.loops[0].step(wait=False)
    high = [rig.ask(float(at), length=11 + at, priority=1) for at in range(2)]
    for worker in (second, first, second, first):
        worker.loops[0].step(wait=False)
    rig.dispatcher.receive()
    assert all(request.right for request in (*high, *middle[:3]))
    assert not any(request.ends for request in (*low, *middle[3:]))
    rig.work(first)
    assert all(request.right for request in (*low, *middle))
    assert rig.all_free()


@on_loop
async def test_default_level_is_the_models() -> None:
    rig = Rig(workers=1, levels=3, default_level=1, max_batch_size=1, age_s=3600)
    asked = [rig.ask(1.0, priority=priority) for priority in (3, 0, 1)]
    worker = rig.new_worker()
    ends = []
    for _ in asked:
        worker.loops[0].step(wait=False)
        rig.dispatcher.receive()
        ends.append([request.right for request in asked])
    assert ends == [[False, False, True], [False, True, True], [True, True, True]]


@on_loop
async def test_large_request_of_bulk_goes_on_when_nothing_else_waits_or_its_time_has_come() -> None:
    rig = Rig(workers=1, levels=2, age_s=3600)
    worker = rig.new_worker()
    sizes = worker.sessions[0].batches
    large = rig.ask(*range(24), priority=2)
    worker.loops[0].step(wait=False)
    assert [len(batch) for batch in sizes] == [8]
    high = [rig.ask(float(at)) for at in range(3)]
    worker.loops[0].step(wait=False)
    rig.dispatcher.receive()
    assert all(request.right for request in high)
    assert [len(batch) for batch in sizes] == [8, 3]
    worker.loops[0]._ageing._age_ns = 0
    other = rig.ask(1.0)
    worker.loops[0].step(wait=False)
    assert [len(batch) for batch in sizes] == [8, 3, 1, 8]
    rig.work(worker)
    assert large.right
    assert other.right


@on_loop
async def test_padding_in_a_run_is_bulks_rows() -> None:
    rig = Rig(workers=1, levels=2, age_s=3600)
    bulk = [rig.ask(float(at), priority=2) for at in range(3)]
    high = rig.ask(7.0, 8.0, 9.0, priority=1)
    worker = rig.new_worker(buckets=(1, 4, 8))
    worker.loops[0].step(wait=False)
    rig.dispatcher.receive()
    assert [high.right, *(request.right for request in bulk)] == [True, True, False, False]
    assert np.array_equal(worker.sessions[0].batches[0][:, 0], [7, 8, 9, 0])
    assert worker.metrics.batches == [(4, 0, "drained")]
