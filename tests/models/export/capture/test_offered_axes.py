"""Networks whose rows belong together: exported in their own shapes, and told what else a refusal could have been."""

import pytest
import torch
from torch import Tensor, nn

from foldserve.models.errors import BadExample, NotCapturable
from foldserve.models.export import export_model
from foldserve.models.export.capture.offered_axes import without_refused
from foldserve.models.export.network.example.example import read_example
from foldserve.models.export.network.module_copy import eval_copy
from tests.models.export.support import Fn


class BatchNorm(nn.Module):
    """A norm with the statistics of the batch: (rows, 5) in, (rows, 3) out."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm = nn.Linear(5, 3), nn.BatchNorm1d(3, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.mix(x))


class Graph(nn.Module):
    """A step of message passing: (nodes, 5) and the ends of edges (2, edges) in, (nodes, 3) out."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(5, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        source, target = edge_index
        h = self.mix(x)
        return torch.zeros_like(h).index_add(0, target, h[source])


def together(module: nn.Module, *inputs: Tensor, folder, **options):
    return export_model(module, inputs, folder, name="m", rows="together", **options).report


def fixed_axes(module: nn.Module, *inputs: Tensor, axes=None) -> list[set[int]]:
    """Per input, the axes that stay dynamic where nothing but dim 0 is offered."""
    copied = eval_copy(module)
    example = without_refused(copied, read_example(copied.module, inputs, axes, None, together=True))
    return [set(mine) for mine in example.axes]


def test_a_norm_of_the_batch_is_proved_at_every_number_of_rows_that_it_takes(tmp_path):
    report = together(BatchNorm(), torch.randn(4, 5), folder=tmp_path)
    assert (report["rows"], report["max_batch_size"]) == ("together", 0)
    # One row has no deviation: the network itself refuses it.
    assert report["dims"] == {"batch": {"min": 2, "max": None, "multiple_of": 1}}
    for form in ("torchscript", "onnx", "fold_float64"):
        assert {2, 4, 7} <= set(report["parity"][form]["rows_tried"])


def test_a_graph_is_exported_for_any_number_of_nodes_and_edges(tmp_path):
    ends = torch.tensor([[0, 1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 0, 3]])
    axes = {"x": {0: "nodes"}, "edge_index": {1: "edges"}}
    report = together(Graph(), torch.randn(6, 5), ends, folder=tmp_path, dynamic_axes=axes)
    assert [spec["shape"] for spec in report["inputs"]] == [[-1, 5], [2, -1]]
    assert {name: (dim["min"], dim["max"]) for name, dim in report["dims"].items()} == {
        "nodes": (1, None),
        "edges": (1, None),
    }


def test_dim_0_varies_where_the_network_takes_other_sizes_of_it_and_else_is_the_example_s():
    picture, ends = nn.Conv2d(3, 4, 3), torch.zeros(2, 7, dtype=torch.long)
    assert fixed_axes(picture, torch.randn(3, 8, 8)) == [set()]
    assert fixed_axes(picture, torch.randn(3, 8, 8), axes={"input": {1: "height"}}) == [{1}]
    assert fixed_axes(picture, torch.randn(1, 3, 8, 8)) == [{0}]
    assert fixed_axes(Graph(), torch.randn(6, 5), ends) == [{0}, set()]
    assert fixed_axes(nn.Linear(5, 3), torch.randn(5)) == [set()]
    assert fixed_axes(Fn(torch.sin), torch.tensor(2.0)) == [set()]


def test_an_axis_of_size_1_that_was_only_offered_stays_as_the_user_gave_it():
    copied = eval_copy(Fn(lambda x: x.view(1, 4).sum()))
    example = without_refused(
        copied, read_example(copied.module, (torch.randn(1, 4),), None, None, together=True)
    )
    assert example.tensors[0].shape == (1, 4)


def test_a_loop_over_dim_0_is_exported_for_the_example_s_size_and_says_so(tmp_path):
    module = Fn(lambda x: torch.stack([x[i] * (i + 1) for i in range(x.shape[0])]).sum(0))
    report = together(module, torch.randn(3, 4), folder=tmp_path)
    assert report["inputs"][0]["shape"] == [3, 4]
    assert "fixed at its size in the example" in report["narrowed"][0]["reason"]


@pytest.mark.parametrize(
    ("module", "example"),
    [
        (BatchNorm(), torch.randn(4, 5)),
        (Fn(lambda x: x.mean()), torch.randn(4, 5)),
        (Fn(lambda x: x.softmax(0)), torch.randn(4, 5)),
        (Fn(lambda x: x.sum(0)), torch.randn(4, 5)),
        (nn.Conv2d(3, 4, 3), torch.randn(3, 8, 8)),
        (Fn(torch.sin), torch.tensor(2.0)),
    ],
)
def test_the_refusal_of_a_network_that_does_not_answer_row_by_row_names_the_option(tmp_path, module, example):
    with pytest.raises((NotCapturable, BadExample), match="--rows together"):
        export_model(module, (example,), tmp_path, name="m")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_keeps_state_is_refused_also_where_rows_belong_together(tmp_path):
    class Counter(nn.Module):
        count = 0.0

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1.0
            return x.sum() * self.count

    with pytest.raises(NotCapturable):
        together(Counter(), torch.randn(4, 5), folder=tmp_path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rows": "apart"}, "rows is 'apart'; expected one of independent, together"),
        ({"rows": "together", "max_batch_size": 8}, "max_batch_size is 8 and rows is 'together'"),
        ({"max_batch_size": 0}, "--rows together"),
    ],
)
def test_words_that_contradict_each_other_are_refused_before_anything_runs(tmp_path, options, says):
    with pytest.raises(BadExample, match=says):
        export_model(nn.Linear(5, 3), (torch.randn(2, 5),), tmp_path, name="m", **options)
