"""Who may enter a queue: bounds, forecasts, Retry-After."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.admission import Bounds, Load, admit
from service.errors import DeadlinePassed, QueueFull

BOUNDS = Bounds(max_rows=100, max_bytes=10_000)


def load(
    rows: int = 0, nbytes: int = 0, batch_s: float = 0.0, batch_rows: float = 0.0, instances: int = 1
) -> Load:
    return Load(rows, nbytes, batch_s, batch_rows, 10, instances)


@given(st.integers(1, 100), st.integers(1, 200))
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


def test_retry_after_is_the_time_in_which_the_missing_rows_leave() -> None:
    with pytest.raises(QueueFull) as full:
        admit("m", 30, 1, load(100, batch_s=0.5, batch_rows=10, instances=2), BOUNDS, None)
    # 30 rows at 10 a batch, 2 batches at a time, half a second each.
    assert full.value.retry_after_s == pytest.approx(0.75)


def test_deadline_that_full_batches_miss_is_refused_early() -> None:
    queue = load(50, batch_s=0.1, batch_rows=10)  # six batches of a tenth of a second, with ours
    admit("m", 10, 1, queue, BOUNDS, 0.61)
    with pytest.raises(DeadlinePassed, match="about 600 ms"):
        admit("m", 10, 1, queue, BOUNDS, 0.59)


def test_small_recent_batches_do_not_make_a_forecast_worse_than_full_ones_would_be() -> None:
    # One row a batch so far, because nobody else asked: 30 rows now go in three batches, not in thirty.
    admit("m", 1, 1, load(29, batch_s=0.1, batch_rows=1), BOUNDS, 0.31)


def test_a_single_request_waits_for_one_batch_at_least() -> None:
    with pytest.raises(DeadlinePassed):
        admit("m", 1, 1, load(0, batch_s=0.1, batch_rows=10), BOUNDS, 0.05)


def test_nothing_is_forecast_before_anything_was_measured() -> None:
    admit("m", 50, 1, load(50), BOUNDS, 0.001)
    with pytest.raises(QueueFull) as full:
        admit("m", 51, 1, load(50), BOUNDS, None)
    assert full.value.retry_after_s == 1.0
