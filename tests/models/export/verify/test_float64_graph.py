"""The gate runs the graph that is written: one fold, exact in float64, rounded in the file."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from foldserve.models.errors import ParityFailed
from foldserve.models.export import export_model
from foldserve.models.export.capture.graph_copy import copied
from foldserve.models.export.fold import exact, fold_batch_norms
from foldserve.models.export.network.module_copy import double_copy
from foldserve.models.export.verify.float64_graph import float64_values, run_float64
from tests.models.export.support import Fn, captured, largest_difference, pictures
from tests.models.support import randomise_norms

# float64 rounds to 1.1e-16, and a stored remainder to 4e-15; the networks here do some hundred roundings.
TOLERANCE = 1e-12


class Rescaled(nn.Module):
    """softmax(norm(x) * 2 / 3): all of its weights are new after the fold."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return torch.softmax(self.norm(x) * 2 / 3, 1)


class SharedScale(nn.Module):
    """Weights that are expressions: a product of a table, a mask of comparisons and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Parameter(torch.rand(5, 3, 1, 1)), nn.BatchNorm2d(5)

    def forward(self, x):
        weight = self.table / self.table.sum(1, keepdim=True) * (self.table > 0.3)
        return self.norm(F.conv2d(x, weight / 3))


def _chain() -> nn.Module:
    parts = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)]
    return nn.Sequential(*parts, nn.AvgPool2d(2), nn.BatchNorm2d(5))


NETWORKS = {
    "norms in a row": _chain,
    "nothing but a norm": Rescaled,
    "an expression of weights": SharedScale,
    "weight_norm": lambda: nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.Sigmoid()
    ),
    "a norm without weights before": lambda: nn.Sequential(
        nn.GroupNorm(1, 3, affine=False), nn.BatchNorm2d(3), nn.Sigmoid()
    ),
    "small numbers": lambda: nn.Sequential(_scaled(nn.Conv2d(3, 4, 3), 1e-30), nn.BatchNorm2d(4)),
}


def _scaled(layer: nn.Module, factor: float) -> nn.Module:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(factor)
    return layer


@pytest.mark.parametrize("name", NETWORKS)
def test_a_fold_in_float32_is_exact_when_it_is_run_in_float64(name):
    torch.manual_seed(0)
    module = randomise_norms(NETWORKS[name]()).eval()
    graph = captured(module, pictures()).graph_module
    folded = copied(graph)
    fold_batch_norms(folded)
    x = pictures()
    with torch.no_grad():
        wanted = double_copy(module)(x.double())
    (got,) = run_float64(folded, [x])
    assert largest_difference((got,), (wanted,)) <= TOLERANCE * float(wanted.abs().max())


def test_without_what_rounding_took_away_the_same_graph_shows_the_rounding():
    """So the test above cannot pass by a run that reads the rounded weights."""
    torch.manual_seed(0)
    module = randomise_norms(_chain()).eval()
    folded = copied(captured(module, pictures()).graph_module)
    fold_batch_norms(folded)
    before = run_float64(folded, [pictures()])
    exact.forget(folded.graph)
    after = run_float64(folded, [pictures()])
    assert largest_difference(before, after) > 1e-9


def test_a_copied_graph_shares_its_weights_and_leaves_the_first_as_it_is():
    module = randomise_norms(_chain()).eval()
    graph = captured(module, pictures()).graph_module
    names = [node.name for node in graph.graph.nodes]
    second = copied(graph)
    assert {t.data_ptr() for t in second.state_dict().values()} <= {
        t.data_ptr() for t in graph.state_dict().values()
    }
    fold_batch_norms(second)
    assert [node.name for node in graph.graph.nodes] == names


def test_every_float_of_the_run_is_float64():
    graph = captured(Fn(lambda x: (x.half().float() * torch.ones(3, 1, 1)).sum(1)), pictures()).graph_module
    values = float64_values(graph, [pictures()])
    assert {value.dtype for value in values.values()} == {torch.float64}


@pytest.mark.parametrize("factor", [0.7 / 1.3, 2 / 3, 1 / 7])
def test_a_network_whose_constants_are_all_new_is_exported(factor, tmp_path):
    class Net(Rescaled):
        def forward(self, x):
            return torch.sigmoid(self.norm(x) * factor)

    result = export_model(randomise_norms(Net()).eval(), (pictures(),), tmp_path, name="m")
    assert result.report["parity"]["fold_float64"]["max_rel"] <= TOLERANCE


def test_a_wrong_fold_is_refused_although_it_rounds_to_the_right_files(tmp_path, monkeypatch):
    """The gate looks at the exact weights of the very graph: a shift far below float32's digits is seen."""
    from foldserve.models.export import steps

    def shifted(graph_module):
        report = fold_batch_norms(graph_module)
        node = next(n for n in graph_module.graph.find_nodes(op="get_attr") if "exact" in n.meta)
        lost = node.meta["exact"]
        assert lost.whole  # it is small; a remainder would be 2**24 times what it stands for
        lost.tensor.mul_(1 + 1e-9)
        return report

    monkeypatch.setattr(steps, "fold_batch_norms", shifted)
    with pytest.raises(ParityFailed, match="folding changed the answers"):
        export_model(randomise_norms(_chain()).eval(), (pictures(),), tmp_path, name="m")


class LogBuckets(nn.Module):
    """Positions in buckets that grow as logarithms, as DeBERTa has them: ceil() of numbers that should be whole."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 4)

    def forward(self, x):
        position = torch.arange(x.shape[1])
        share = torch.log(position.clamp(min=1) / 16) / torch.log(torch.tensor(31 / 16))
        bucket = torch.where(position <= 16, position.to(share.dtype), torch.ceil(share * 15) + 16)
        return x + self.table(bucket.long().clamp(0, 39))


def test_constant_behind_which_the_last_bit_decides_is_proved_with_its_last_bit(tmp_path):
    result = export_model(
        LogBuckets(), (torch.randn(2, 40, 4),), tmp_path, name="m", dynamic_axes={"x": {1: "t"}}
    )
    assert result.report["parity"]["fold_float64"]["max_rel"] <= TOLERANCE
