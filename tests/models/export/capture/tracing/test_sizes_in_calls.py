"""Functions of torch that take a Python number leave a size free that goes into them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foldserve.models.errors import NotCapturable
from tests.models.export.support import Fn, captured, largest_difference

_TURN = torch.tensor([[[0.7, 0.2, 0.1], [-0.2, 0.9, 0.3]]])


def _turned(x, corners):
    size = (x.shape[0], 1, x.shape[1], 3)
    return F.affine_grid(_TURN.expand(x.shape[0], 2, 3), size, align_corners=corners)


def _pairs(x):
    first, second = torch.triu_indices(x.shape[1], x.shape[1], 1)
    return (x[:, first] * x[:, second]).sum(1, keepdim=True) + x[:, torch.tril_indices(x.shape[1], 2)[0]]


CALLS = {
    "coordinates": lambda x: x * torch.linspace(-1, 1, x.shape[1]),
    "coordinates by name": lambda x: x * torch.linspace(start=0.5, end=2, steps=x.shape[1] + 1)[1:],
    "powers of ten": lambda x: x * torch.logspace(-1, 1, x.shape[1]),
    "a periodic window": lambda x: x * torch.hann_window(x.shape[1]),
    "windows": lambda x: (
        x * torch.hamming_window(x.shape[1], periodic=False) * torch.blackman_window(x.shape[1])
    ),
    "frequencies": lambda x: x * torch.fft.fftfreq(x.shape[1], d=0.1),
    "real frequencies": lambda x: x[:, : x.shape[1] // 2 + 1] * torch.fft.rfftfreq(x.shape[1]),
    "pairs": _pairs,
    "a tensor of the size": lambda x: x / torch.as_tensor(x.shape[1]) * x.new_tensor([x.shape[1], 2])[0],
    "a grid of middles": lambda x: _turned(x, False),
    "a grid of corners": lambda x: _turned(x, True),
    "the largest of all": lambda x: F.max_pool1d(x[:, None], x.size(1)).squeeze(2),
    "the mean of all": lambda x: F.avg_pool2d(x[:, None, None], x[:, None, None].size()[2:]).flatten(1),
    "a pool": lambda x: nn.MaxPool1d(3, stride=2, padding=1)(x[:, None]),
    "a pool and its places": lambda x: F.max_pool1d(x[:, None], 2, padding=1, return_indices=True),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_size_that_goes_into_a_call_stays_free(name):
    network = Fn(CALLS[name])
    graph = captured(network, torch.randn(3, 8), axes={"x": {1: "steps"}})
    steps = graph.sizes.ranges["steps"]
    assert steps.least <= 2
    assert steps.most is None
    for rows, size in ((1, max(2, steps.least)), (2, 7), (5, 12)):
        x = torch.randn(rows, size)
        want = network(x)
        # 1e-5: a few float32 roundings of 6e-8 of numbers up to 100.
        assert largest_difference(graph.graph_module(x), want if isinstance(want, tuple) else (want,)) < 1e-5


class _Lengths(nn.Module):
    """Shape: in (N, T), out (N, T): as a network has it that asks for lengths."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(len(x), -1) * len(x[0]) * len([1, 2])


def test_the_length_of_a_tensor_stays_free_and_len_is_put_back():
    graph = captured(_Lengths(), torch.randn(3, 8), axes={"x": {1: "steps"}})
    x = torch.randn(5, 7)
    assert torch.equal(graph.graph_module(x)[0], x * 7 * 2)
    assert "len" not in globals()


def test_a_call_without_such_a_size_is_torchs_own():
    graph = captured(Fn(lambda x: x * torch.linspace(0, 1, 8)), torch.randn(3, 8))
    assert any(node.target is torch.ops.aten.linspace.default for node in graph.graph_module.graph.nodes)


class _Looped(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return sum(x[i] for i in range(len(x))) + y


def test_a_loop_over_the_rows_of_two_inputs_is_refused_at_its_line():
    with pytest.raises(NotCapturable, match=r"fixes the number of rows.* in forward: `return sum\(x\[i\]"):
        captured(_Looped(), torch.randn(3, 8), torch.randn(3, 8))
