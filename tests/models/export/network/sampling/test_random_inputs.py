"""What is drawn in the image of an example: valid as far as the example shows, and never one value again and again."""

import dataclasses

import pytest
import torch
from torch import Tensor

from foldserve.models.export.network.example.example import Example, Source, read_example
from foldserve.models.export.network.sampling.random_inputs import random_inputs, unproved_values
from tests.models.export.support import Fn


def example_of(tensor: Tensor, axes: dict[int, str] | None = None) -> Example:
    return read_example(Fn(lambda x: x), (tensor,), {"x": axes} if axes else None, None)


def drawn_like(
    tensor: Tensor,
    rows: int = 200,
    axes: dict[int, str] | None = None,
    source: Source = Source.RANGES,
    **options,
) -> Tensor:
    example = dataclasses.replace(example_of(tensor, axes), source=source)
    return random_inputs(example, rows, seed=0, **options)[0]


def test_the_same_seed_gives_the_same_rows_and_another_seed_others():
    example = example_of(torch.randn(2, 3))
    (first,), (second,), (third,) = (random_inputs(example, 5, seed) for seed in (1, 1, 2))
    assert first.shape == (5, 3)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_dynamic_axes_take_the_size_asked_for():
    shown = torch.tensor([[True, False]])
    for source in Source:
        assert drawn_like(shown, 3, {1: "length"}, source, sizes={"length": 5}).shape == (3, 5)
        assert drawn_like(shown, 3, {1: "length"}, source).shape == (3, 2)


# --- integers


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64]
)
def test_an_example_of_equal_rows_gives_one_range_for_all_places(dtype):
    drawn = drawn_like(torch.tensor([[3, 9]]).to(dtype))
    assert drawn.dtype == dtype
    assert {int(drawn[:, place].long().min()) for place in (0, 1)} == {3}
    assert {int(drawn[:, place].long().max()) for place in (0, 1)} == {9}


def test_each_column_of_a_table_stays_in_its_own_range_and_meets_both_ends_in_few_rows():
    drawn = drawn_like(torch.tensor([[0, -7], [999, -1], [5, -3]]), rows=7)
    assert drawn.amin(0).tolist() == [0, -7]
    assert drawn.amax(0).tolist() == [999, -1]


def test_places_along_a_dynamic_axis_share_their_range():
    drawn = drawn_like(torch.tensor([[[0, 5], [9, 6]]] * 2), axes={1: "length"}, sizes={"length": 4})
    assert drawn[..., 0].amax(0).tolist() == [9] * 4
    assert drawn[..., 1].amax(0).tolist() == [6] * 4


@pytest.mark.parametrize("value", [0, 128, 255])
def test_bytes_of_one_value_are_drawn_as_pictures(value):
    drawn = drawn_like(torch.full((2, 3, 8, 8), value, dtype=torch.uint8), rows=7)
    assert (int(drawn.min()), int(drawn.max())) == (0, 255)
    assert len(drawn.unique()) > 200
    assert not unproved_values(example_of(torch.full((2, 3), value, dtype=torch.uint8)))


def test_pixels_of_a_picture_share_the_range_of_the_whole_picture():
    shown = torch.randint(10, 200, (2, 3, 8, 8), dtype=torch.uint8)
    drawn = drawn_like(shown)
    assert int(drawn[:, 0, 0, 0].min()) == int(shown.min())
    assert int(drawn[:, 0, 0, 0].max()) == int(shown.max())


@pytest.mark.parametrize("sentinel", [-100, -1, 2**31 - 1, 2**63 - 1, -(2**63)])
def test_a_sentinel_is_drawn_where_the_example_shows_it_and_nothing_between_it_and_the_range(sentinel):
    drawn = drawn_like(torch.tensor([[0, 5], [9, 1], [3, sentinel]]))
    assert set(drawn[:, 0].tolist()) == set(range(10))
    assert set(drawn[:, 1].tolist()) == {1, 2, 3, 4, 5, sentinel}


def test_the_end_of_an_unsigned_type_is_a_sentinel_too():
    drawn = drawn_like(torch.tensor([[0], [7], [2**64 - 1]], dtype=torch.uint64))
    assert {int(v) for v in drawn.numpy().flat} == {*range(8), 2**64 - 1}


@pytest.mark.parametrize("value", [0, 7])
def test_integers_of_one_value_are_told(value):
    (told,) = unproved_values(example_of(torch.full((2, 5), value)))
    assert f"every value of the input 'x' is {value}" in told


def test_a_column_of_one_value_is_told_and_named():
    (told,) = unproved_values(example_of(torch.tensor([[3, 1, 7], [3, 2, 9]])))
    assert "column 0: 3" in told
    assert not unproved_values(example_of(torch.tensor([[2, 1, 7], [3, 2, 9]])))


# --- floats


def test_floats_stay_positive_where_the_example_is():
    drawn = drawn_like(torch.tensor([[0.5, 2.0]]), scale=3.0)
    assert float(drawn.min()) >= 0.5
    assert float(drawn.max()) <= 2.0


@pytest.mark.parametrize("value", [0.0, 1.0, -4.0, 300.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_floats_of_one_value_are_drawn_as_others(value, scale):
    drawn = drawn_like(torch.full((2, 3), value), scale=scale)
    assert (drawn.std(0) > 0.05).all()


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_floats_have_the_mean_and_the_scaled_spread_of_the_example(scale):
    drawn = drawn_like(torch.randn(50, 4, 10) * 5 - 20, scale=scale)
    # Of 2,000 shown and 8,000 drawn values, mean and spread are known to 0.1 spreads, four standard errors.
    assert float(drawn.mean()) == pytest.approx(-20, abs=0.5 * max(scale, 1))
    assert float(drawn.std()) == pytest.approx(5 * scale, rel=0.1)


def test_columns_of_a_table_have_statistics_of_their_own():
    drawn = drawn_like(torch.tensor([[20.0, 1e5], [80.0, 9e5], [35.0, 2e5], [50.0, 4e5]]))
    assert float(drawn[:, 0].max()) <= 80
    assert float(drawn[:, 1].min()) >= 1e5


@pytest.mark.parametrize(
    "mark", [float("nan"), float("inf"), -float("inf"), -1e9, torch.finfo(torch.float32).min]
)
def test_marks_among_floats_tell_nothing_of_the_spread(mark):
    shown = torch.randn(3, 40)
    shown[0, 0] = mark
    drawn = drawn_like(shown)
    assert bool(drawn.isfinite().all())
    assert float(drawn.std()) < 2


# --- masks

PADDING = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]])
MASKS = {
    "integers": PADDING,
    "booleans": PADDING.bool(),
    "true means ignored": ~PADDING.bool(),
    "mostly padded": torch.tensor([[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]]),
    "padded in front": PADDING.flip(1),
    "of heads": PADDING[:, None, None, :],
    "of pairs": torch.stack([PADDING] * 6, 1),
    "of columns": PADDING[:, :, None],
    "added": torch.where(PADDING == 1, 0.0, -torch.inf),
    "added, finite": torch.where(PADDING == 1, 0.0, torch.finfo(torch.float32).min),
}


@pytest.mark.parametrize("source", [Source.RANGES, Source.VALUES])
@pytest.mark.parametrize("kind", MASKS)
def test_no_line_of_a_mask_is_of_one_value_where_the_example_has_no_such_line(kind, source):
    shown = MASKS[kind]
    drawn = drawn_like(shown, source=source)
    assert drawn.dtype == shown.dtype
    assert set(drawn.unique().tolist()) == set(shown.unique().tolist())
    lines = drawn.movedim(1 if kind == "of columns" else -1, -1)
    assert bool((lines != lines[..., :1]).any(-1).all())
    assert len(lines.reshape(-1, 6).unique(dim=0)) >= 5  # every length of a prefix, at least


@pytest.mark.parametrize("kind", MASKS)
def test_masks_are_scattered_too_and_leave_the_end_open_that_is_not_padded(kind):
    shown = MASKS[kind]
    lines = drawn_like(shown).movedim(1 if kind == "of columns" else -1, -1).reshape(-1, 6)
    end = -1 if kind == "padded in front" else 0
    opened = shown.movedim(1 if kind == "of columns" else -1, -1).reshape(-1, 6)[0, end]
    assert bool((lines[:, end] == opened).all())
    changes = (lines[:, 1:] != lines[:, :-1]).sum(1)
    assert int(changes.max()) > 1  # a padded line changes once


@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_length_one_are_open(kind):
    shown, axis = MASKS[kind], 1 if kind == "of columns" else MASKS[kind].dim() - 1
    end = -1 if kind == "padded in front" else 0
    opened = shown.movedim(axis, -1)[..., end].reshape(-1)[0]
    drawn = drawn_like(shown, rows=6, axes={axis: "length"}, sizes={"length": 1})
    assert bool((drawn == opened).all())


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.int64, torch.float32])
def test_a_mask_of_ones_as_a_tokenizer_gives_it_is_drawn_with_padding(dtype):
    drawn = drawn_like(torch.ones(1, 8, dtype=dtype))
    zeros = (drawn == 0).sum(1)
    assert bool((zeros < 8).all())
    assert {1, 4, 7} <= set(zeros.tolist())
    assert 0 in zeros.tolist()


def test_nothing_ignored_in_a_boolean_example_is_drawn_with_something_ignored():
    drawn = drawn_like(torch.zeros(2, 8, dtype=torch.bool))
    ignored = drawn.sum(1)
    assert bool((ignored < 8).all())
    assert {0, 1, 4, 7} <= set(ignored.tolist())


def test_float_masks_of_zeros_and_ones_have_rows_between_as_features_would():
    drawn = drawn_like(torch.ones(2, 8), rows=7)
    assert bool(((drawn >= 0) & (drawn <= 1)).all())
    assert len(drawn.unique()) > 20


def test_flags_of_the_rows_take_both_values():
    for shown in (torch.tensor([True, True]), torch.tensor([[0], [1]])):
        assert len(drawn_like(shown).unique()) == 2


def test_integers_of_ones_are_told_to_be_taken_for_a_mask():
    (told,) = unproved_values(example_of(torch.ones(2, 5, dtype=torch.int64)))
    assert "taken for a mask" in told


# --- nearer to the example


def test_values_are_those_of_the_example_at_the_same_place():
    drawn = drawn_like(torch.tensor([[0, 50], [9, 60], [4, 70]]), source=Source.VALUES)
    assert set(drawn[:, 0].tolist()) == {0, 4, 9}
    assert set(drawn[:, 1].tolist()) == {50, 60, 70}
    assert len(drawn.unique(dim=0)) == 9


def test_rows_are_those_of_the_example_together_in_all_inputs():
    class Two(torch.nn.Module):
        def forward(self, x, y):
            return x, y

    x = torch.arange(12).reshape(4, 3)
    example = read_example(Two(), (x, x.float() * 2), None, None)
    drawn, doubled = random_inputs(dataclasses.replace(example, source=Source.ROWS), 50, seed=0)
    assert {tuple(row) for row in drawn.tolist()} == {tuple(row) for row in x.tolist()}
    assert torch.equal(doubled, drawn.float() * 2)
