import torch

from models.export.example import Example, read_example
from models.export.sampling import random_inputs
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


def test_masks_are_rows_of_the_example():
    rows = torch.tensor([[True, False, False], [True, True, False]])
    (drawn,) = random_inputs(example_of(rows), 50, seed=0)
    assert {tuple(row.tolist()) for row in drawn} == {tuple(row.tolist()) for row in rows}


def test_dynamic_axes_take_the_size_asked_for():
    example = example_of(torch.tensor([[True, False]]), {1: "length"})
    assert random_inputs(example, 3, seed=0, sizes={"length": 5})[0].shape == (3, 5)
    assert random_inputs(example, 3, seed=0)[0].shape == (3, 2)
