"""Norms folded into a sibling: a convolution of the same input that they are added to."""

import pytest
import torch
from torch import nn

from tests.models.export.fold.support import Net, assert_folds, assert_stays, conv, images, sequences, vectors

CONVOLUTIONS = {
    "3x3": conv(padding=1),
    "1x1": conv(kernel=1),
    "5x5 dilated": conv(kernel=5, padding=4, dilation=2),
    "same": conv(padding="same"),
    "groups": conv(padding=1, groups=2),
    "depthwise without bias": conv(padding=1, groups=4, bias=False),
    "uneven kernel": nn.Conv2d(4, 4, (1, 3), padding=(0, 1)),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_norm_added_to_a_convolution_of_its_input_becomes_its_middle_tap(case):
    net = Net(lambda net, x: net.a(x) + net.norm(x), a=CONVOLUTIONS[case], norm=nn.BatchNorm2d(4))
    folded = assert_folds(net, images())
    assert folded.calls("add") == 0


SUMS = {
    "norm first": lambda net, x: net.norm(x) + net.a(x),
    "norm in the middle": lambda net, x: (net.b(x) + net.norm(x)) + net.a(x),
    "norm in another part of the sum": lambda net, x: net.norm(x) + (x.sigmoid() + (net.b(x) + net.a(x))),
    "subtracted": lambda net, x: net.a(x) - net.norm(x),
    "subtracted from": lambda net, x: net.norm(x) - net.a(x),
    "with a factor": lambda net, x: torch.add(net.a(x), net.norm(x), alpha=3),
    "scaled and shifted": lambda net, x: net.a(x) - (net.norm(x) * 2 - 1) / 3,
    "a sum that starts at 0": lambda net, x: 0 + net.norm(x) + net.a(x),
}


@pytest.mark.parametrize("case", SUMS)
def test_norm_anywhere_in_a_sum_folds_into_a_convolution_of_the_same_sum(case):
    net = Net(SUMS[case], a=conv(padding=1), b=conv(kernel=1, stride=1), norm=nn.BatchNorm2d(4))
    assert_folds(net, images())


def test_norm_added_to_a_square_linear_layer_becomes_its_diagonal():
    net = Net(lambda net, x: net.a(x) + net.norm(x), a=nn.Linear(4, 4), norm=nn.BatchNorm1d(4))
    assert_folds(net, vectors())


def test_norm_added_to_a_convolution_in_one_dimension():
    net = Net(lambda net, x: net.a(x) + net.norm(x), a=nn.Conv1d(4, 4, 3, padding=1), norm=nn.BatchNorm1d(4))
    assert_folds(net, sequences())


def test_frozen_norm_added_to_a_convolution_is_folded_too():
    net = Net(
        lambda net, x: net.a(x) + (x * net.w + net.b),
        a=conv(padding=1),
        w=nn.Parameter(torch.randn(4, 1, 1)),
        b=nn.Parameter(torch.randn(4, 1, 1)),
    )
    folded = assert_folds(net, images(), found=0)
    assert folded.calls("add") == folded.calls("mul") == 0


REFUSED = {
    "of something else": (
        lambda net, x: net.a(x.relu()) + net.norm(x),
        conv(padding=1),
        "is not a convolution of the",
    ),
    "read elsewhere": (lambda net, x: (y := net.a(x)) + net.norm(x) + y.tanh(), conv(padding=1), "beside it"),
    "without a middle": (
        lambda net, x: net.a(x)[:, :, 1:, 1:] + net.norm(x),
        conv(kernel=2, padding=1),
        "is not a convolution",
    ),
    "off centre": (
        lambda net, x: net.a(nn.functional.pad(x, (1, 1, 1, 1))) + net.norm(x),
        conv(),
        "is not a convolution of the norm's input",
    ),
    "with a stride": (
        lambda net, x: net.a(x) + net.norm(x).mean((2, 3), keepdim=True),
        conv(stride=2, padding=1),
        "adds another tensor",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_norm_stays_beside_a_convolution(case):
    forward, made_by, reason = REFUSED[case]
    assert_stays(Net(forward, a=made_by, norm=nn.BatchNorm2d(4)), images(), reason)


def test_norm_stays_beside_a_convolution_that_changes_the_number_of_channels():
    net = Net(lambda net, x: net.a(x) + net.norm(x), a=conv(1, 4, padding=1), norm=nn.BatchNorm2d(1))
    assert_stays(net, images(1))


def test_norm_stays_beside_a_kernel_of_even_size():
    net = Net(
        lambda net, x: net.a(x) + net.norm(x), a=conv(kernel=2, padding=1, dilation=2), norm=nn.BatchNorm2d(4)
    )
    assert_stays(net, images(), "the kernel of conv2d has no middle")


def test_norm_whose_output_is_read_twice_stays():
    net = Net(
        lambda net, x: net.a(x) + (y := net.norm(x)) + y.tanh(), a=conv(padding=1), norm=nn.BatchNorm2d(4)
    )
    assert_stays(net, images())


def test_norm_alone_with_a_residual_says_why_it_stays():
    net = Net(lambda net, x: x.sigmoid() + net.norm(x), norm=nn.BatchNorm2d(4))
    assert_stays(net, images(), "beside it, sigmoid is not a convolution")
