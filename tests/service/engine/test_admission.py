"""Who may enter a queue: bounds, forecasts, Retry-After; and that no forecast shuts anybody out for good."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.service.engine.admission import Bounds, Load, admit
from foldserve.service.errors import DeadlinePassed, QueueFull, TooLarge
from foldserve.service.ipc.run_time import UNKNOWN, RunTime, RunTimes, combined

BOUNDS = Bounds(max_rows=100, max_bytes=10_000)
MS = 1_000_000


def load(
    rows: int = 0,
    nbytes: int = 0,
    run_time: RunTime = UNKNOWN,
    instances: int = 1,
    large: bool = False,
) -> Load:
    return Load(rows, nbytes, 10, instances, run_time, large)


# Bounds -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 100), st.integers(1, 10))
def test_rows_enter_up_to_the_bound_and_not_past_it(waiting: int, rows: int) -> None:
    if waiting + rows <= 100:
        admit("m", rows, 1, load(waiting), BOUNDS, None)
    else:
        with pytest.raises(QueueFull, match=f"{waiting} rows waiting and takes at most 100; these {rows}"):
            admit("m", rows, 1, load(waiting), BOUNDS, None)


def test_bytes_are_bounded_too() -> None:
    admit("m", 1, 4000, load(1, 6000), BOUNDS, None)
    with pytest.raises(QueueFull, match="6001 bytes waiting"):
        admit("m", 1, 4000, load(1, 6001), BOUNDS, None)


def test_request_above_the_bound_enters_an_empty_queue() -> None:
    admit("m", 1000, 100_000, load(), BOUNDS, None)


@pytest.mark.parametrize(("rows", "nbytes"), [(11, 1), (5000, 1), (1, 10_001), (5000, 100_000)])
def test_large_request_has_a_place_in_a_full_line_and_the_next_large_one_has_not(
    rows: int, nbytes: int
) -> None:
    admit("m", rows, nbytes, load(100, 9_999), BOUNDS, None)
    with pytest.raises(QueueFull):
        admit("m", rows, nbytes, load(100, 9_999, large=True), BOUNDS, None)


def test_request_of_several_rows_that_a_busy_queue_has_no_room_for_is_a_large_one() -> None:
    bounds = Bounds(max_rows=10, max_bytes=1000)
    admit("m", 10, 1, load(10), bounds, None)
    admit("m", 2, 600, load(10), bounds, None)
    for rows, nbytes in ((5, 1), (1, 1), (1, 600)):
        with pytest.raises(QueueFull):
            admit("m", rows, nbytes, load(10), bounds, None)


def test_large_request_counts_in_bytes_too_as_one_batch() -> None:
    admit("m", 5000, 1_000_000, load(1, 8_000, large=True), BOUNDS, None)
    with pytest.raises(QueueFull, match="8001 bytes waiting"):
        admit("m", 5000, 1_000_000, load(1, 8_001, large=True), BOUNDS, None)


def test_forecast_is_put_to_the_test_by_one_that_it_is_against() -> None:
    queue = load(1, run_time=RunTime(100_000 * MS, 0))
    assert admit("m", 1, 1, queue, BOUNDS, 0.05, doubt=True)
    assert not admit("m", 1, 1, queue, BOUNDS, 101.0, doubt=True)
    with pytest.raises(DeadlinePassed):
        admit("m", 1, 1, queue, BOUNDS, 0.0, doubt=True)


def test_large_request_counts_as_one_batch_in_the_line() -> None:
    admit("m", 5000, 1, load(90, large=True), BOUNDS, None)
    with pytest.raises(QueueFull):
        admit("m", 5000, 1, load(91, large=True), BOUNDS, None)


def test_request_of_more_rows_than_one_may_have_is_told_how_many_it_may_have() -> None:
    bounds = Bounds(100, 10_000, max_request_rows=50)
    admit("m", 50, 1, load(1), bounds, None)
    with pytest.raises(TooLarge, match=r"has 51 rows; model 'm' takes at most 50 in one request"):
        admit("m", 51, 1, load(), bounds, None)


def test_retry_after_is_the_time_in_which_the_missing_rows_leave() -> None:
    with pytest.raises(QueueFull) as full:
        admit("m", 10, 1, load(100, run_time=RunTime(300 * MS, 20 * MS), instances=2), BOUNDS, None)
    # 10 rows in a batch of ten, half a second, and there are two instances.
    assert full.value.retry_after_s == pytest.approx(0.25)


# Forecasts --------------------------------------------------------------------------------------------------


def test_deadline_that_full_batches_miss_is_refused_early() -> None:
    # Of 60 rows ten may be about to be answered; with ours that leaves six batches of a tenth of a second.
    queue = load(60, run_time=RunTime(100 * MS, 0))
    admit("m", 10, 1, queue, BOUNDS, 0.61)
    with pytest.raises(DeadlinePassed, match="about 600 ms"):
        admit("m", 10, 1, queue, BOUNDS, 0.59)


def test_a_single_request_behind_another_waits_for_one_batch_at_least() -> None:
    with pytest.raises(DeadlinePassed):
        admit("m", 1, 1, load(1, run_time=RunTime(100 * MS, 0)), BOUNDS, 0.05)


def test_request_that_is_alone_is_let_in_whatever_the_forecast_says() -> None:
    admit("m", 1, 1, load(0, run_time=RunTime(100_000 * MS, 0)), BOUNDS, 0.05)


def test_request_whose_time_is_over_is_refused_also_when_it_is_alone() -> None:
    with pytest.raises(DeadlinePassed):
        admit("m", 1, 1, load(), BOUNDS, 0.0)


def test_large_request_takes_its_own_batches_one_after_the_other() -> None:
    run_time = RunTime(0, 10 * MS)
    with pytest.raises(DeadlinePassed, match="about 1050 ms"):
        admit("m", 105, 1, load(1, run_time=run_time, instances=8), BOUNDS, 1.0)


def test_nothing_is_forecast_before_anything_was_measured() -> None:
    admit("m", 10, 1, load(50), BOUNDS, 0.001)
    with pytest.raises(QueueFull) as full:
        admit("m", 10, 1, load(91), BOUNDS, None)
    assert full.value.retry_after_s == 1.0


# Against a server -------------------------------------------------------------------------------------------

BATCH_MS = 20
PATIENCE_S = 0.4


class Simulated:
    """One instance, whose batches take 10 ms + 1 ms a row but for its bad moments, in steps of a millisecond."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now_ms = 0
        self.queue: list[tuple[int, int]] = []  # deadline in ms, rows
        self.running: list[tuple[int, int]] = []
        self.ends_ms = 0
        self.began_ms = 0
        self.times = RunTimes()
        self.run_time, self.measured_ns = UNKNOWN, 0
        self.answered: list[int] = []
        self.bad = True

    def step(self) -> None:
        self.now_ms += 1
        if self.running and self.now_ms >= self.ends_ms:
            rows = sum(rows for _, rows in self.running)
            took_ns = (self.now_ms - self.began_ms) * MS
            self.run_time, self.measured_ns = (
                self.times.add(rows, took_ns, self.now_ms * MS),
                self.now_ms * MS,
            )
            self.answered += [self.now_ms for deadline, _ in self.running if deadline >= self.now_ms]
            self.running = []
        self.queue = [one for one in self.queue if one[0] >= self.now_ms]
        if not self.running and self.queue:
            rows = 0
            while self.queue and rows + self.queue[0][1] <= 10:
                rows += self.queue[0][1]
                self.running.append(self.queue.pop(0))
            self.began_ms = self.now_ms
            self.ends_ms = self.now_ms + 10 + sum(rows for _, rows in self.running)
            if self.bad and self.random.random() < 0.02:
                self.ends_ms += self.random.choice([500, 5_000, 20_000])  # it is paused
        if self.bad and self.random.random() < 0.0005:  # it dies, and forgets
            self.running, self.times = [], RunTimes()
            self.run_time, self.measured_ns = UNKNOWN, 0

    def ask(self, rows: int, patience_s: float) -> None:
        waiting = self.queue + [one for one in self.running if one[0] >= self.now_ms]
        now = combined([(self.run_time, self.measured_ns)], self.now_ms * MS)
        queued = load(sum(min(rows, 10) for _, rows in waiting), run_time=now)
        try:
            admit("m", rows, 1, queued, BOUNDS, patience_s)
        except (DeadlinePassed, QueueFull):
            return
        self.queue.append((self.now_ms + int(patience_s * 1000), rows))


@pytest.mark.parametrize("seed", range(20))
def test_clients_with_deadlines_are_served_again_soon_after_whatever_slowed_the_model_is_over(
    seed: int,
) -> None:
    server = Simulated(seed)
    for _ in range(20_000):
        server.step()
        if server.random.random() < 0.1:
            server.ask(server.random.choice([1, 1, 1, 5, 10]), server.random.choice([0.05, PATIENCE_S, 5.0]))
    server.bad = False
    server.ends_ms = min(server.ends_ms, server.now_ms + 1)  # whatever paused it goes on
    over_ms = server.now_ms
    for _ in range(2_000):
        server.step()
        if server.random.random() < 0.1:
            server.ask(1, PATIENCE_S)
    later = [at for at in server.answered if at > over_ms + 500]
    # A client asks every 10 ms, and each would be answered within 40: nearly all are, from half a second on.
    assert len(later) > 100
