"""Norms folded into their consumers, the calls that read their output."""

import pytest
import torch
from torch import nn

from tests.models.export.fold.support import (
    TOLERANCE,
    Net,
    assert_folds,
    assert_stays,
    chain,
    conv,
    fold,
    images,
    sequences,
    vectors,
    without_shift,
)
from tests.models.support import randomise_norms

# A sigmoid in front keeps the norm from going into its producer.
READERS = {
    "conv1d": (nn.BatchNorm1d(4), nn.Conv1d(4, 6, 3), sequences()),
    "conv2d": (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), images()),
    "conv2d-without-bias": (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, bias=False), images()),
    "conv2d-groups-stride": (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, stride=2, groups=2), images()),
    "conv2d-depthwise": (nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, groups=4), images()),
    "conv2d-pointwise-same": (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1, padding="same"), images()),
    "conv2d-reflect": (nn.BatchNorm2d(4), conv(padding=1, padding_mode="reflect"), images()),
    "conv2d-replicate": (nn.BatchNorm2d(4), conv(padding=1, padding_mode="replicate"), images()),
    "conv2d-circular": (nn.BatchNorm2d(4), conv(padding=1, padding_mode="circular"), images()),
    "conv3d": (nn.BatchNorm3d(2), nn.Conv3d(2, 3, 2), torch.zeros(2, 2, 3, 3, 3)),
    "conv_transpose2d-pointwise": (nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 1, groups=2), images()),
    "linear": (nn.BatchNorm1d(4), nn.Linear(4, 6), vectors()),
    "linear-without-bias": (nn.BatchNorm1d(4), nn.Linear(4, 6, bias=False), vectors()),
}


@pytest.mark.parametrize("case", READERS)
def test_norm_folds_into_the_layer_behind_it(case):
    norm, reader, example = READERS[case]
    assert_folds(chain(nn.Sigmoid(), norm, reader), example)


def test_norm_with_a_shift_stays_before_a_convolution_that_pads_with_zeros():
    """Border outputs see fewer taps, so the shift would have to differ there (a mistake of hand-written tools)."""
    module = chain(nn.Sigmoid(), nn.BatchNorm2d(4), conv(padding=1))
    assert_stays(module, images(), "the norm shifts, and conv2d pads with zeros after it")


@pytest.mark.parametrize(
    "reader",
    [conv(padding=1), conv(padding="same"), nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)],
    ids=["zero padding", "same padding", "transposed"],
)
def test_scale_folds_into_a_convolution_whose_outputs_see_different_taps(reader):
    norm = without_shift(randomise_norms(nn.BatchNorm2d(4)))
    assert_folds(chain(nn.Sigmoid(), norm, reader), images(), randomise=False)


@pytest.mark.parametrize(
    "reader",
    [
        nn.ConvTranspose2d(4, 6, 3),
        nn.ConvTranspose2d(4, 6, 1, stride=2),
        nn.ConvTranspose2d(4, 6, 1, padding=1),
    ],
    ids=["kernel 3", "stride 2", "padding 1"],
)
def test_norm_with_a_shift_stays_before_a_transposed_convolution_with_uneven_taps(reader):
    assert_stays(chain(nn.Sigmoid(), nn.BatchNorm2d(4), reader), images(), "not every output of")


def test_norm_on_axis_one_stays_before_a_linear_layer_on_axis_two():
    module = chain(nn.Sigmoid(), nn.BatchNorm1d(6), nn.Linear(6, 6))
    assert_stays(module, sequences(6, 6), "linear has its features on axis 2, the norm acts on axis 1")


def test_norm_stays_before_a_linear_layer_whose_weight_is_a_vector():
    net = Net(
        lambda net, x: nn.functional.linear(net.norm(x), net.weight)[:, None],
        norm=nn.BatchNorm1d(6),
        weight=nn.Parameter(torch.randn(6)),
    )
    assert_stays(net, vectors(6), "is not a matrix")


def test_norm_folds_into_a_product_with_a_constant_matrix():
    for forward in (
        lambda net, x: net.norm(x.sigmoid()) @ net.matrix,
        lambda net, x: torch.addmm(net.bias, net.norm(x.sigmoid()), net.matrix),
    ):
        matrix, bias = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(5))
        assert_folds(Net(forward, norm=nn.BatchNorm1d(4), matrix=matrix, bias=bias), vectors())


def test_norm_stays_before_a_product_with_another_tensor():
    net = Net(lambda net, x: net.norm(x.sigmoid()) @ x.transpose(1, 2), norm=nn.BatchNorm1d(4))
    assert_stays(net, sequences(), "the right operand of matmul is not a constant matrix")


def test_norm_folds_into_every_reader_or_none():
    both = Net(
        lambda net, x: (net.a(y := net.norm(x.sigmoid())), net.b(y)),
        norm=nn.BatchNorm2d(4),
        a=conv(),
        b=conv(),
    )
    folded = assert_folds(both, images())
    assert folded.calls("conv2d") == 2
    one = Net(lambda net, x: (net.a(y := net.norm(x.sigmoid())), y.tanh()), norm=nn.BatchNorm2d(4), a=conv())
    assert_stays(one, images(), "tanh reads it")


def test_norm_that_is_also_an_output_stays():
    net = Net(lambda net, x: (net.a(y := net.norm(x.sigmoid())), y), norm=nn.BatchNorm2d(4), a=conv())
    assert_stays(net, images(), "it is an output of the network")


def test_norm_folds_into_both_norms_that_read_it():
    net = Net(
        lambda net, x: (net.b(y := net.a(x.sigmoid())).tanh(), net.c(y).tanh()),
        a=nn.BatchNorm2d(4),
        b=nn.BatchNorm2d(4),
        c=nn.BatchNorm2d(4, affine=False),
    )
    folded = assert_stays(net, images(), found=3, left=2)
    assert [item.where for item in folded.report.left] == ["b", "c"]


def test_branches_that_meet_again_bring_their_maps_together():
    def forward(net, x):
        y = net.norm(x.sigmoid())
        pooled = nn.functional.avg_pool2d(y, 3, 1, 1, count_include_pad=False)
        return net.a(torch.cat([y, pooled], 1)) + net.b(y + pooled)

    assert_folds(Net(forward, norm=nn.BatchNorm2d(4), a=conv(8), b=conv()), images())


def test_norm_stays_before_a_convolution_that_takes_it_as_its_kernel():
    net = Net(
        lambda net, x: nn.functional.conv2d(net.image, net.norm(x.sigmoid())),
        norm=nn.BatchNorm2d(4),
        image=nn.Parameter(torch.randn(1, 4, 8, 8)),
    )
    assert_stays(net, images(), "takes it as something else than its input")


# torch.export notes that a recurrent layer assigns its list of weights when it is called.
_FLAT_WEIGHTS = pytest.mark.filterwarnings(
    "ignore:The tensor attributes self.layer._flat_weights:UserWarning"
)
RECURRENT = {
    "lstm": nn.LSTM(4, 3, batch_first=True),
    "lstm, two layers, both directions": nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True),
    "lstm with a projection": nn.LSTM(4, 5, proj_size=2, batch_first=True, bidirectional=True),
    "gru": nn.GRU(4, 3, batch_first=True),
    "rnn": nn.RNN(4, 3, batch_first=True),
    "rnn of relus": nn.RNN(4, 3, nonlinearity="relu", batch_first=True),
}


@_FLAT_WEIGHTS
@pytest.mark.parametrize("case", RECURRENT)
def test_norm_folds_into_the_recurrent_layer_behind_it(case):
    net = Net(
        lambda net, x: net.layer(net.norm(x.sigmoid().flatten(0, 1)).reshape(x.shape))[0],
        norm=nn.BatchNorm1d(4),
        layer=RECURRENT[case],
    )
    assert_folds(net, torch.zeros(2, 5, 4))


@_FLAT_WEIGHTS
def test_only_a_scale_folds_into_a_recurrent_layer_without_biases():
    def net(norm):
        return Net(
            lambda net, x: net.layer(net.norm(x.sigmoid()).transpose(1, 2))[0],
            norm=norm,
            layer=nn.GRU(4, 3, bias=False, batch_first=True),
        )

    assert_stays(net(nn.BatchNorm1d(4)), sequences(), "has no bias to take the norm's shift")
    assert_folds(net(without_shift(randomise_norms(nn.BatchNorm1d(4)))), sequences(), randomise=False)


@_FLAT_WEIGHTS
def test_norm_stays_before_a_recurrent_layer_that_takes_it_as_its_state():
    net = Net(
        lambda net, x: net.layer(x, net.norm(x.sum(1)).sigmoid()[None] * 0 + net.norm(x.sum(1))[None])[0],
        norm=nn.BatchNorm1d(4),
        layer=nn.GRU(4, 4, batch_first=True),
    )
    folded = fold(net, torch.zeros(2, 5, 4))
    assert folded.error <= TOLERANCE
    assert folded.report.folded == 0


def test_layers_behind_a_norm_keep_their_weights_for_their_other_callers():
    """The folded weight is a new constant: the same layer is called once with and once without the norm."""
    net = Net(
        lambda net, x: net.layer(net.norm(x.sigmoid())) + net.layer(x),
        norm=nn.BatchNorm1d(4),
        layer=nn.Linear(4, 4),
    )
    assert_folds(net, vectors())
