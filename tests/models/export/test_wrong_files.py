"""The proof is worth what it catches: deliberate faults in written files. All: python -m tests.models.export.wrong."""

import operator

import pytest
import torch

from foldserve.models.export.writers.torchscript_writer import to_torchscript
from tests.models.export.wrong import in_graph
from tests.models.export.wrong.trial import Proved, Trial, _same, table

# Between them and the mlp: convolutions and padding, a recurrent layer, norms and attention, each precision and file.
TRIED = [("convnet", "fp16"), ("lstm", "bf16"), ("transformer", "bf16")]


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
    return Trial(Proved("mlp"), "fp32", tmp_path_factory.mktemp("mlp"), most=1)


def assert_all_caught(trial):
    verdicts = [*trial.torchscript(), *trial.onnx()]
    print(table(verdicts))
    assert [v for v in verdicts if v.what == "missed"] == []
    assert sum(v.what == "caught" for v in verdicts) >= 5 * len({v.file for v in verdicts})


@pytest.mark.parametrize(("name", "precision"), TRIED)
def test_every_fault_in_a_written_file_is_caught(name, precision, tmp_path):
    assert_all_caught(Trial(Proved(name), precision, tmp_path, most=1))


def test_every_fault_in_the_files_of_the_mlp_is_caught(mlp):
    assert_all_caught(mlp)


def test_a_fault_that_changes_nothing_is_told_by_running_it_in_float64(mlp, monkeypatch):
    def faults(graph_module, *_):
        first = next(iter(graph_module.graph.nodes)).name
        yield "none", first, in_graph._wrong(graph_module, first, lambda *_: None)

    monkeypatch.setattr(in_graph, "faults", faults)
    assert [v.what for v in mlp.torchscript()] == ["same"]


def test_another_file_of_the_same_function_is_caught_too(mlp, monkeypatch):
    """Two channels of a hidden layer swapped together with what reads them: no output shows it, but a layer does."""

    def swapped(graph_module):
        wrong = in_graph._wrong(graph_module, next(iter(graph_module.graph.nodes)).name, lambda *_: None)()
        names = [str(node.target) for node in wrong.graph.nodes if node.op == "get_attr"]
        weights = [operator.attrgetter(name)(wrong) for name in names]
        first, bias, second = (weights[index] for index in (0, 1, 2))
        with torch.no_grad():
            for tensor in (first, bias):
                tensor[[0, 1]] = tensor[[1, 0]]
            second[:, [0, 1]] = second[:, [1, 0]]
        return wrong

    monkeypatch.setattr(
        in_graph, "faults", lambda graph_module, *_: [("swap", "all", lambda: swapped(graph_module))]
    )
    assert [v.what for v in mlp.torchscript()] == ["caught"]


def test_a_fault_that_no_case_reaches_is_not_taken_for_one_that_changes_nothing():
    x = torch.rand(16, 3, dtype=torch.float64)
    assert _same((x,), (x * (1 + 1e-14),)) == "same"
    assert _same((x,), (x * (1 + 1e-9),)) == "missed"


def test_a_graph_that_is_made_wrong_is_a_copy(mlp):
    graph = mlp._files.graph_module
    before = to_torchscript(graph).state_dict()
    before = {name: value.clone() for name, value in before.items()}
    for _, _, make in in_graph.faults(graph, most=1):
        make()
    after = to_torchscript(graph).state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
