"""Norms carried past views, permutations and shuffles, and the arithmetic of views against brute force."""

import itertools

import pytest
import torch
from torch import nn

from foldserve.models.export.fold import fold_batch_norms
from foldserve.models.export.fold.affine import Affine
from foldserve.models.export.fold.plan import NotFoldable
from foldserve.models.export.fold.rules.views import through_view
from tests.models.export.fold.support import (
    TOLERANCE,
    Net,
    assert_folds,
    assert_stays,
    capture,
    chain,
    conv,
    difference,
    images,
    sequences,
    vectors,
)
from tests.models.support import randomise_norms


def _shuffle_by_hand(net, x):
    rows, channels, height, width = x.shape
    return (
        x.view(rows, 2, channels // 2, height, width)
        .transpose(1, 2)
        .contiguous()
        .view(rows, -1, height, width)
    )


MOVES = {
    "channel shuffle": (conv(), nn.ChannelShuffle(2), nn.BatchNorm2d(4), images()),
    "channel shuffle by hand": (conv(4, 6), Net(_shuffle_by_hand), nn.BatchNorm2d(6), images()),
    "pixel shuffle": (conv(4, 16), nn.PixelShuffle(2), nn.BatchNorm2d(4), images()),
    "flatten of one pixel": (conv(4, 6, 6), nn.Flatten(), nn.BatchNorm1d(6), images()),
    "rows and tokens merged (LeViT)": (
        nn.Linear(4, 6),
        Net(lambda net, x: x.flatten(0, 1)),
        nn.BatchNorm1d(6),
        torch.zeros(2, 3, 4),
    ),
    "transpose": (
        nn.Linear(4, 6),
        Net(lambda net, x: x.transpose(1, 2)),
        nn.BatchNorm1d(6),
        torch.zeros(2, 3, 4),
    ),
    "permute": (
        nn.Linear(4, 6),
        Net(lambda net, x: x.permute(0, 3, 1, 2)),
        nn.BatchNorm2d(6),
        torch.zeros(2, 3, 3, 4),
    ),
    "features into an image": (nn.Linear(4, 24), nn.Unflatten(1, (6, 2, 2)), nn.BatchNorm2d(6), vectors()),
    "squeeze": (conv(4, 6, 6), Net(lambda net, x: x.squeeze(3).squeeze(2)), nn.BatchNorm1d(6), images()),
    "unsqueeze": (nn.Linear(4, 6), Net(lambda net, x: x[:, :, None]), nn.BatchNorm1d(6), vectors()),
    "flip of the channels": (conv(), Net(lambda net, x: x.flip(1)), nn.BatchNorm2d(4), images()),
    "roll of the channels": (conv(), Net(lambda net, x: x.roll(1, 1)), nn.BatchNorm2d(4), images()),
    "roll of a dim that is named twice": (
        conv(),
        Net(lambda net, x: x.roll((1, 2, 2), (1, -3, 3))),
        nn.BatchNorm2d(4),
        images(),
    ),
    "roll of the pixels": (conv(), Net(lambda net, x: x.roll((1, 2), (2, 3))), nn.BatchNorm2d(4), images()),
    "expand over pixels": (
        conv(4, 6, 6),
        Net(lambda net, x: x.expand(-1, -1, 3, 3)),
        nn.BatchNorm2d(6),
        images(),
    ),
    "repeat over pixels": (conv(), Net(lambda net, x: x.repeat(1, 1, 2, 1)), nn.BatchNorm2d(4), images()),
    "channels picked by a constant index": (
        conv(),
        Net(lambda net, x: x.index_select(1, net.order), order=nn.Buffer(torch.tensor([2, 0, 3, 1]))),
        nn.BatchNorm2d(4),
        images(),
    ),
}


@pytest.mark.parametrize("case", MOVES)
def test_norm_passes_upwards(case):
    made_by, move, norm, example = MOVES[case]
    assert_folds(chain(made_by, move, norm), example)


DOWN_MOVES = {
    "flatten of an image": (nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5), images()),
    "channel shuffle": (nn.BatchNorm2d(4), nn.ChannelShuffle(2), conv(), images()),
    "pixel unshuffle": (nn.BatchNorm2d(4), nn.PixelUnshuffle(2), conv(16), images()),
    "transpose": (nn.BatchNorm1d(4), Net(lambda net, x: x.transpose(1, 2)), nn.Linear(4, 3), sequences()),
    "repeat of the channels": (
        nn.BatchNorm2d(4),
        Net(lambda net, x: x.repeat(1, 2, 1, 1)),
        conv(8),
        images(),
    ),
    "flip": (nn.BatchNorm2d(4), Net(lambda net, x: x.flip(1, 2)), conv(), images()),
}


@pytest.mark.parametrize("case", DOWN_MOVES)
def test_norm_passes_downwards(case):
    norm, move, reader, example = DOWN_MOVES[case]
    assert_folds(chain(nn.Sigmoid(), norm, move, reader), example)


def test_norm_over_flattened_pixels_stays_behind_a_convolution():
    module = chain(conv(4, 2), nn.Flatten(), nn.BatchNorm1d(2 * 16))
    assert_stays(module, images(), "conv2d has its features on axis 1, the norm acts on axis 1, 2, 3")


def test_norm_over_shuffled_pixels_stays():
    assert_stays(chain(conv(), nn.PixelUnshuffle(2), nn.BatchNorm2d(16)), images(size=8), "pixel_unshuffle")
    assert_stays(
        chain(nn.Sigmoid(), nn.BatchNorm2d(4), nn.PixelShuffle(2), conv(1)), images(), "pixel_shuffle"
    )


def test_channels_repeated_for_a_norm_that_treats_them_differently_stay():
    net = Net(
        lambda net, x: net.norm(net.conv(x).index_select(1, net.order)),
        conv=conv(),
        norm=nn.BatchNorm2d(3),
        order=nn.Buffer(torch.tensor([0, 0, 1])),
    )
    assert_stays(net, images(), "repeats channels that the norm treats differently")


def test_view_that_mixes_rows_into_the_channels_keeps_the_norm():
    """(rows, 6) read as (3 * rows, 2): with two rows a wrong map could look right."""
    net = Net(
        lambda net, x: net.norm(net.layer(x).view(-1, 2)), layer=nn.Linear(4, 6), norm=nn.BatchNorm1d(2)
    )
    assert_folds(net, vectors())  # 6 features are 3 runs of 2: the map repeats along the layer's features
    net = Net(
        lambda net, x: net.norm(net.layer(x).transpose(0, 1).reshape(3, 2, -1)),
        layer=nn.Linear(4, 6),
        norm=nn.BatchNorm1d(2),
    )
    assert_folds(net, vectors())


DYNAMIC = {
    "tokens merged with rows": (
        nn.Linear(4, 6),
        Net(lambda net, x: x.flatten(0, 1)),
        nn.BatchNorm1d(6),
        torch.zeros(2, 6, 4),
        (1,),
        (),
    ),
    "heads of a linear layer": (
        nn.Linear(4, 6),
        Net(lambda net, x: x.reshape(-1, 3)),
        nn.BatchNorm1d(3),
        torch.zeros(2, 6, 4),
        (1,),
        (),
    ),
    "shuffle by hand of a picture of any size": (
        conv(4, 6, 1),
        Net(_shuffle_by_hand),
        nn.BatchNorm2d(6),
        images(),
        (2, 3),
        (),
    ),
    "tokens of a picture of any size": (
        conv(4, 6, 1),
        Net(lambda net, x: x.flatten(2).transpose(1, 2).reshape(-1, 6)),
        nn.BatchNorm1d(6),
        images(),
        (2, 3),
        (),
    ),
    "norm over a dynamic axis's neighbour": (
        nn.Linear(6, 6),
        Net(lambda net, x: x),
        nn.BatchNorm1d(6),
        torch.zeros(2, 6, 6),
        (),
        ("linear has its features on axis 2",),
    ),
}


@pytest.mark.parametrize("case", DYNAMIC)
def test_views_of_dynamic_axes_are_followed_by_their_symbols(case):
    """All sizes of the example are equal somewhere; only the symbols tell the axes apart."""
    made_by, move, norm, example, others, reasons = DYNAMIC[case]
    module = randomise_norms(chain(made_by, move, norm)).double().eval()
    graph = capture(module, example.double(), others=others)
    report = fold_batch_norms(graph)
    told = " | ".join(item.reason for item in report.left)
    assert len(report.left) == len(reasons)
    assert all(reason in told for reason in reasons)
    with torch.no_grad():
        for seed, sizes in enumerate([(1, 4), (3, 5), (6, 7)]):
            shape = list(example.shape)
            shape[0] = sizes[0]
            for axis in others:
                shape[axis] = sizes[1]
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(shape, generator=generator, dtype=torch.float64)
            assert difference(module(x), graph(x)) <= TOLERANCE


@pytest.mark.parametrize("rows", [2, 3])
def test_through_view_agrees_with_brute_force_on_every_small_factorisation(rows):
    """Each entry of an arange keeps its map under every pair of shapes with the same number of entries."""
    shapes = [
        (rows, 4, 3),
        (rows, 12),
        (rows * 4, 3),
        (rows, 2, 2, 3),
        (rows, 2, 6),
        (1, rows, 4, 3, 1),
        (rows * 12,),
    ]
    for old, new in itertools.permutations(shapes, 2):
        for axis in range(1, len(old)):
            values = torch.arange(old[axis], dtype=torch.float64) + 2
            scale = values.reshape([-1 if i == axis else 1 for i in range(len(old))])
            affine = Affine.of(scale, -scale)
            moved = through_view(affine, old, new)
            assert torch.equal(moved.scale.expand(new), affine.scale.expand(old).reshape(new))
            assert torch.equal(moved.shift.expand(new), affine.shift.expand(old).reshape(new))


def test_through_view_refuses_to_mix_a_dynamic_axis_with_the_norms():
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    env = ShapeEnv()
    rows = env.create_unbacked_symint()
    channels = Affine.of(torch.arange(1.0, 5.0).reshape(1, 4), torch.zeros(1, 4))
    assert through_view(channels, (rows, 4), (rows, 2, 2)).axes == (1, 2)
    assert through_view(channels, (rows, 4), (1, rows, 4)).axes == (2,)
    with pytest.raises(NotFoldable, match="dynamic size"):
        through_view(channels, (rows, 4), (rows * 4,))
    last = Affine.of(torch.arange(1.0, 4.0).reshape(1, 1, 3), torch.zeros(1, 1, 3))
    assert through_view(last, (rows, 5, 3), (rows * 5, 3)).axes == (1,)
