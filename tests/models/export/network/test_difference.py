import math

import pytest
import torch

from foldserve.models.export.network.difference import Difference, difference, scale_of


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


def by_column(got, want):
    """The relative difference with every axis but the rows looked at."""
    return difference(got, want, scale_of([want], range(1, want.dim()))).max_rel


def test_scores_beside_boxes_are_measured_by_their_own_size():
    want = torch.cat([torch.rand(20, 4) * 640, torch.rand(20, 3)], 1)
    got = want.clone()
    got[:, 5] += 0.1
    assert difference(got, want).max_rel < 2e-4
    assert by_column(got, want) == pytest.approx(0.1, rel=0.2)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_channels_are_measured_by_their_own_size_on_whichever_axis_they_are(axis):
    want = torch.rand(4, 6, 6, 6) + 0.5
    want.select(axis, 2).mul_(1e-2)
    got = want.clone()
    got.select(axis, 2).mul_(1.01)
    assert by_column(got, want) == pytest.approx(0.01, rel=0.01)


def test_a_column_that_is_a_little_smaller_has_the_size_of_its_like():
    want = torch.tensor([[1.0, 0.5, 0.06, 0.0]])
    assert by_column(want + 1e-3, want) == pytest.approx(
        1e-3, rel=1e-3
    )  # each at least a tenth of the next, or zero


def test_no_column_is_measured_by_less_than_its_neighbours_rounding_times_4096():
    want = torch.tensor([[4096.0, 1e-9], [3000.0, 0.0]])
    assert by_column(want + torch.tensor([0.0, 1e-3]), want) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("mask", [-1e4, -1e9, torch.finfo(torch.float32).min])
def test_logits_beside_a_mask_are_measured_without_it(mask):
    want = torch.randn(5, 6)
    want[:, 3:] += mask
    got = want.clone()
    got[:, 0] += 0.5
    assert difference(got, want).max_rel > 0.1
    got = want.clone()
    got[2, 4] *= 0.99  # the mask itself, relative to itself
    assert difference(got, want).max_rel == pytest.approx(0.01, rel=1e-3)


def test_the_size_of_a_column_is_that_over_all_batches():
    batches = [torch.tensor([[5.0, 1e-3]]), torch.tensor([[4.0, 3.0]])]
    scale = scale_of(batches, (1,))
    assert difference(batches[0] + 3e-3, batches[0], scale).max_rel == pytest.approx(6e-4)
