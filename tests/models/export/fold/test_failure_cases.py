"""The cases in which published tools fold wrongly, crash or give up; each is named after the harm."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foldserve.models.export.fold import fold_batch_norms
from tests.models.export.fold.support import (
    Net,
    assert_folds,
    assert_stays,
    capture,
    chain,
    conv,
    images,
    vectors,
)
from tests.models.support import randomise_norms


def test_convolution_called_twice_with_one_norm_keeps_its_other_call():
    """torch.fx folds the weights of both calls (pytorch issue 104593)."""
    net = Net(lambda net, x: net.norm(net.a(x)) + net.a(x), a=conv(), norm=nn.BatchNorm2d(4))
    folded = assert_folds(net, images())
    assert folded.calls("conv2d") == 2


def test_convolution_called_twice_with_two_norms_gets_two_weights():
    net = Net(
        lambda net, x: net.p(net.a(x)) + net.q(net.a(x.relu())),
        a=conv(),
        p=nn.BatchNorm2d(4),
        q=nn.BatchNorm2d(4),
    )
    assert_folds(net, images(), found=2)


def test_siamese_pair_is_folded_once_per_call():
    net = Net(lambda net, x: net.pair(x) - net.pair(x.relu()), pair=chain(conv(), nn.BatchNorm2d(4)))
    assert_folds(net, images(), found=2)


def test_one_norm_shared_by_two_convolutions():
    net = Net(
        lambda net, x: net.norm(net.a(x)) + net.norm(net.b(x)), a=conv(), b=conv(), norm=nn.BatchNorm2d(4)
    )
    assert_folds(net, images(), found=2)


def test_convolution_tied_to_another_keeps_the_others_weight():
    a, b = conv(), conv()
    b.weight = a.weight
    net = Net(lambda net, x: net.norm(net.a(x)) * net.b(x), a=a, b=b, norm=nn.BatchNorm2d(4))
    assert_folds(net, images())


def test_weight_that_is_also_an_output_keeps_its_value():
    net = Net(lambda net, x: (net.norm(net.a(x)), net.a.weight * 1.0), a=conv(), norm=nn.BatchNorm2d(4))
    assert_folds(net, images())


def test_statistics_that_are_also_read_keep_their_values():
    net = Net(
        lambda net, x: (net.norm(net.a(x)), x * net.norm.running_var.reshape(1, -1, 1, 1)),
        a=conv(),
        norm=nn.BatchNorm2d(4),
    )
    assert_folds(net, images())


def test_hooks_between_convolution_and_norm_are_part_of_the_network():
    """Every tool that matches modules folds across them."""
    layer = conv()
    layer.register_forward_hook(lambda module, args, output: output * 2)
    norm = nn.BatchNorm2d(4)
    norm.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    assert_folds(chain(layer, norm), images())
    stopping = conv()
    stopping.register_forward_hook(lambda module, args, output: output.tanh())
    assert_stays(chain(stopping, nn.BatchNorm2d(4)), images())


def test_unbatched_convolution_is_not_read_as_a_batch():
    """(channels, length) out of an unbatched conv1d, and a norm that takes it for (rows, features)."""
    net = chain(nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8))
    assert_stays(
        net, torch.zeros(4, 10), "conv1d has its features on axis 0, the norm acts on axis 1", rows_vary=False
    )


def test_norm_in_training_mode_is_never_folded():
    net = Net(lambda net, x: F.batch_norm(net.a(x), None, None, training=True), a=conv())
    assert_stays(net, images(), "it normalises with the statistics of the batch")


def test_norm_without_running_statistics_is_never_folded():
    net = chain(conv(), nn.BatchNorm2d(4, track_running_stats=False))
    assert_stays(net, images(), "it normalises with the statistics of the batch")


def test_norm_left_in_training_mode_is_never_folded():
    module = chain(conv(), nn.BatchNorm2d(4)).double()
    report = fold_batch_norms(capture(module.train(), images().double()))
    assert [item.where for item in report.left] == ["1"]
    assert report.found == 1


def test_evaluating_norm_behind_one_in_training_mode_folds_into_its_weights():
    net = chain(conv(), nn.BatchNorm2d(4, track_running_stats=False), nn.BatchNorm2d(4))
    folded = assert_stays(net, images(), found=2)
    assert folded.report.left[0].where == "1"


@pytest.mark.parametrize(
    "norm",
    [
        nn.SyncBatchNorm(4),
        nn.BatchNorm2d(4, momentum=None),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, eps=0.1),
    ],
    ids=["synchronised", "cumulative average", "without weights", "large eps"],
)
def test_other_kinds_of_batch_norm_fold(norm):
    assert_folds(chain(conv(), norm), images())


def test_lazy_and_derived_norms_fold():
    class Derived(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) * 2

    lazy = nn.LazyBatchNorm2d()
    module = chain(conv(), lazy, Derived(4))
    module(images())
    assert_folds(module, images(), found=2)


def test_functional_norm_is_folded_and_named_by_its_node():
    net = Net(
        lambda net, x: F.batch_norm(net.a(x), net.mean, net.var, net.gamma, net.beta),
        a=conv(),
        **{name: nn.Buffer(torch.rand(4) + 0.5) for name in ("mean", "var", "gamma", "beta")},
    )
    assert_folds(net, images())
    stays = Net(lambda net, x: F.batch_norm(x.tanh(), net.mean, net.var).tanh(), mean=net.mean, var=net.var)
    folded = assert_stays(stays, images())
    assert folded.report.left[0].where.startswith("_native_batch_norm")


def test_norm_named_by_keyword_arguments_folds():
    net = Net(lambda net, x: net.norm(input=net.a(input=x)), a=conv(), norm=nn.BatchNorm2d(4))
    assert_folds(net, images())


def test_constant_of_the_width_is_not_taken_for_one_of_the_channels():
    """onnxslim folds a constant of length W into C channels when W = C; the answer is off by 3e-1."""
    net = Net(lambda net, x: net.a(x) * net.k, a=conv(4, 4, padding=1), k=nn.Parameter(torch.randn(6)))
    assert_folds(net, torch.zeros(2, 4, 6, 6), found=0)
    square = Net(lambda net, x: net.a(x) * net.k, a=conv(4, 6, padding=1), k=nn.Parameter(torch.randn(6)))
    folded = assert_folds(square, torch.zeros(2, 4, 6, 6), found=0)
    assert folded.calls("mul") == 1


def test_gamma_of_zero_and_negative_gamma_fold():
    norm = randomise_norms(nn.BatchNorm2d(4))
    norm.weight.data[:3] = torch.tensor([0.0, -2.0, 1e-30])
    assert_folds(chain(conv(), norm), images(), randomise=False)


def test_tiny_variance_folds_exactly():
    norm = randomise_norms(nn.BatchNorm2d(4, eps=1e-12))
    norm.running_var[:2] = torch.tensor([0.0, 1e-20])
    assert_folds(chain(conv(), norm), images(), randomise=False)


def test_variance_of_zero_without_eps_stays():
    norm = nn.BatchNorm2d(4, eps=0.0)
    norm.running_var.zero_()
    report = fold_batch_norms(capture(chain(conv(), norm).double().eval(), images().double()))
    assert "not finite" in report.left[0].reason


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float64_and_rounded_once(dtype):
    module = randomise_norms(chain(nn.Linear(4, 6), nn.BatchNorm1d(6))).eval().to(dtype)
    graph = capture(module, torch.zeros(2, 4, dtype=dtype))
    linear, norm = copy.deepcopy(module).double()
    assert fold_batch_norms(graph).left == ()
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    weights = {name.split("_")[1]: value for name, value in graph.named_buffers()}
    assert torch.equal(weights["weight"], (linear.weight * scale[:, None]).to(dtype))
    assert torch.equal(weights["bias"], ((linear.bias - norm.running_mean) * scale + norm.bias).to(dtype))


def test_half_precision_fold_that_would_overflow_stays():
    module = chain(nn.Linear(4, 6), nn.BatchNorm1d(6)).eval()
    module[0].weight.data.fill_(1000.0)
    module[1].running_var.fill_(1e-6)
    report = fold_batch_norms(capture(module.half(), vectors().half()))
    assert "would not be finite in float16" in report.left[0].reason


def test_float32_folds_within_float32_rounding():
    module = randomise_norms(chain(conv(), nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.BatchNorm2d(4))).eval()
    graph = capture(module, images())
    assert fold_batch_norms(graph).left == ()
    x = torch.randn(3, 4, 6, 6)
    with torch.no_grad():
        wanted, got = copy.deepcopy(module).double()(x.double()), graph(x)
    # 36 products per output and two maps: some tens of roundings of 6e-8, with all numbers of order 1.
    assert float((wanted - got).abs().max()) < 1e-5


def test_norm_inside_a_branch_of_control_flow_is_reported():
    def forward(net, x):
        return torch.cond(x.sum() > 0, lambda y: net.norm(net.a(y)), lambda y: net.a(y) * 2, (x,))

    net = Net(forward, a=conv(), norm=nn.BatchNorm2d(4))
    assert_stays_in_branch(net)


def assert_stays_in_branch(net):
    torch._dynamo.reset()  # torch.cond compiles, and takes sizes for dynamic that it has met otherwise before
    randomise_norms(net.double().eval())
    graph = capture(net, images().double())
    report = fold_batch_norms(graph)
    assert (report.found, report.folded) == (1, 0)
    assert "a branch of control flow" in report.left[0].reason
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(graph(x), net(x))
        assert torch.equal(graph(-x), net(-x))
