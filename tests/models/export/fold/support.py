"""Capture, fold and compare in float64: what every test of the fold stands on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, export

from foldserve.models.export.fold import FoldReport, fold_batch_norms
from foldserve.models.export.fold.norms import batch_norms
from tests.models.support import randomise_norms

# float64 rounds to 1.1e-16; the networks here do some hundred roundings per answer, and cancellation costs a
# digit or two. A wrong fold shows at 1e-1 to 1e0, a right one measures below 1e-14: there is nothing in
# between.
TOLERANCE = 1e-12
ROW_COUNTS = (1, 2, 5)


class Net(nn.Module):
    """A network whose forward is forward(net, x), with the given parts as submodules, parameters and buffers."""

    def __init__(self, forward: Callable[["Net", Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


@dataclass(frozen=True)
class Folded:
    """A folded graph, its report, and its largest error relative to the largest answer of the eager network."""

    graph: fx.GraphModule
    report: FoldReport
    error: float

    def calls(self, name: str) -> int:
        """How many calls of the operator aten.NAME the graph holds."""
        return sum(1 for node in self.graph.graph.nodes if str(node.target).startswith(f"aten.{name}."))


def capture(
    module: nn.Module, example: Tensor, rows_vary: bool = True, others: tuple[int, ...] = ()
) -> fx.GraphModule:
    """The graph of module with a dynamic number of rows, and dynamic sizes on the axes others."""
    sizes = {axis: Dim(f"size{axis}", min=2, max=64) for axis in others}
    shapes = ({0: Dim("rows", min=1, max=64)} | sizes if rows_vary else None,)
    program = export(module, (example,), dynamic_shapes=shapes, strict=False)
    return program.run_decompositions({}).module(check_guards=False)


def like(example: Tensor, rows: int | None, seed: int) -> Tensor:
    """A random input like example with another number of rows; integers stay in [0, 10)."""
    shape = (example.shape[0] if rows is None else rows, *example.shape[1:])
    generator = torch.Generator().manual_seed(seed)
    if example.is_floating_point():
        return torch.randn(shape, generator=generator, dtype=example.dtype)
    return torch.randint(0, 10, shape, generator=generator)


def difference(wanted: Any, got: Any) -> float:
    """The largest difference relative to the largest wanted number, over all tensors of two structures."""
    leaves = torch.utils._pytree.tree_leaves
    worst = 0.0
    for one, other in zip(leaves(wanted), leaves(got), strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        scale = max(float(one.abs().max()), 1e-3)
        worst = max(worst, float((one - other).abs().max()) / scale)
    return worst


def fold(module: nn.Module, example: Tensor, *, randomise: bool = True, rows_vary: bool = True) -> Folded:
    """Capture module in float64, fold it, and compare with the eager network at several row counts."""
    module.double().eval()
    if randomise:
        randomise_norms(module)
    example = example.double() if example.is_floating_point() else example
    graph = capture(module, example, rows_vary)
    report = fold_batch_norms(graph)
    assert report.found == report.folded + len(report.left)
    assert len(batch_norms(graph)) == len(report.left)
    worst = 0.0
    with torch.no_grad():
        for seed, rows in enumerate(ROW_COUNTS if rows_vary else (None,)):
            x = like(example, rows, seed)
            worst = max(worst, difference(module(x), graph(x)))
    return Folded(graph, report, worst)


def assert_folds(module: nn.Module, example: Tensor, *, found: int = 1, **settings: bool) -> Folded:
    """Every norm of module is folded, found of them, and the answers are the same."""
    folded = fold(module, example, **settings)
    assert folded.report.left == ()
    assert folded.report.found == found
    assert folded.error <= TOLERANCE
    return folded


def assert_stays(
    module: nn.Module, example: Tensor, *reasons: str, found: int = 1, left: int = 1, **settings: bool
) -> Folded:
    """Exactly left norms of module stay, for reasons that say so, and the answers are the same."""
    folded = fold(module, example, **settings)
    assert len(folded.report.left) == left
    assert folded.report.found == found
    told = " | ".join(item.reason for item in folded.report.left)
    for reason in reasons:
        assert reason in told
    assert folded.error <= TOLERANCE
    return folded


def without_shift(norm: nn.Module) -> nn.Module:
    """norm with scale only: mean and beta are 0, so c is exactly 0."""
    with torch.no_grad():
        norm.running_mean.zero_()
        norm.bias.zero_()
    return norm


def with_positive_scale(module: nn.Module) -> nn.Module:
    """module with every gamma made positive."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._NormBase) and part.weight is not None:
                part.weight.abs_()
    return module


def images(channels: int = 4, size: int = 6) -> Tensor:
    return torch.zeros(2, channels, size, size)


def sequences(channels: int = 4, length: int = 6) -> Tensor:
    return torch.zeros(2, channels, length)


def vectors(features: int = 4) -> Tensor:
    return torch.zeros(2, features)


def conv(inputs: int = 4, outputs: int = 4, kernel: int = 3, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **settings)


def chain(*parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(*parts)


def targets(graph: fx.GraphModule) -> Sequence[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
