"""Which batch sizes are run: the allowed ones, the warmed ones, and the rows that fill one up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.service.repository.buckets import bucket_for, buckets_for, padded, sizes_to_warm

BUCKETS = st.sets(st.integers(1, 200), min_size=1, max_size=8).map(sorted)


@pytest.mark.parametrize(
    ("rows", "bucket"), [(1, 1), (2, 4), (4, 4), (5, 16), (16, 16)], ids=lambda number: str(number)
)
def test_rows_are_run_at_the_smallest_bucket_that_takes_them(rows: int, bucket: int) -> None:
    assert bucket_for(rows, (1, 4, 16)) == bucket


@given(st.integers(1, 300), BUCKETS)
def test_bucket_is_the_least_that_is_not_too_small(rows: int, buckets: list[int]) -> None:
    fitting = [bucket for bucket in buckets if bucket >= rows]
    assert bucket_for(rows, buckets) == (min(fitting) if fitting else rows)


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_without_buckets_rows_are_run_as_they_are(rows: int) -> None:
    assert bucket_for(rows, ()) == rows


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(1, (1,)), (2, (1, 2)), (8, (1, 2, 4, 8)), (12, (1, 2, 4, 8, 12)), (33, (1, 2, 4, 8, 16, 32, 33))],
)
def test_powers_of_two_and_the_largest_batch_are_warmed(most: int, sizes: tuple[int, ...]) -> None:
    assert sizes_to_warm((), most) == sizes


@pytest.mark.parametrize(
    ("device", "configured", "buckets"),
    [
        ("cpu", (), ()),
        ("cpu", (3, 12), (3, 12)),
        ("cuda:0", (), (1, 2, 4, 8, 12)),
        ("cuda:7", (3, 12), (3, 12)),
    ],
)
def test_gpu_has_buckets_of_its_own_where_none_are_configured(
    device: str, configured: tuple[int, ...], buckets: tuple[int, ...]
) -> None:
    assert buckets_for(device, configured, 12) == buckets


def test_every_bucket_is_warmed_and_nothing_else() -> None:
    assert sizes_to_warm((3, 5, 32), 32) == (3, 5, 32)


@pytest.mark.parametrize("dtype", ["f4", "i8", "?", "u1", "f2"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 4)])
def test_missing_rows_repeat_the_last_one(dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(shape))
    array = rng.integers(0, 2, (3, *shape)).astype(dtype)
    filled = padded(array, 5)
    assert (filled.dtype, filled.shape) == (array.dtype, (5, *shape))
    np.testing.assert_array_equal(filled, np.concatenate([array, array[-1:], array[-1:]]))


def test_full_batch_is_not_copied() -> None:
    array = np.ones((4, 2))
    assert padded(array, 4) is array
