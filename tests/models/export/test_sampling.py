import inspect

import pytest
import torch
from torch import nn

from models.export.example import Breadth, Example, read_example
from models.export.sampling import not_tried, random_inputs, settled
from tests.models.export.support import Fn


def example_of(tensor: torch.Tensor, axes: dict[int, str] | None = None) -> Example:
    return read_example(Fn(lambda x: x), (tensor,), {"x": axes} if axes else None, None)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others():
    example = example_of(torch.randn(2, 3))
    (first,), (second,), (third,) = (random_inputs(example, 5, seed) for seed in (1, 1, 2))
    assert first.shape == (5, 3)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_integers_stay_in_the_range_of_the_example():
    (drawn,) = random_inputs(example_of(torch.tensor([[3, 9]], dtype=torch.int32)), 200, seed=0)
    assert drawn.dtype == torch.int32
    assert (int(drawn.min()), int(drawn.max())) == (3, 9)


def test_pictures_stay_pictures():
    (drawn,) = random_inputs(example_of(torch.tensor([[0, 255]], dtype=torch.uint8)), 300, seed=0)
    assert drawn.dtype == torch.uint8
    assert int(drawn.max()) > 200


def test_floats_stay_positive_where_the_example_is():
    (drawn,) = random_inputs(example_of(torch.tensor([[0.5, 2.0]])), 300, seed=0)
    assert float(drawn.min()) >= 0.5
    assert float(drawn.max()) <= 2.0


def test_an_example_of_one_value_still_gives_different_rows():
    (drawn,) = random_inputs(example_of(torch.zeros(2, 3)), 4, seed=0)
    assert float(drawn.std()) > 0.1


def masks_of(example: torch.Tensor, rows: int = 60, length: int | None = None) -> torch.Tensor:
    axes = {1: "length"} if length else None
    sizes = {"length": length} if length else None
    return random_inputs(example_of(example, axes), rows, seed=0, sizes=sizes)[0]


@pytest.mark.parametrize(
    "example",
    [
        torch.ones(2, 8, dtype=torch.int64),
        torch.tensor([[1] * 8, [1] * 6 + [0] * 2]),
        torch.tensor([[True] * 8, [True] * 5 + [False] * 3]),
        torch.zeros(2, 8, dtype=torch.bool),
        torch.tensor([[0.0] * 8, [0.0] * 5 + [-torch.inf] * 3]),
        torch.tensor([[0.0] * 8, [0.0] * 5 + [-1e9] * 3]),
        torch.tensor([[1.0] * 8, [1.0] * 5 + [0.0] * 3]),
    ],
    ids=["all ones", "kept 1", "kept True", "ignored True", "added -inf", "added -1e9", "float"],
)
def test_a_mask_of_padding_behind_stays_one_and_keeps_something_in_each_row(example):
    drawn = masks_of(example)
    assert drawn.dtype == example.dtype
    kept = drawn == example[0, 0]
    assert bool(kept[:, 0].all())
    assert bool((kept[:, 1:] <= kept[:, :-1]).all())  # what is masked is masked up to the end
    assert set(kept.sum(1).tolist()) == set(range(1, 9))


def test_a_mask_of_padding_in_front_stays_one():
    kept = masks_of(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])) == 1
    assert bool(kept[:, -1].all())
    assert bool((kept[:, 1:] >= kept[:, :-1]).all())
    assert not bool(kept[:, 0].all())


@pytest.mark.parametrize("length", [1, 2, 9])
def test_a_mask_whose_meaning_nobody_knows_has_both_values_in_each_row(length):
    drawn = masks_of(torch.tensor([[False, True], [False, True]]), length=length)
    assert drawn.shape == (60, length)
    if length > 1:
        assert bool(drawn.any(1).all())
        assert not bool(drawn.all(1).any())


def test_a_mask_without_order_is_drawn_without():
    drawn = masks_of(torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0]]))
    assert len({tuple(row.tolist()) for row in drawn}) > 8
    assert bool((drawn == 1).any(1).all())


def test_flags_of_rows_are_of_both_kinds():
    (drawn,) = random_inputs(example_of(torch.tensor([True, True])), 30, seed=0)
    assert 5 < int(drawn.sum()) < 25


def test_bytes_of_one_value_are_drawn_as_pictures():
    (drawn,) = random_inputs(example_of(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)), 2, seed=0)
    assert (int(drawn.min()), int(drawn.max())) == (0, 255)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int32, torch.int64])
def test_both_ends_of_a_range_of_ids_are_met_and_not_left(dtype):
    drawn = random_inputs(example_of(torch.tensor([[2, 50_0], [7, 3]]).to(dtype)), 7, seed=7)[0].long()
    assert (int(drawn.min()), int(drawn.max())) == (2, 500)


@pytest.mark.parametrize("nothing", [-1, -100, 2**63 - 1, -(2**63)])
def test_what_stands_for_nothing_widens_no_range_and_comes_as_often(nothing):
    example = torch.tensor([[3, 9, nothing, nothing], [4, nothing, 5, nothing]])
    (drawn,) = random_inputs(example_of(example), 500, seed=0)
    numbers = drawn[drawn != nothing]
    assert (int(numbers.min()), int(numbers.max())) == (3, 9)
    assert float((drawn == nothing).float().mean()) == pytest.approx(0.5, abs=0.05)


def test_rows_of_several_scales_are_drawn():
    (drawn,) = random_inputs(example_of(torch.randn(4, 1000)), 3, seed=0)
    spreads = drawn.std(1)
    assert spreads.tolist() == pytest.approx([1.0, 0.25, 2.0], rel=0.1)


class Weekdays(nn.Module):
    """A table with a range for each column."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.days = nn.Embedding(1000, 4), nn.Embedding(7, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.users(x[:, 0]) + self.days(x[:, 1])


def settled_for(module: nn.Module, tensor: torch.Tensor, axes: dict[int, str] | None = None) -> Example:
    name = next(iter(inspect.signature(module.forward).parameters))
    example = read_example(module, (tensor,), {name: axes} if axes else None, None)
    return settled(example, lambda inputs: example.call(module, inputs))


def test_a_table_is_drawn_within_the_range_of_each_column():
    example = settled_for(Weekdays(), torch.tensor([[0, 0], [999, 6], [500, 3]]))
    assert example.breadth is Breadth.COLUMN
    drawn = random_inputs(example, 400, seed=0)[0]
    assert drawn.amin(0).tolist() == [0, 0]
    assert drawn.amax(0).tolist() == [999, 6]


def test_columns_of_floats_are_drawn_apart_where_they_must_be():
    example = settled_for(Fn(lambda x: x[:, :1] * x[:, 1:].log()), torch.tensor([[-50.0, 1.0], [50.0, 2.0]]))
    assert example.breadth is Breadth.COLUMN
    drawn = random_inputs(example, 100, seed=0)[0]
    assert float(drawn[:, 1].min()) >= 1.0


def test_columns_behind_a_dynamic_axis_keep_their_ranges():
    def forward(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(x[..., 1], 3).sum(1) + nn.functional.one_hot(x[..., 0], 50).sum(1)[:, :3]

    example = settled_for(Fn(forward), torch.tensor([[[49, 2], [0, 0]], [[7, 1], [3, 2]]]), {1: "n"})
    assert example.breadth is Breadth.COLUMN
    drawn = random_inputs(example, 50, seed=0, sizes={"n": 5})[0]
    assert drawn.shape == (50, 5, 2)
    assert drawn.amax((0, 1)).tolist() == [49, 2]


def test_a_network_that_takes_only_its_examples_rows_is_given_those_and_it_is_said():
    known = torch.tensor([[1, 5, 2], [7, 3, 4]])

    def forward(x: torch.Tensor) -> torch.Tensor:
        if not all(bool((row == known).all(1).any()) for row in x):
            raise ValueError("not in the catalogue")
        return x * 2.0

    example = settled_for(Fn(forward), known)
    assert example.breadth is Breadth.ROWS
    assert {tuple(row) for row in random_inputs(example, 40, seed=0)[0].tolist()} == {(1, 5, 2), (7, 3, 4)}
    assert "only its rows were tried" in not_tried(example)[0]


def test_what_an_example_of_one_value_leaves_untried_is_said():
    (told,) = not_tried(example_of(torch.zeros(2, 5, dtype=torch.int64)))
    assert "all values of 'x' are 0 in the example" in told
    assert not_tried(example_of(torch.ones(2, 5, dtype=torch.int64))) == []  # a mask
    assert not_tried(example_of(torch.zeros(2, 5))) == []


def test_dynamic_axes_take_the_size_asked_for():
    example = example_of(torch.tensor([[True, False]]), {1: "length"})
    assert random_inputs(example, 3, seed=0, sizes={"length": 5})[0].shape == (3, 5)
    assert random_inputs(example, 3, seed=0)[0].shape == (3, 2)
