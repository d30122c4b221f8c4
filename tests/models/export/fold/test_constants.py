"""Constant expressions: computed before the fold, when they are constant, and only as far as it pays."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from foldserve.models.export.fold.constants import Constants, rounded, rounded_weight
from foldserve.models.export.fold.plan import NotFoldable
from tests.models.export.fold.support import (
    Net,
    assert_folds,
    assert_stays,
    capture,
    chain,
    conv,
    images,
    sequences,
)


class _ScaledStandardised(nn.Conv2d):
    """timm's ScaledStdConv2d: the weight is standardised by a batch norm in training mode."""

    def __init__(self):
        super().__init__(4, 6, 3)
        self.gain = nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, x):
        flat = self.weight.reshape(1, 6, -1)
        weight = F.batch_norm(flat, None, None, weight=self.gain * 0.7, training=True, momentum=0.0)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias)


class _Standardised(nn.Conv2d):
    def forward(self, x):
        var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (var + 1e-5).sqrt(), self.bias)


class _Symmetric(nn.Module):
    def forward(self, weight):
        return weight + weight.flip(-1)


def _pruned():
    layer = conv(4, 6)
    prune.l1_unstructured(layer, "weight", 0.5)
    layer.weight = layer.weight.detach()  # a non-leaf attribute cannot be exported
    return layer


def _parametrized():
    layer = conv(4, 6)
    parametrize.register_parametrization(layer, "weight", _Symmetric())
    return layer


WEIGHTS = {
    "weight norm": (lambda: parametrizations.weight_norm(conv(4, 6)), 1),
    "spectral norm": (lambda: parametrizations.spectral_norm(conv(4, 6)).eval(), 1),
    "own parametrization": (_parametrized, 1),
    "pruning mask": (_pruned, 1),
    "weight standardisation": (lambda: _Standardised(4, 6, 3), 1),
    "weight standardisation by a batch norm": (_ScaledStandardised, 2),
    "two kernels summed": (
        lambda: Net(
            lambda net, x: F.conv2d(x, net.a.weight + F.pad(net.b.weight, (1, 1, 1, 1))),
            a=conv(4, 6),
            b=conv(4, 6, 1),
        ),
        1,
    ),
    "batch norm of the weight": (
        lambda: Net(
            lambda net, x: F.conv2d(x, net.inner(net.a.weight)), a=conv(4, 6), inner=nn.BatchNorm2d(4)
        ),
        2,
    ),
    "cast weight": (lambda: Net(lambda net, x: F.conv2d(x, net.a.weight.float().double()), a=conv(4, 6)), 1),
}


# Pruning assigns the masked weight in a hook, which torch.export takes note of.
@pytest.mark.filterwarnings("ignore:The tensor attribute self.0.weight was assigned:UserWarning")
@pytest.mark.parametrize("case", WEIGHTS)
def test_norm_folds_into_a_weight_that_is_computed_from_constants(case):
    build, found = WEIGHTS[case]
    folded = assert_folds(chain(build(), nn.BatchNorm2d(6)), images(), found=found)
    names = {str(node.target) for node in folded.graph.graph.nodes if node.op == "call_function"}
    assert names == {"aten.conv2d.default"}


def test_spectral_norm_is_computed_away_without_any_norm():
    folded = assert_folds(parametrizations.spectral_norm(nn.Conv1d(4, 4, 3)).eval(), sequences(), found=0)
    assert folded.calls("vdot") == folded.calls("div") == 0


def test_transposed_view_of_a_table_is_not_stored_a_second_time():
    net = Net(lambda net, x: net.table(x) @ net.table.weight.t(), table=nn.Embedding(10, 6))
    folded = assert_folds(net, torch.zeros(2, 5, dtype=torch.long), found=0)
    assert [name for name, _ in folded.graph.named_buffers()] == []


def test_large_grid_spanned_by_small_vectors_stays_an_expression():
    net = Net(
        lambda net, x: x + net.a[:, None] * net.b[None],
        a=nn.Parameter(torch.randn(600)),
        b=nn.Parameter(torch.randn(600)),
    )
    folded = assert_folds(net, torch.zeros(2, 600, 600), found=0)
    assert folded.calls("mul") == 1


def test_random_numbers_are_no_constant():
    net = Net(lambda net, x: x + torch.rand(4, dtype=x.dtype) * 0, norm=nn.BatchNorm2d(4)).double().eval()
    graph = capture(net, torch.zeros(2, 4, dtype=torch.float64))
    constants = Constants(graph)
    (random,) = [node for node in graph.graph.nodes if "rand" in str(node.target)]
    assert not constants.is_constant(random)


def test_whole_number_that_a_rounding_decides_is_no_constant():
    """0.1 + 0.2 in float32 is 0.3 rounded up, in float64 more than 0.3: the two precisions pick other channels."""
    net = Net(
        lambda net, x: net.norm(
            net.a(x)[:, ((net.tenths[0] + net.tenths[1]) * 10).ceil().long().reshape(1) - torch.tensor([3])]
        ),
        a=conv(),
        norm=nn.BatchNorm2d(1),
        tenths=nn.Parameter(torch.tensor([0.1, 0.2])),
    )
    graph = capture(net.eval(), images())
    index = next(node for node in graph.graph.nodes if str(node.target).startswith("aten.ceil"))
    user = next(iter(index.users))
    assert Constants(graph).value(index) is not None  # a float is as exact as its type
    assert Constants(graph).value(user) is None


def test_buffer_that_the_graph_writes_to_is_no_constant():
    def forward(net, x):
        net.count.add_(1.0)
        return net.norm(x) * net.count

    net = Net(forward, norm=nn.Identity(), count=nn.Buffer(torch.ones(4))).double().eval()
    graph = capture(net, torch.zeros(2, 4, dtype=torch.float64))
    constants = Constants(graph)
    (buffer,) = graph.graph.find_nodes(op="get_attr")
    assert not constants.is_constant(buffer)


def test_norm_whose_statistics_the_graph_writes_to_stays():
    def forward(net, x):
        net.norm.running_mean.add_(1.0)
        return net.norm(net.a(x))

    net = Net(forward, a=conv(), norm=nn.BatchNorm2d(4))
    net.double().eval()
    from foldserve.models.export.fold import fold_batch_norms

    report = fold_batch_norms(capture(net, images().double()))
    assert [item.reason for item in report.left] == ["its running_mean is not a constant of the graph"]


def test_norm_whose_weight_is_computed_from_the_input_stays():
    net = Net(
        lambda net, x: F.batch_norm(net.a(x), net.mean, net.var, weight=x.mean((0, 2, 3))),
        a=conv(),
        mean=nn.Buffer(torch.zeros(4)),
        var=nn.Buffer(torch.ones(4)),
    )
    assert_stays(net, images(), "its weight is not a constant of the graph")


def test_rounding_refuses_what_the_dtype_cannot_hold():
    assert torch.equal(
        rounded(torch.tensor([1.0, 2.0]).double(), torch.float16, "w").value, torch.tensor([1.0, 2.0]).half()
    )
    with pytest.raises(NotFoldable, match="would not be finite in float16"):
        rounded(torch.tensor([1e6]).double(), torch.float16, "w")
    with pytest.raises(NotFoldable, match="would not be finite in float32"):
        rounded(torch.tensor([float("nan")]).double(), torch.float32, "w")


def test_rounding_refuses_a_filter_that_falls_below_the_normal_numbers():
    """float16 keeps no full precision below 6.1e-5; one small weight beside a large one does no harm."""
    fine = torch.tensor([[1e-7, 1.0], [0.0, 0.0]]).double()
    assert rounded_weight(fine, torch.float16, 0, "w").value.dtype == torch.float16
    with pytest.raises(NotFoldable, match="falls below float16's normal numbers"):
        rounded_weight(torch.tensor([[1e-7, 1e-6]]).double(), torch.float16, 0, "w")
