"""Norms and additions, subtractions, multiplications and divisions."""

import pytest
import torch
from torch import nn

from tests.models.export.fold.support import (
    Net,
    assert_folds,
    assert_stays,
    chain,
    conv,
    images,
    sequences,
    vectors,
    without_shift,
)
from tests.models.support import randomise_norms

CONSTANTS = {
    "plus a number": lambda net, y: y + 3,
    "minus a number": lambda net, y: y - 3,
    "a number minus": lambda net, y: 3 - y,
    "minus, with a factor": lambda net, y: torch.sub(y, net.k, alpha=2),
    "times a number": lambda net, y: y * -3,
    "by a number": lambda net, y: y / 3,
    "negated": lambda net, y: -y,
    "times zero": lambda net, y: y * 0,
    "plus a vector": lambda net, y: y + net.k,
    "a vector plus, with a factor": lambda net, y: torch.add(net.k, y, alpha=2),
    "times a vector": lambda net, y: net.k * y,
    "by a vector": lambda net, y: y / net.k,
}


@pytest.mark.parametrize("case", CONSTANTS)
def test_norm_passes_a_constant_upwards(case):
    net = Net(
        lambda net, x: net.norm(CONSTANTS[case](net, net.a(x))),
        a=conv(),
        norm=nn.BatchNorm2d(4),
        k=nn.Parameter(torch.rand(4, 1, 1) + 0.5),
    )
    folded = assert_folds(net, images())
    assert [name for name in ("add", "sub", "rsub", "mul", "div", "neg") if folded.calls(name)] == []


@pytest.mark.parametrize("case", CONSTANTS)
def test_norm_passes_a_constant_downwards(case):
    net = Net(
        lambda net, x: net.a(CONSTANTS[case](net, net.norm(x.sigmoid()))),
        a=conv(),
        norm=nn.BatchNorm2d(4),
        k=nn.Parameter(torch.rand(4, 1, 1) + 0.5),
    )
    assert_folds(net, images())


def test_addition_of_a_constant_map_of_pixels_takes_the_shift_and_passes_the_scale():
    net = Net(
        lambda net, x: net.norm(net.a(x) + net.k),
        a=conv(),
        norm=nn.BatchNorm2d(4),
        k=nn.Parameter(torch.randn(4, 4)),
    )
    folded = assert_folds(net, images())
    assert folded.calls("add") == 1


def test_product_with_a_constant_map_of_pixels_is_passed_only_without_a_shift():
    def net(norm):
        return Net(
            lambda net, x: net.norm(net.a(x) * net.k), a=conv(), norm=norm, k=nn.Parameter(torch.randn(4, 4))
        )

    assert_stays(net(nn.BatchNorm2d(4)), images())
    scale = without_shift(randomise_norms(nn.BatchNorm2d(4)))
    assert_folds(net(scale), images(), randomise=False)


def test_multiplication_behind_an_activation_takes_a_scale():
    scale = without_shift(randomise_norms(nn.BatchNorm2d(4)))
    net = Net(lambda net, x: net.norm(x.sigmoid() * net.k), norm=scale, k=nn.Parameter(torch.randn(4, 1, 1)))
    assert_folds(net, images(), randomise=False)


def test_addition_behind_a_relu_takes_the_shift_when_the_scale_can_pass():
    """a * (relu(x) + k) + c = relu(a * x) + (a * k + c)."""
    norm = randomise_norms(nn.BatchNorm2d(4))
    norm.weight.data.abs_()
    net = Net(
        lambda net, x: net.norm(net.a(x).relu() + net.k),
        a=conv(),
        norm=norm,
        k=nn.Parameter(torch.randn(4, 1, 1)),
    )
    folded = assert_folds(net, images(), randomise=False)
    assert folded.calls("relu") == 1


SUMS = {
    "sum": lambda net, x: net.a(x) + net.b(x),
    "difference": lambda net, x: net.a(x) - net.b(x),
    "sum with a factor": lambda net, x: torch.add(net.a(x), net.b(x), alpha=-2),
    "sum of three": lambda net, x: net.a(x) + (net.b(x) - net.c(x)),
    "sum with a pooled branch": lambda net, x: net.a(x) + net.b(x).mean((2, 3), keepdim=True),
}


@pytest.mark.parametrize("case", SUMS)
def test_norm_of_a_sum_scales_both_branches_and_shifts_one(case):
    net = Net(
        lambda net, x: net.norm(SUMS[case](net, x)),
        a=conv(),
        b=conv(bias=False),
        c=conv(),
        norm=nn.BatchNorm2d(4),
    )
    assert_folds(net, images())


def test_shift_of_a_sum_goes_into_the_branch_that_can_take_it():
    """The left branch ends in a relu, which only a scale passes."""
    norm = randomise_norms(nn.BatchNorm2d(4))
    norm.weight.data.abs_()
    net = Net(lambda net, x: net.norm(net.a(x).relu() + net.b(x)), a=conv(), b=conv(), norm=norm)
    assert_folds(net, images(), randomise=False)


def test_norm_of_a_sum_stays_when_one_branch_is_the_input():
    net = Net(lambda net, x: net.norm(net.a(x) + x), a=conv(padding=1), norm=nn.BatchNorm2d(4))
    assert_stays(net, images(), "the network's input")


def test_norm_of_a_sum_stays_when_a_branch_is_broadcast_along_its_axis():
    net = Net(lambda net, x: net.norm(net.a(x) + net.b(x)), a=conv(), b=conv(4, 1), norm=nn.BatchNorm2d(4))
    assert_stays(net, images(), "is broadcast along the norm's axis")


def test_norm_of_a_tensor_added_to_itself_stays():
    net = Net(lambda net, x: net.norm((y := net.a(x)) + y), a=conv(), norm=nn.BatchNorm2d(4))
    assert_stays(net, images())


def test_only_a_scale_passes_a_product_of_two_tensors():
    def net(norm):
        return Net(lambda net, x: net.norm(net.a(x).sigmoid() * net.b(x)), a=conv(), b=conv(), norm=norm)

    assert_stays(net(nn.BatchNorm2d(4)), images(), "of two tensors does not commute with")
    scale = without_shift(randomise_norms(nn.BatchNorm2d(4)))
    assert_folds(net(scale), images(), randomise=False)


def test_norm_stays_before_an_addition_of_another_tensor():
    net = Net(lambda net, x: net.a(net.norm(x.sigmoid()) + x), a=conv(), norm=nn.BatchNorm2d(4))
    assert_stays(net, images(), "adds another tensor to it")


def test_shift_alone_passes_an_addition_downwards():
    norm = nn.BatchNorm2d(4, eps=0.0)
    norm.bias.data.normal_()
    net = Net(lambda net, x: net.a(net.norm(x.sigmoid()) - x.tanh()), a=conv(), norm=norm)
    assert_folds(net, images(), randomise=False)


def test_frozen_norm_and_layer_scale_are_folded_and_not_counted():
    def frozen(net, x):
        scale = net.weight * (net.var + 1e-5).rsqrt()
        shift = net.bias - net.mean * scale
        return net.a(x) * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)

    buffers = {name: nn.Buffer(torch.rand(4) + 0.5) for name in ("weight", "bias", "mean", "var")}
    folded = assert_folds(Net(frozen, a=conv(), **buffers), images(), found=0)
    assert folded.calls("mul") == folded.calls("add") == 0
    layer_scale = Net(
        lambda net, x: x + net.a(x) * net.gamma, a=nn.Linear(4, 4), gamma=nn.Parameter(torch.randn(4))
    )
    folded = assert_folds(layer_scale, vectors(), found=0)
    assert folded.calls("mul") == 0


def test_scalar_factors_and_position_tables_are_left_alone():
    net = Net(
        lambda net, x: torch.softmax(net.a(x) * 0.5 + net.positions, -1),
        a=nn.Linear(6, 3),
        positions=nn.Parameter(torch.randn(4, 3)),
    )
    folded = assert_folds(net, sequences(), found=0)
    assert folded.calls("mul") == folded.calls("add") == 1


def test_constant_map_does_not_store_a_tied_table_twice():
    net = Net(
        lambda net, x: (net.table(x) * net.gamma) @ net.table.weight.t(),
        table=nn.Embedding(10, 6),
        gamma=nn.Parameter(torch.randn(6)),
    )
    folded = assert_folds(net, torch.zeros(2, 5, dtype=torch.long), found=0)
    assert folded.calls("mul") == 1


def test_constant_with_an_infinite_entry_keeps_the_norm():
    net = Net(
        lambda net, x: net.norm(net.a(x) + net.mask),
        a=nn.Linear(4, 4),
        norm=nn.BatchNorm1d(4),
        mask=nn.Buffer(torch.tensor([0.0, 0.0, float("-inf"), 0.0])),
    )
    net.double().eval()
    from foldserve.models.export.fold import fold_batch_norms
    from tests.models.export.fold.support import capture

    assert len(fold_batch_norms(capture(net, vectors().double())).left) == 1


def test_norms_on_both_sides_of_a_chain_of_constants_fold():
    net = chain(conv(), nn.BatchNorm2d(4), Net(lambda net, x: 2 - x / 3), nn.BatchNorm2d(4), nn.AvgPool2d(2))
    assert_folds(net, images(), found=2)
