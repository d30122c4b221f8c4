import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foldserve.models.export.capture.training_norms import _NORMS
from tests.models.export.support import captured, largest_difference


class OwnStatistics(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -1, 1)

    def forward(self, x):
        return F.batch_norm(
            x,
            self.norm.running_mean,
            self.norm.running_var,
            self.norm.weight,
            self.norm.bias,
            training=True,
            eps=1e-3,
        )


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(3), (4, 3)),
        (nn.BatchNorm1d(3), (4, 3, 5)),
        (nn.BatchNorm2d(3), (4, 3, 5, 6)),
        (nn.BatchNorm3d(3, track_running_stats=False), (4, 3, 5, 6, 2)),
    ],
)
def test_a_norm_in_training_mode_is_spelled_out_and_computes_the_same(norm, shape):
    x = torch.randn(shape) * 3 + 1
    module = OwnStatistics(norm)
    graph = captured(module, x)
    assert not any(node.target in _NORMS for node in graph.graph_module.graph.nodes)
    with torch.no_grad():
        want = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=1e-3)
        # Float32 with some hundred terms per channel: a few roundings of 6e-8 on values below 5.
        assert largest_difference(graph.graph_module(x), (want,)) < 5e-6


def test_a_norm_without_affine_is_spelled_out_too():
    x = torch.randn(4, 3, 5)
    graph = captured(nn.BatchNorm1d(3, affine=False, track_running_stats=False), x)
    want = F.batch_norm(x, None, None, training=True)
    assert largest_difference(graph.graph_module(x), (want,)) < 5e-6
