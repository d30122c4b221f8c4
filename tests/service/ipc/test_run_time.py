"""What a batch is thought to take: a floor from the quickest recent batches, forgotten when nobody renews it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.service.ipc.run_time import EPOCH_NS, FRESH_NS, UNKNOWN, RunTime, RunTimes, combined

MS = 1_000_000


def learned(*batches: tuple[int, int], at_ns: int = 1) -> RunTime:
    """From (rows, nanoseconds), all at once."""
    times = RunTimes()
    found = UNKNOWN
    for rows, took_ns in batches:
        found = times.add(rows, took_ns, at_ns)
    return found


@given(st.integers(0, 10**9), st.integers(1, 10**7), st.integers(1, 32), st.integers(2, 8))
def test_line_through_two_sizes_is_the_models_own(fixed_ns: int, row_ns: int, few: int, times: int) -> None:
    true = RunTime(fixed_ns, row_ns)
    many = few * times
    found = learned((few, true.of(few)), (many, true.of(many)))
    for rows in (few, many):
        assert true.of(rows) - many <= found.of(rows) <= true.of(rows)  # rounded down by a nanosecond a row


def test_slow_batch_among_quick_ones_changes_nothing() -> None:
    quick = (1, 20 * MS), (8, 60 * MS)
    assert learned(*quick, (1, 5_000 * MS), (8, 9_000 * MS)) == learned(*quick)


def test_first_batch_that_was_slow_is_forgotten_at_the_next_one() -> None:
    times = RunTimes()
    assert times.add(1, 5_000 * MS, 1).of(1) == 5_000 * MS
    assert times.add(1, 20 * MS, 2).of(1) == 20 * MS


def test_model_that_became_slower_is_believed_after_two_epochs() -> None:
    times = RunTimes()
    now_ns = 1
    times.add(1, MS, now_ns)
    found = UNKNOWN
    for _ in range(5):
        now_ns += EPOCH_NS // 2
        found = times.add(1, 50 * MS, now_ns)
    assert found.of(1) == 50 * MS


def test_larger_batches_that_took_less_make_no_negative_time() -> None:
    found = learned((1, 50 * MS), (32, 10 * MS))
    assert found.row_ns == 0
    assert 0 < found.of(1) <= 10 * MS


def test_one_size_of_which_all_batches_were_slow_is_not_believed_beyond_what_the_others_allow() -> None:
    assert learned((1, 10 * MS), (10, 20_000 * MS)).of(10) <= 100 * MS
    assert learned((1, 20_000 * MS), (10, 50 * MS)).of(1) <= 50 * MS


def test_one_size_says_nothing_of_others_but_that_they_take_time() -> None:
    assert learned((8, 16 * MS)) == RunTime(16 * MS, 0)


def test_quickest_worker_counts_and_old_measurements_do_not() -> None:
    now_ns = 100 * FRESH_NS
    slow, quick = RunTime(9 * MS, 3), RunTime(2 * MS, 5)
    assert combined([(slow, now_ns), (quick, now_ns)], now_ns) == RunTime(2 * MS, 3)
    assert combined([(slow, now_ns), (quick, now_ns - FRESH_NS)], now_ns) == slow
    assert combined([(slow, now_ns - FRESH_NS), (UNKNOWN, now_ns)], now_ns) == UNKNOWN
    assert not UNKNOWN.known


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_nothing_known_takes_no_time(rows: int) -> None:
    assert UNKNOWN.of(rows) == 0
