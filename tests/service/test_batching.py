"""Plans, gathering and scattering, for any mix of requests."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import batching
from service.batching import Batch, Piece


def rows(count: int, first: int = 0, length: int = 2, dtype: str = "float32") -> dict[str, np.ndarray]:
    """A request of `count` rows with numbers of their own."""
    return {"x": (np.arange(count * length) + first).reshape(count, length).astype(dtype)}


@st.composite
def some_requests(draw: st.DrawFn) -> list[dict[str, np.ndarray]]:
    shapes = draw(
        st.lists(
            st.tuples(st.integers(1, 40), st.integers(1, 3), st.sampled_from(["float32", "int64"])),
            min_size=1,
            max_size=12,
        )
    )
    return [rows(count, 1000 * i, length, dtype) for i, (count, length, dtype) in enumerate(shapes)]


@given(requests=some_requests(), max_batch_size=st.integers(1, 16))
def test_every_row_of_every_request_is_in_exactly_one_batch(
    requests: list[dict[str, np.ndarray]], max_batch_size: int
) -> None:
    planned = [
        (piece.request, row)
        for batch in batching.plan(requests, max_batch_size)
        for piece in batch.pieces
        for row in range(piece.start, piece.stop)
    ]
    expected = [(i, row) for i, inputs in enumerate(requests) for row in range(batching.rows_of(inputs))]
    assert sorted(planned) == expected


@given(requests=some_requests(), max_batch_size=st.integers(1, 16))
def test_no_batch_is_empty_too_large_or_of_mixed_shapes(
    requests: list[dict[str, np.ndarray]], max_batch_size: int
) -> None:
    for batch in batching.plan(requests, max_batch_size):
        assert 1 <= batch.rows <= max_batch_size
        assert len({batching.group_key(requests[piece.request]) for piece in batch.pieces}) == 1


@given(requests=some_requests(), max_batch_size=st.integers(1, 16), padded=st.booleans())
def test_rows_come_back_to_their_own_request_whatever_the_plan(
    requests: list[dict[str, np.ndarray]], max_batch_size: int, padded: bool
) -> None:
    buckets = (max_batch_size,) if padded else ()
    parts: list[list[dict[str, np.ndarray]]] = [[] for _ in requests]
    for batch in batching.plan(requests, max_batch_size):
        bucket = batching.bucket_for(batch.rows, buckets)
        gathered = batching.gather(requests, batch, bucket)
        assert len(gathered["x"]) == bucket
        doubled = {"y": gathered["x"] * 2}
        for piece, part in zip(batch.pieces, batching.scatter(doubled, batch, bucket), strict=True):
            parts[piece.request].append(part)
    for inputs, of_request in zip(requests, parts, strict=True):
        np.testing.assert_array_equal(batching.join(of_request)["y"], inputs["x"] * 2)


def test_request_that_fits_a_batch_is_never_cut() -> None:
    plan = batching.plan([rows(3), rows(3), rows(2)], max_batch_size=4)
    assert plan == (Batch((Piece(0, 0, 3),)), Batch((Piece(1, 0, 3),)), Batch((Piece(2, 0, 2),)))


def test_request_larger_than_a_batch_is_cut_and_its_rest_shares_a_batch() -> None:
    plan = batching.plan([rows(5), rows(2)], max_batch_size=4)
    assert plan == (Batch((Piece(0, 0, 4),)), Batch((Piece(0, 4, 5), Piece(1, 0, 2))))


def test_requests_of_other_shapes_or_datatypes_run_apart() -> None:
    plan = batching.plan([rows(1, length=2), rows(1, length=3), rows(1, dtype="int64"), rows(1, length=2)], 8)
    assert [[piece.request for piece in batch.pieces] for batch in plan] == [[0, 3], [1], [2]]


def test_order_of_a_requests_inputs_does_not_keep_it_apart() -> None:
    one = {"a": np.zeros((1, 2)), "b": np.zeros((1, 3))}
    other = {"b": np.zeros((1, 3)), "a": np.zeros((1, 2))}
    assert len(batching.plan([one, other], 8)) == 1


@pytest.mark.parametrize(("count", "bucket"), [(1, 1), (2, 4), (4, 4), (5, 8)])
def test_bucket_is_the_smallest_that_takes_the_rows(count: int, bucket: int) -> None:
    assert batching.bucket_for(count, (1, 4, 8)) == bucket


def test_without_buckets_nothing_is_padded() -> None:
    assert batching.bucket_for(5, ()) == 5


def test_padding_repeats_the_last_row() -> None:
    gathered = batching.gather([rows(2)], Batch((Piece(0, 0, 2),)), 4)
    np.testing.assert_array_equal(gathered["x"], [[0, 1], [2, 3], [2, 3], [2, 3]])


def test_whole_request_alone_in_its_batch_is_not_copied() -> None:
    inputs = rows(3)
    gathered = batching.gather([inputs], Batch((Piece(0, 0, 3),)), 3)
    assert np.shares_memory(gathered["x"], inputs["x"])


def test_shared_outputs_are_copied_so_that_one_answer_does_not_hold_the_batch() -> None:
    outputs = {"y": np.zeros((4, 1))}
    parts = batching.scatter(outputs, Batch((Piece(0, 0, 1), Piece(1, 0, 2))), 4)
    assert not any(np.shares_memory(part["y"], outputs["y"]) for part in parts)


@pytest.mark.parametrize("output", [np.zeros((2, 3)), np.float32(1.0)])
def test_output_without_one_row_per_input_row_is_refused_by_name(output: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"output 'y'.*3 input rows"):
        batching.scatter({"y": np.asarray(output)}, Batch((Piece(0, 0, 3),)), 3)


def test_halves_share_out_all_pieces() -> None:
    pieces = tuple(Piece(i, 0, 1) for i in range(5))
    first, second = Batch(pieces).halves()
    assert first.pieces + second.pieces == pieces
    assert first.pieces
    assert second.pieces


@pytest.mark.parametrize(
    ("buckets", "largest", "sizes"),
    [((), 1, (1,)), ((), 8, (1, 2, 4, 8)), ((), 12, (1, 2, 4, 8, 12)), ((2, 6), 6, (2, 6))],
)
def test_every_bucket_or_power_of_two_is_warmed(
    buckets: tuple[int, ...], largest: int, sizes: tuple[int, ...]
) -> None:
    assert batching.sizes_to_warm(buckets, largest) == sizes
