"""Operators that torch.onnx would write for one size alone, in the ONNX file of a network of any size."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foldserve.models.export import export_model
from foldserve.models.export.writers.onnx_rewrites import (
    _adaptive_avg_pool,
    _adaptive_max_pool,
    _nearest,
    _nearest_exact,
)
from foldserve.models.export.writers.onnx_writer import load_onnx, run_onnx


def test_nearest_takes_the_very_element_that_torch_takes_for_every_pair_of_sizes():
    for size in range(1, 48):
        x = torch.arange(size, dtype=torch.float32).view(1, 1, size)
        for wanted in range(1, 100):
            assert torch.equal(_nearest(x, [wanted]), F.interpolate(x, wanted, mode="nearest"))
            assert torch.equal(_nearest_exact(x, [wanted]), F.interpolate(x, wanted, mode="nearest-exact"))


def test_adaptive_pools_have_the_windows_of_torch_for_every_pair_of_sizes():
    for size in range(1, 30):
        x = torch.randn(2, 3, size, 7)
        for wanted in ((1, 3), (2, 1), (3, 9), (7, 7), (size, size + 1)):
            # a mean of at most 30 numbers of size 1, in another order: 30 roundings of 6e-8
            assert (_adaptive_avg_pool(x, wanted) - F.adaptive_avg_pool2d(x, wanted)).abs().max() <= 2e-6
            assert torch.equal(_adaptive_max_pool(x, wanted)[0], F.adaptive_max_pool2d(x, wanted))


class Pyramid(nn.Module):
    """Shape: pictures (N, 3, H, W) and (N, 2, 8, 10) in, (N, 2, H, W) out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        features = self.conv(x)
        pooled = F.adaptive_avg_pool2d(features, (3, 1)) + F.adaptive_max_pool2d(features, (1, 4))
        return (
            features
            + F.interpolate(pooled, x.shape[2:])
            + F.interpolate(y, x.shape[2:], mode="nearest-exact")
        )


class Steps(nn.Module):
    """Shape: (N, T, 4) in, (N, T, 4), (N, 4) and (N, 16) out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.linear(x)
        rolled = torch.roll(h, (x.shape[1] // 2, 1), (1, 2))
        first, second = h.chunk(2, dim=1)
        third, fourth = h.split((x.shape[1] - 1, 1), dim=1)
        parts = [part.mean(1) * scale for scale, part in enumerate((first, second, third, fourth))]
        return rolled, h.median(1).values + h.kthvalue(2, dim=1).values, torch.cat(parts, 1)


def _inputs(network: nn.Module, rows: int, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    if isinstance(network, Steps):
        return (torch.randn(rows, sizes[0], 4),)
    return torch.randn(rows, 3, *sizes), torch.randn(rows, 2, 8, 10)


@pytest.mark.parametrize(
    ("network", "axes", "sizes"),
    [
        (Pyramid(), {"x": {2: "height", 3: "width"}}, [(16, 24), (7, 30), (24, 41)]),
        (Steps(), {"x": {1: "steps"}}, [(12,), (7,), (31,)]),
    ],
)
def test_both_files_are_written_for_every_size(network, axes, sizes, tmp_path):
    torch.manual_seed(0)
    example = _inputs(network, 2, sizes[0])
    report = (result := export_model(network.eval(), example, tmp_path, name="m", dynamic_axes=axes)).report
    assert "not_written" not in report
    assert not report["narrowed"]
    assert all(dim["max"] is None for dim in report["dims"].values())
    session = load_onnx(result.onnx_path)
    for size in sizes:
        inputs = _inputs(network, 3, size)
        with torch.no_grad():
            wanted = torch.utils._pytree.tree_leaves(network(*inputs))
        for got, want in zip(run_onnx(session, inputs), wanted, strict=True):
            # float32 in another order leaves 1e-6 of numbers of size 1; another element is off by about 1
            assert (got - want).abs().max() <= 1e-5
