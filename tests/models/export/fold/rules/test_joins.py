"""Norms and calls that join tensors or read a part of one."""

import pytest
import torch
from torch import nn

from tests.models.export.fold.support import Net, assert_folds, assert_stays, conv, images, sequences


def test_norm_behind_a_concatenation_goes_into_every_branch():
    net = Net(
        lambda net, x: net.norm(torch.cat([net.a(x), net.b(x), net.c(x)], 1)),
        a=conv(4, 3),
        b=conv(4, 5, bias=False),
        c=conv(4, 1),
        norm=nn.BatchNorm2d(9),
    )
    assert_folds(net, images())


def test_norm_behind_a_concatenation_over_pixels_goes_into_every_branch_whole():
    net = Net(
        lambda net, x: net.norm(torch.cat([net.a(x), net.b(x)], 2)),
        a=conv(),
        b=conv(),
        norm=nn.BatchNorm2d(4),
    )
    assert_folds(net, images())


def test_norm_behind_a_concatenation_stays_when_one_branch_cannot_take_its_part():
    """DenseNet: one branch of the concatenation is read by the next layers too."""
    net = Net(
        lambda net, x: net.norm(torch.cat([net.a(x), net.b(x).relu()], 1)),
        a=conv(),
        b=conv(),
        norm=nn.BatchNorm2d(8),
    )
    folded = assert_stays(net, images(), "the norm shifts, which relu does not commute with")
    assert folded.calls("_native_batch_norm_legit_no_training") == 1


def test_norm_behind_a_tensor_joined_with_itself_stays():
    net = Net(lambda net, x: net.norm(torch.cat([y := net.a(x), y], 1)), a=conv(), norm=nn.BatchNorm2d(8))
    assert_stays(net, images(), "takes conv2d twice")


def test_constant_branch_of_a_concatenation_takes_its_part():
    net = Net(
        lambda net, x: net.norm(
            torch.cat([net.a(x), net.token.expand(x.shape[0], -1, -1)], 2).transpose(1, 2)
        ),
        a=nn.Linear(6, 3),
        token=nn.Parameter(torch.randn(1, 4, 2)),
        norm=nn.BatchNorm1d(5),
    )
    assert_folds(net, sequences())


def test_norm_behind_a_stack_goes_into_every_branch():
    net = Net(
        lambda net, x: net.norm(torch.stack([net.a(x), net.b(x)], 1)),
        a=conv(4, 1),
        b=conv(4, 1),
        norm=nn.BatchNorm3d(2),
    )
    assert_folds(net, images())


def test_norm_on_one_branch_passes_down_through_a_join():
    net = Net(
        lambda net, x: net.a(torch.cat([x.sigmoid(), net.norm(x.tanh())], 1)),
        a=conv(8),
        norm=nn.BatchNorm2d(4),
    )
    assert_folds(net, images())


PARTS = {
    "chunk": lambda y: y.chunk(2, 1),
    "split": lambda y: y.split(3, 1),
    "split with sizes": lambda y: y.split([3, 3], 1),
    "slices": lambda y: (y[:, :3], y[:, 3:]),
    "slices from the end": lambda y: (y[:, -6:-3], y[:, -3:]),
}


@pytest.mark.parametrize("case", PARTS)
def test_norm_on_one_half_goes_into_that_half_of_the_filters(case):
    def forward(net, x):
        one, other = PARTS[case](net.a(x))
        return net.norm(one), other.sigmoid()

    assert_folds(Net(forward, a=conv(4, 6), norm=nn.BatchNorm2d(3)), images())


def test_norms_on_both_halves_go_into_their_filters():
    def forward(net, x):
        one, other = net.a(x).chunk(2, 1)
        return net.first(one), net.second(other)

    assert_folds(
        Net(forward, a=conv(4, 6), first=nn.BatchNorm2d(3), second=nn.BatchNorm2d(3)), images(), found=2
    )


def test_norm_on_a_part_stays_when_another_part_overlaps_it():
    net = Net(lambda net, x: (net.norm((y := net.a(x))[:, :3]), y[:, 2:]), a=conv(), norm=nn.BatchNorm2d(3))
    assert_stays(net, images(), "is also read where")


def test_norm_on_a_part_stays_when_the_whole_is_read_too():
    net = Net(lambda net, x: (net.norm((y := net.a(x))[:, :3]), y.sum()), a=conv(), norm=nn.BatchNorm2d(3))
    assert_stays(net, images(), "conv2d is also read by")


def test_norm_passes_a_slice_on_another_axis():
    net = Net(lambda net, x: net.norm(net.a(x)[:, :, 1:3]), a=conv(), norm=nn.BatchNorm2d(4))
    assert_folds(net, images())


def test_norm_of_one_position_passes_the_selection():
    net = Net(lambda net, x: net.norm(net.a(x)[:, 0]), a=nn.Linear(6, 3), norm=nn.BatchNorm1d(3))
    assert_folds(net, sequences())


def test_norm_stays_behind_two_positions_of_one_layer():
    net = Net(
        lambda net, x: net.norm((y := net.a(x))[:, 0]) + y[:, 1], a=nn.Linear(6, 3), norm=nn.BatchNorm1d(3)
    )
    assert_stays(net, sequences(), "linear has its features on axis 2, the norm acts on axis 1, 2")


def test_norm_passes_down_through_splits_and_selections():
    def forward(net, x):
        one, other = net.norm(x.sigmoid()).chunk(2, 1)
        return net.a(one), net.b(other)

    assert_folds(Net(forward, norm=nn.BatchNorm2d(6), a=conv(3), b=conv(3)), images(6))
    net = Net(
        lambda net, x: net.a(net.norm(x.sigmoid()).transpose(1, 2)[:, 0]),
        norm=nn.BatchNorm1d(4),
        a=nn.Linear(4, 3),
    )
    assert_folds(net, sequences())
    net = Net(
        lambda net, x: net.a(torch.stack(net.norm(x.sigmoid()).unbind(2), 2)),
        norm=nn.BatchNorm1d(4),
        a=nn.Conv1d(4, 3, 2),
    )
    assert_folds(net, sequences())


def test_concatenation_of_rows_is_passed_only_when_every_operand_agrees():
    """The number of rows is dynamic: a map of some rows cannot be a constant."""
    one = Net(
        lambda net, x: net.a(torch.cat([net.norm(x.sigmoid()), x.tanh()], 0)),
        norm=nn.BatchNorm2d(4),
        a=conv(),
    )
    assert_stays(one, images(), "by dynamic sizes")
    up = Net(
        lambda net, x: net.norm(torch.cat([net.a(x), net.b(x)], 0)),
        a=conv(),
        b=conv(),
        norm=nn.BatchNorm2d(4),
    )
    assert_folds(up, images())
