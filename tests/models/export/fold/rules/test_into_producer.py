"""Norms folded into their producer, the call that makes their input: each producer's plain case, and each refusal."""

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
    vectors,
    without_shift,
)
from tests.models.support import randomise_norms

CONVOLUTIONS = {
    "conv1d": (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), sequences()),
    "conv2d": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), images()),
    "conv2d-without-bias": (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), images()),
    "conv2d-stride-dilation-groups": (
        nn.Conv2d(4, 6, 2, stride=2, padding=1, dilation=2, groups=2),
        nn.BatchNorm2d(6),
        images(),
    ),
    "conv2d-depthwise": (nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), images()),
    "conv2d-same": (nn.Conv2d(4, 6, 2, padding="same"), nn.BatchNorm2d(6), images()),
    "conv2d-reflect": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6), images()),
    "conv3d": (nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), torch.zeros(2, 2, 3, 3, 3)),
    "conv_transpose1d": (nn.ConvTranspose1d(4, 6, 3, stride=2), nn.BatchNorm1d(6), sequences()),
    "conv_transpose2d": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1),
        nn.BatchNorm2d(6),
        images(),
    ),
    "conv_transpose2d-groups": (nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), images()),
    # (4, 4 / 2, k): the shapes broadcast along the wrong axis without an error.
    "conv_transpose2d-groups-square": (nn.ConvTranspose2d(4, 4, 3, groups=2), nn.BatchNorm2d(4), images()),
    "conv_transpose3d": (
        nn.ConvTranspose3d(2, 4, 2, groups=2),
        nn.BatchNorm3d(4),
        torch.zeros(2, 2, 3, 3, 3),
    ),
}


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")  # torch: an even kernel pads a copy
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_norm_folds_into_the_convolution_before_it(case):
    made_by, norm, example = CONVOLUTIONS[case]
    assert_folds(chain(made_by, norm), example)


def test_norm_folds_into_the_linear_layer_before_it():
    assert_folds(chain(nn.Linear(4, 6), nn.BatchNorm1d(6)), vectors())


def test_norm_without_weights_folds_into_a_linear_layer_without_bias():
    folded = assert_folds(chain(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6, affine=False)), vectors())
    assert folded.calls("linear") == 1


@pytest.mark.parametrize("square", [False, True], ids=["sizes differ", "sizes coincide"])
def test_norm_on_axis_one_stays_behind_a_linear_layer_that_works_on_axis_two(square):
    """torch.fx and torch.jit.freeze fold along the wrong axis when L = C (pytorch issue 118990)."""
    length = 6 if square else 5
    module = chain(nn.Linear(4, 6), nn.BatchNorm1d(length))
    assert_stays(
        module, torch.zeros(2, length, 4), "linear has its features on axis 2, the norm acts on axis 1"
    )


def test_norm_of_one_feature_folds_into_a_linear_layer_whatever_its_axis():
    assert_folds(chain(nn.Linear(4, 6), nn.BatchNorm1d(1)), torch.zeros(2, 1, 4))


def test_norm_whose_channels_all_agree_folds_into_a_linear_layer_whatever_its_axis():
    norm = nn.BatchNorm1d(5)
    norm.weight.data.fill_(-0.5)
    norm.bias.data.fill_(0.25)
    norm.running_mean.fill_(2.0)
    assert_folds(chain(nn.Linear(4, 6), norm), torch.zeros(2, 5, 4), randomise=False)


@pytest.mark.parametrize("product", ["mm", "matmul", "addmm"])
def test_norm_folds_into_a_product_with_a_constant_matrix(product):
    def forward(net, x):
        if product == "addmm":
            return net.norm(torch.addmm(net.bias, x, net.matrix))
        return net.norm(getattr(torch, product)(x, net.matrix))

    matrix, bias = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(5))
    assert_folds(Net(forward, norm=nn.BatchNorm1d(5), matrix=matrix, bias=bias), vectors())


def test_scale_folds_into_a_product_without_making_it_a_linear_layer():
    norm = without_shift(randomise_norms(nn.BatchNorm1d(5)))
    net = Net(lambda net, x: net.norm(x @ net.matrix), norm=norm, matrix=nn.Parameter(torch.randn(4, 5)))
    folded = assert_folds(net, vectors(), randomise=False)
    assert folded.calls("matmul") == 1


def test_scale_folds_into_the_rows_of_a_constant_matrix_on_the_left():
    norm = without_shift(randomise_norms(nn.BatchNorm1d(5)))
    net = Net(lambda net, x: net.norm(net.matrix @ x), norm=norm, matrix=nn.Parameter(torch.randn(5, 4)))
    assert_folds(net, sequences(), randomise=False)


def test_norm_with_a_shift_stays_behind_a_constant_matrix_on_the_left():
    net = Net(
        lambda net, x: net.norm(net.matrix @ x),
        norm=nn.BatchNorm1d(5),
        matrix=nn.Parameter(torch.randn(5, 4)),
    )
    assert_stays(net, sequences(), "has no bias to take the norm's shift")


def test_norm_stays_behind_a_product_of_two_inputs():
    net = Net(lambda net, x: net.norm(x @ x.transpose(1, 2)), norm=nn.BatchNorm1d(4))
    assert_stays(net, sequences(), "neither operand of matmul is a constant matrix")


def test_norm_stays_behind_an_addmm_with_a_factor():
    net = Net(
        lambda net, x: net.norm(torch.addmm(net.bias, x, net.matrix, beta=0.5)),
        norm=nn.BatchNorm1d(5),
        matrix=nn.Parameter(torch.randn(4, 5)),
        bias=nn.Parameter(torch.randn(5)),
    )
    assert_stays(net, vectors(), "alpha or beta other than 1")


def test_norm_folds_into_an_embedding_table():
    net = Net(
        lambda net, x: net.norm(net.table(x).transpose(1, 2)),
        table=nn.Embedding(10, 6),
        norm=nn.BatchNorm1d(6),
    )
    assert_folds(net, torch.zeros(2, 5, dtype=torch.long))


def test_norm_over_positions_stays_behind_an_embedding():
    net = Net(lambda net, x: net.norm(net.table(x)), table=nn.Embedding(10, 5), norm=nn.BatchNorm1d(5))
    assert_stays(net, torch.zeros(2, 5, dtype=torch.long), "embedding has its features on axis 2")


NORMALISATIONS = {
    "group norm": (nn.GroupNorm(2, 4), nn.BatchNorm2d(4), images()),
    "group norm without weights": (nn.GroupNorm(2, 4, affine=False), nn.BatchNorm2d(4), images()),
    "instance norm": (nn.InstanceNorm2d(4, affine=True), nn.BatchNorm2d(4), images()),
    "instance norm without weights": (nn.InstanceNorm2d(4), nn.BatchNorm2d(4), images()),
    "layer norm": (nn.LayerNorm(4), nn.BatchNorm1d(4), vectors()),
    "layer norm over several axes": (nn.LayerNorm((4, 6)), nn.BatchNorm1d(4), sequences()),
    "layer norm without weights": (nn.LayerNorm(4, elementwise_affine=False), nn.BatchNorm1d(4), vectors()),
}


@pytest.mark.parametrize("case", NORMALISATIONS)
def test_norm_folds_into_the_weights_of_another_normalisation(case):
    made_by, norm, example = NORMALISATIONS[case]
    for parameter in made_by.parameters():
        nn.init.uniform_(parameter, -1.0, 1.0)
    assert_folds(chain(made_by, norm), example)


def test_norm_on_another_axis_stays_behind_a_layer_norm():
    assert_stays(
        chain(nn.LayerNorm(6), nn.BatchNorm1d(4)), sequences(), "layer_norm has weights from axis 2 on"
    )


def test_scale_folds_into_an_rms_norm_and_a_shift_does_not():
    shiftless = without_shift(randomise_norms(nn.BatchNorm1d(4)))
    assert_folds(chain(nn.RMSNorm(4), shiftless), vectors(), randomise=False)
    assert_stays(chain(nn.RMSNorm(4), nn.BatchNorm1d(4)), vectors(), "rms_norm has no bias")


def test_norm_behind_a_norm_folds_with_it_into_the_convolution():
    assert_folds(chain(conv(), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4)), images(), found=3)


def test_norm_behind_a_norm_that_must_stay_folds_into_it():
    folded = assert_stays(
        chain(nn.Sigmoid(), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Sigmoid()), images(), found=2
    )
    assert folded.report.folded == 1


@pytest.mark.parametrize(
    "activation", [nn.Sigmoid(), nn.ReLU(), nn.Softmax(1), nn.GELU(), nn.Hardswish(), nn.ReLU6()]
)
def test_norm_with_a_shift_stays_behind_an_activation(activation):
    assert_stays(chain(conv(), activation, nn.BatchNorm2d(4)), images(), "before it, ")


def test_norm_of_the_networks_input_stays():
    assert_stays(chain(nn.BatchNorm2d(4), nn.Sigmoid()), images(), "the network's input", "sigmoid reads it")


def test_norm_stays_behind_a_convolution_whose_weight_is_computed_from_the_input():
    def forward(net, x):
        kernel = x.mean((0, 2, 3)).reshape(1, 4, 1, 1).expand(4, 4, 1, 1)
        return net.norm(F.conv2d(x, kernel))

    assert_stays(Net(forward, norm=nn.BatchNorm2d(4)), images(), "the weight of conv2d is not a constant")


def test_norm_stays_when_its_input_is_read_twice():
    net = Net(lambda net, x: net.norm(y := net.conv(x)) + y.sigmoid(), conv=conv(), norm=nn.BatchNorm2d(4))
    assert_stays(net, images(), "is also read by")


def test_norm_stays_when_its_input_is_an_output():
    net = Net(lambda net, x: (y := net.conv(x), net.norm(y)), conv=conv(), norm=nn.BatchNorm2d(4))
    assert_stays(net, images(), "conv2d is also read by the network's output")


def test_reading_only_the_shape_of_a_norms_input_does_not_keep_the_norm():
    def forward(net, x):
        y = net.conv(x)
        return net.norm(y).reshape(y.shape[0], 4, -1)

    assert_folds(Net(forward, conv=conv(), norm=nn.BatchNorm2d(4)), images())


def test_norm_stays_behind_a_cast():
    net = Net(lambda net, x: net.norm(net.conv(x).float().double()), conv=conv(), norm=nn.BatchNorm2d(4))
    folded = assert_stays(net, images(), "changes the dtype, which rounds")
    assert folded.error == 0.0
