"""Random networks around random norms: folded and unfolded give the same answers, and a second fold changes nothing."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from foldserve.models.export.fold import fold_batch_norms
from tests.models.export.fold.support import TOLERANCE, Net, capture, difference, fold, targets

CHANNELS, SIZE = 4, 6

# Each keeps (rows, 4, 6, 6), so that any order of them is a network.
OPERATIONS = {
    "conv": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "pointwise": lambda: nn.Conv2d(4, 4, 1, bias=False),
    "grouped": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2, padding_mode="reflect"),
    "transposed": lambda: nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2),
    "norm": lambda: nn.BatchNorm2d(4),
    "plain norm": lambda: nn.BatchNorm2d(4, affine=False),
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "average": lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "counting average": lambda: nn.AvgPool2d(3, 1, 1),
    "maximum": lambda: nn.MaxPool2d(3, 1, 1),
    "resampled": lambda: Net(
        lambda net, x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    ),
    "reflected": lambda: Net(lambda net, x: F.pad(x, (1, 1, 1, 1), mode="reflect")[:, :, 1:-1, 1:-1]),
    "zero padded": lambda: Net(lambda net, x: F.pad(x[:, :, 1:-1, 1:-1], (1, 1, 1, 1))),
    "shuffle": lambda: nn.ChannelShuffle(2),
    "flipped": lambda: Net(lambda net, x: x.flip(1)),
    "turned": lambda: Net(lambda net, x: x.transpose(2, 3)),
    "viewed": lambda: Net(lambda net, x: x.reshape(x.shape[0], 2, 2, 36).flatten(1).reshape(x.shape)),
    "halves": lambda: Net(
        lambda net, x: torch.cat([x[:, 2:].tanh(), net.a(x[:, :2])], 1), a=nn.BatchNorm2d(2)
    ),
    "linear": lambda: nn.Linear(6, 6),
    "scaled": lambda: Net(lambda net, x: x * net.k - 1, k=nn.Parameter(torch.randn(4, 1, 1))),
    "pixel weights": lambda: Net(lambda net, x: x * net.k, k=nn.Parameter(torch.randn(6, 6))),
    "position": lambda: Net(lambda net, x: net.k - x, k=nn.Parameter(torch.randn(6, 6))),
    "group norm": lambda: nn.GroupNorm(2, 4),
}
# How two branches become one again.
MEETINGS = {
    "sum": lambda one, other: one + other,
    "difference": lambda one, other: one - other * 2,
    "product": lambda one, other: one * other,
    "concatenation": lambda one, other: torch.cat([one[:, :1], other[:, 1:]], 1),
    "interleaved": lambda one, other: torch.stack([one, other], 2).mean(2),
}


class Branching(nn.Module):
    """A chain, then two branches that meet, then a chain."""

    def __init__(self, before, left, right, meeting, after):
        super().__init__()
        chains = ([OPERATIONS[name]() for name in names] for names in (before, left, right, after))
        self.before, self.left, self.right, self.after = (nn.Sequential(*parts) for parts in chains)
        self.meeting = meeting

    def forward(self, x):
        x = self.before(x)
        return self.after(MEETINGS[self.meeting](self.left(x), self.right(x)))


def _names(most):
    # Norms are drawn more often than their share, so that most networks hold several.
    usual = st.sampled_from(sorted(OPERATIONS))
    return st.lists(st.one_of(usual, usual, st.just("norm")), max_size=most)


def _check(module):
    folded = fold(module, torch.zeros(2, CHANNELS, SIZE, SIZE))
    assert folded.error <= TOLERANCE
    before = targets(folded.graph)
    assert fold_batch_norms(folded.graph).left == folded.report.left
    assert targets(folded.graph) == before


SETTINGS = settings(
    max_examples=16,
    deadline=None,  # a capture takes a third of a second, and the first one two
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


@SETTINGS
@given(names=_names(7))
def test_folded_chain_gives_the_same_answers(names):
    torch.manual_seed(0)
    _check(nn.Sequential(*(OPERATIONS[name]() for name in names), nn.Identity()))


@SETTINGS
@given(_names(2), _names(3), _names(3), st.sampled_from(sorted(MEETINGS)), _names(3))
def test_folded_branches_give_the_same_answers(before, left, right, meeting, after):
    torch.manual_seed(0)
    _check(Branching(before, left, right, meeting, after))


@SETTINGS
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.booleans(), st.booleans())
def test_norm_on_any_view_of_a_linear_layer_gives_the_same_answers(heads, width, tokens, turned, merged):
    """Sizes coincide often here: rows = heads = width = tokens = 2 and the like."""

    def forward(net, x):
        y = net.layer(x)
        y = y.reshape(-1, heads, width) if merged else y.reshape(x.shape[0], tokens * heads, width)
        return net.norm(y.transpose(1, 2) if turned else y)

    torch.manual_seed(0)
    features = width if turned else (heads if merged else tokens * heads)
    net = Net(forward, layer=nn.Linear(3, heads * width), norm=nn.BatchNorm1d(features))
    folded = fold(net, torch.zeros(2, tokens, 3))
    assert folded.error <= TOLERANCE


def test_difference_sees_a_wrong_fold():
    """The measure itself: one channel scaled by its neighbour's factor shows at 1e-1."""
    module = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).double().eval()
    module[1].weight.data = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    graph = capture(module, torch.zeros(2, 4, 6, 6, dtype=torch.float64))
    fold_batch_norms(graph)
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        assert difference(module(x), graph(x)) <= TOLERANCE
        graph.conv2d_weight_folded_0.copy_(graph.conv2d_weight_folded_0.roll(1, 0))
        assert difference(module(x), graph(x)) > 1e-2
