"""When a batch limit falls, how far, and when it rises again."""

import pytest

from foldserve.service.worker.batches.oom_backoff import FIRST_WAIT_S, LONGEST_WAIT_S, MOST_DIMS, BatchLimits

SHORT, LONG = b"short", b"long"


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_nothing_is_lowered_at_first(clock: Clock) -> None:
    batch_limits = BatchLimits(32, (), clock)
    assert (batch_limits.limit(SHORT), batch_limits.lowest, batch_limits.lowered) == (32, 32, {})


@pytest.mark.parametrize(
    ("buckets", "failed", "expected"),
    [
        ((), 32, 16),
        ((), 20, 10),
        ((), 3, 1),
        ((), 1, None),
        ((1, 8, 12, 32), 32, 12),
        ((1, 8, 12, 32), 8, 1),
        ((8, 32), 8, None),
    ],
)
def test_it_falls_to_half_or_to_the_next_smaller_bucket(
    clock: Clock, buckets: tuple[int, ...], failed: int, expected: int | None
) -> None:
    batch_limits = BatchLimits(32, buckets, clock)
    assert batch_limits.lower(SHORT, failed) == expected
    assert batch_limits.limit(SHORT) == batch_limits.lowest == (32 if expected is None else expected)


def test_it_stays_where_it_was_when_nothing_smaller_is_allowed(clock: Clock) -> None:
    batch_limits = BatchLimits(32, (8, 32), clock)
    assert [batch_limits.lower(SHORT, 32), batch_limits.lower(SHORT, 8)] == [8, None]
    assert batch_limits.limit(SHORT) == 8


def test_each_dims_have_a_batch_limit_of_their_own_and_the_lowest_is_reported(clock: Clock) -> None:
    batch_limits = BatchLimits(32, (), clock)
    batch_limits.lower(LONG, 4)
    assert (batch_limits.limit(LONG), batch_limits.limit(SHORT), batch_limits.lowest) == (2, 32, 2)


def test_it_rises_a_step_after_a_wait_and_is_forgotten_when_the_top_has_held_as_long(clock: Clock) -> None:
    batch_limits = BatchLimits(32, (4, 8, 32), clock)
    batch_limits.lower(SHORT, 32)
    batch_limits.lower(SHORT, 8)
    clock.now_s += FIRST_WAIT_S - 1
    assert batch_limits.limit(SHORT) == 4
    clock.now_s += 1
    assert batch_limits.limit(SHORT) == 8
    clock.now_s += FIRST_WAIT_S
    assert batch_limits.limit(SHORT) == 32
    assert batch_limits.lowered
    clock.now_s += FIRST_WAIT_S
    assert batch_limits.limit(SHORT) == 32
    assert not batch_limits.lowered


def test_a_long_silence_raises_it_one_step_and_not_to_the_top(clock: Clock) -> None:
    batch_limits = BatchLimits(32, (), clock)
    batch_limits.lower(SHORT, 8)
    clock.now_s += 100 * LONGEST_WAIT_S
    assert [batch_limits.limit(SHORT), batch_limits.limit(SHORT)] == [8, 8]


def test_waits_double_while_the_higher_step_fails_up_to_an_hour(clock: Clock) -> None:
    batch_limits = BatchLimits(32, (), clock)
    batch_limits.lower(SHORT, 32)
    waits = []
    for _ in range(8):
        began_s = clock.now_s
        while batch_limits.limit(SHORT) == 16:
            clock.now_s += 1.0
        waits.append(clock.now_s - began_s)
        assert batch_limits.lower(SHORT, 32) == 16
    assert waits == [60, 120, 240, 480, 960, 1920, 3600, 3600]


def test_one_descent_of_several_steps_waits_no_longer_than_one_step(clock: Clock) -> None:
    batch_limits = BatchLimits(32, (), clock)
    for rows in (32, 16, 8):
        batch_limits.lower(SHORT, rows)
    clock.now_s += FIRST_WAIT_S
    assert batch_limits.limit(SHORT) == 8


def test_batch_limits_are_kept_of_a_bounded_number_of_dims(clock: Clock) -> None:
    batch_limits = BatchLimits(32, (), clock)
    for number in range(MOST_DIMS + 1):
        batch_limits.lower(number.to_bytes(4, "little"), 8)
    assert len(batch_limits.lowered) == MOST_DIMS
    assert batch_limits.limit((0).to_bytes(4, "little")) == 32
