"""Norms carried past operations that commute with them: pools, resampling, pads, activations; and where they do not."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models.export.fold.support import (
    Net,
    assert_folds,
    assert_stays,
    chain,
    conv,
    images,
    sequences,
    with_positive_scale,
    without_shift,
)
from tests.models.support import randomise_norms

AVERAGES = {
    "average pool": nn.AvgPool2d(2),
    "average pool, ceil mode": nn.AvgPool2d(3, 2, ceil_mode=True),
    "average pool, padding not counted": nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "adaptive average pool": nn.AdaptiveAvgPool2d(2),
    "global average pool": nn.AdaptiveAvgPool2d(1),
    "mean over pixels": Net(lambda net, x: x.mean((2, 3), keepdim=True)),
    "sum over pixels": Net(lambda net, x: x.sum((2, 3), keepdim=True)),
    "nearest": nn.Upsample(scale_factor=2),
    "nearest exact": nn.Upsample(size=(7, 5), mode="nearest-exact"),
    "bilinear": nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    "bicubic": nn.Upsample(size=(9, 5), mode="bicubic"),
    "antialiased": Net(lambda net, x: F.interpolate(x, (3, 3), mode="bilinear", antialias=True)),
    "reflecting pad": nn.ReflectionPad2d(1),
    "replicating pad": nn.ReplicationPad2d(2),
    "circular pad": nn.CircularPad2d(1),
    "crop": nn.ZeroPad2d(-1),
    "dropout": nn.Dropout2d(0.5),
    "clone": Net(lambda net, x: x.clone().contiguous()),
}


@pytest.mark.parametrize("case", AVERAGES)
def test_norm_passes_upwards(case):
    assert_folds(chain(conv(), AVERAGES[case], nn.BatchNorm2d(4)), images())


@pytest.mark.parametrize("case", AVERAGES)
def test_norm_passes_downwards(case):
    assert_folds(chain(nn.Sigmoid(), nn.BatchNorm2d(4), AVERAGES[case], conv(kernel=1)), images())


@pytest.mark.parametrize(
    ("made_by", "between", "norm", "example"),
    [
        (
            nn.Conv1d(4, 4, 3),
            chain(nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(2)),
            nn.BatchNorm1d(4),
            sequences(4, 9),
        ),
        (nn.Conv1d(4, 4, 3), nn.Upsample(scale_factor=2, mode="linear"), nn.BatchNorm1d(4), sequences()),
        (
            nn.Conv3d(2, 2, 2),
            chain(nn.AvgPool3d(2), nn.Upsample(scale_factor=2, mode="trilinear"), nn.AdaptiveAvgPool3d(1)),
            nn.BatchNorm3d(2),
            torch.zeros(2, 2, 5, 5, 5),
        ),
    ],
    ids=["pools 1d", "linear 1d", "3d"],
)
def test_norm_passes_in_one_and_three_dimensions(made_by, between, norm, example):
    assert_folds(chain(made_by, between, norm), example)


def test_norm_passes_a_mean_that_drops_its_axes():
    net = Net(lambda net, x: net.norm(net.conv(x).mean((2, 3))), conv=conv(), norm=nn.BatchNorm1d(4))
    assert_folds(net, images())


def test_norm_stays_behind_a_mean_over_its_axis():
    net = Net(
        lambda net, x: net.norm(net.conv(x).mean(1, keepdim=True).expand(-1, 4, -1, -1)),
        conv=conv(),
        norm=nn.BatchNorm2d(4),
    )
    assert_stays(net, images(), "expand repeats along the norm's axis")
    net = Net(
        lambda net, x: net.layer(net.norm(x.sigmoid()).mean(1)), norm=nn.BatchNorm1d(4), layer=nn.Linear(6, 3)
    )
    assert_stays(net, sequences(), "mean combines entries along the norm's axis")


@pytest.mark.parametrize(
    "pool",
    [nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(3, 1, divisor_override=5)],
    ids=["counts its padding", "other divisor"],
)
def test_only_a_scale_passes_a_pool_that_counts_zeros(pool):
    assert_stays(chain(conv(), pool, nn.BatchNorm2d(4)), images(), "avg_pool2d counts padded zeros")
    scale = without_shift(randomise_norms(nn.BatchNorm2d(4)))
    assert_folds(chain(conv(), pool, scale), images(), randomise=False)


MAXIMA = {
    "max pool": nn.MaxPool2d(2),
    "padded max pool": nn.MaxPool2d(3, 1, 1),
    "adaptive max pool": nn.AdaptiveMaxPool2d(2),
    "amax": Net(lambda net, x: x.amax((2, 3), keepdim=True)),
    "max over one axis": Net(lambda net, x: x.max(3, keepdim=True).values),
    "amin": Net(lambda net, x: x.amin(2, keepdim=True)),
}


@pytest.mark.parametrize("case", MAXIMA)
def test_norm_passes_a_maximum_when_no_scale_is_negative(case):
    norm = with_positive_scale(randomise_norms(nn.BatchNorm2d(4)))
    norm.weight.data[1] = 0.0
    assert_folds(chain(conv(), MAXIMA[case], norm), images(), randomise=False)


@pytest.mark.parametrize("case", MAXIMA)
def test_norm_stays_behind_a_maximum_when_one_scale_is_negative(case):
    assert_stays(chain(conv(), MAXIMA[case], nn.BatchNorm2d(4)), images(), "the norm has a negative scale")


def test_norm_stays_behind_a_maximum_whose_place_is_read():
    def forward(net, x):
        best, places = net.conv(x).max(3, keepdim=True)
        return net.norm(best), places

    norm = with_positive_scale(randomise_norms(nn.BatchNorm2d(4)))
    net = Net(forward, conv=conv(), norm=norm)
    assert_stays(net, images(), "returns are read too", randomise=False)


HOMOGENEOUS = {
    "relu": nn.ReLU(),
    "leaky relu": nn.LeakyReLU(0.2),
    "prelu": nn.PReLU(4, 0.1),
    "abs": Net(lambda net, x: x.abs()),
}


@pytest.mark.parametrize("case", HOMOGENEOUS)
def test_scale_that_is_not_negative_passes_a_homogeneous_activation(case):
    norm = with_positive_scale(without_shift(randomise_norms(nn.BatchNorm2d(4))))
    assert_folds(chain(conv(), HOMOGENEOUS[case], norm), images(), randomise=False)


@pytest.mark.parametrize("case", HOMOGENEOUS)
def test_shift_or_negative_scale_stays_behind_a_homogeneous_activation(case):
    shifting = with_positive_scale(randomise_norms(nn.BatchNorm2d(4)))
    assert_stays(chain(conv(), HOMOGENEOUS[case], shifting), images(), "the norm shifts", randomise=False)
    flipping = without_shift(randomise_norms(nn.BatchNorm2d(4)))
    module = chain(conv(), HOMOGENEOUS[case], flipping)
    assert_stays(module, images(), "the norm has a negative scale", randomise=False)


def _agreeing_norm(scale, shift):
    """A norm that computes scale * x + shift in every channel."""
    norm = nn.BatchNorm2d(4, eps=0.0)
    norm.weight.data.fill_(scale)
    norm.bias.data.fill_(shift)
    return norm


def test_scale_passes_a_zero_pad_and_a_shift_does_not():
    assert_stays(chain(conv(), nn.ZeroPad2d(1), nn.BatchNorm2d(4)), images(), "pad writes one value")
    scale = without_shift(randomise_norms(nn.BatchNorm2d(4)))
    assert_folds(chain(conv(), nn.ZeroPad2d(1), scale), images(), randomise=False)


def test_norm_whose_channels_agree_changes_the_value_that_a_pad_writes():
    module = chain(conv(), nn.ConstantPad2d(1, 3.0), _agreeing_norm(-2.0, 0.5))
    assert_folds(module, images(), randomise=False)
    module = chain(nn.Sigmoid(), _agreeing_norm(-2.0, 0.5), nn.ZeroPad2d(1), conv())
    assert_folds(module, images(), randomise=False)


def test_norm_stays_before_a_pad_when_its_scale_is_zero():
    module = chain(nn.Sigmoid(), _agreeing_norm(0.0, 0.5), nn.ZeroPad2d(1), conv())
    assert_stays(module, images(), "pad writes one value", randomise=False)


def test_norm_passes_a_pad_of_its_own_channels():
    """ResNet's option A shortcut pads channels with zeros: those take the map's own outer part."""
    norm = without_shift(randomise_norms(nn.BatchNorm2d(8)))
    module = chain(conv(), nn.ConstantPad3d((0, 0, 0, 0, 1, 3), 0.0), norm)
    assert_folds(module, images(), randomise=False)
    module = chain(nn.Sigmoid(), nn.BatchNorm2d(4), nn.ConstantPad3d((0, 0, 0, 0, 1, 3), 2.0), conv(8))
    assert_folds(module, images())


def test_norm_stays_behind_a_reflecting_pad_of_its_own_axis():
    net = Net(
        lambda net, x: net.norm(F.pad(net.layer(x), (1, 1), mode="reflect").transpose(1, 2)),
        layer=nn.Linear(4, 4),
        norm=nn.BatchNorm1d(6),
    )
    assert_stays(net, torch.zeros(2, 3, 4), "pad pads the norm's axis")


def test_norm_passes_sampling_on_a_grid_that_repeats_the_border():
    def forward(net, x):
        return net.norm(F.grid_sample(net.conv(x), net.grid.expand(x.shape[0], -1, -1, -1), **net.settings))

    grid = torch.rand(1, 3, 3, 2, dtype=torch.float64) * 3 - 1.5
    net = Net(forward, conv=conv(), norm=nn.BatchNorm2d(4), grid=nn.Buffer(grid))
    net.settings = {"padding_mode": "border", "align_corners": False}
    assert_folds(net, images())
    net = Net(forward, conv=conv(), norm=nn.BatchNorm2d(4), grid=nn.Buffer(grid))
    net.settings = {"padding_mode": "zeros", "align_corners": False}
    assert_stays(net, images(), "grid_sampler pads with zeros")


def test_conv_norm_pool_norm_needs_the_first_norm_out_of_the_way():
    module = chain(conv(), nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1))
    assert_folds(module, images(), found=2)


def test_norm_stays_behind_dropout_that_is_left_in_training():
    net = Net(
        lambda net, x: net.norm(F.dropout(net.conv(x), 0.5, training=True)),
        conv=conv(),
        norm=nn.BatchNorm2d(4),
    )
    from foldserve.models.export.fold import fold_batch_norms
    from tests.models.export.fold.support import capture

    graph = capture(net.double().eval(), images().double())
    assert len(fold_batch_norms(graph).left) == 1
