import math

import pytest
import torch

from models.export.difference import Difference, difference


def test_floats_are_measured_against_the_largest_wanted_value():
    assert difference(torch.tensor([1.0, 3.5]), torch.tensor([1.0, 4.0])) == Difference(0.5, 0.125)


def test_wanted_zeros_are_measured_absolutely():
    assert difference(
        torch.tensor([0.0, 1e-3], dtype=torch.float64), torch.zeros(2)
    ).max_rel == pytest.approx(1e-3)


def test_integers_and_booleans_are_measured_by_the_share_that_differs():
    assert difference(torch.tensor([1, 2, 3, 9]), torch.tensor([1, 2, 3, 4])) == Difference(5.0, 0.25)
    assert difference(torch.tensor([True, False]), torch.tensor([True, True])) == Difference(1.0, 0.5)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_must_be_the_same_at_the_same_places(odd):
    want = torch.tensor([1.0, odd])
    assert difference(torch.tensor([1.0, odd]), want) == Difference(0.0, 0.0)
    assert difference(torch.tensor([odd, 1.0]), want).max_rel == math.inf
    assert difference(torch.tensor([1.0, 2.0]), want).max_rel == math.inf
    assert difference(want, torch.tensor([1.0, 2.0])).max_rel == math.inf


def test_infinities_of_other_sign_are_infinitely_apart():
    assert difference(torch.tensor([math.inf]), torch.tensor([-math.inf])).max_rel == math.inf


def test_another_shape_or_kind_is_infinitely_apart():
    assert difference(torch.zeros(2), torch.zeros(3)).max_rel == math.inf
    assert difference(torch.zeros(2), torch.zeros(2, dtype=torch.int64)).max_rel == math.inf
