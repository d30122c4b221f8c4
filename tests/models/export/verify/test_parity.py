"""Each gate, with a fault put in on purpose: what it says, and which layer it names."""

import math
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foldserve.models.errors import BadExample, NotCapturable, ParityFailed
from foldserve.models.export import export_model, steps
from foldserve.models.export.fold import fold_batch_norms
from foldserve.models.export.verify import check_files
from foldserve.models.export.writers import torchscript_source
from foldserve.models.export.writers.onnx_writer import run_onnx, to_onnx
from tests.models.export.support import ConvNorm, Fn, pictures
from tests.models.support import randomise_norms


class Deep(nn.Module):
    """Three convolutions with norms, an activation behind each."""

    def __init__(self):
        super().__init__()
        self.first = ConvNorm()
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.third = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))

    def forward(self, x):
        y = torch.relu(self.second(self.first(x)))
        return torch.sigmoid(self.third(y))


def export(module, tmp_path, *inputs, **options):
    return export_model(randomise_norms(module), inputs or (pictures(),), tmp_path, name="m", **options)


def spoil(graph_module, target, number, factor=1.5):
    """Multiply the weight of the number-th call of target in graph_module."""
    node = [n for n in graph_module.graph.nodes if n.target is target][number]
    weight = node.args[1]
    value = operator.attrgetter(weight.target)(graph_module)
    graph_module.register_buffer("spoiled", value * factor)
    with graph_module.graph.inserting_before(node):
        node.replace_input_with(weight, graph_module.graph.get_attr("spoiled"))
    graph_module.recompile()


def test_a_wrong_fold_is_caught_in_float64_and_its_layer_named(tmp_path, monkeypatch):
    def wrong_fold(graph_module):
        report = fold_batch_norms(graph_module)
        spoil(graph_module, torch.ops.aten.conv2d.default, 1)
        return report

    monkeypatch.setattr(steps, "fold_batch_norms", wrong_fold)
    # second.0 differs on purpose (it now gives what second.1 gave); the relu behind it is the first that must
    # agree but both are of one unbroken chain to the output, so the convolution is named.
    with pytest.raises(
        ParityFailed, match=r"folding changed the answers .*First layer .*: second.0 \(aten.conv2d\)"
    ):
        export(Deep(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_torchscript_file_is_caught_and_its_layer_named(tmp_path, monkeypatch):
    right = torchscript_source._operator_call

    def wrong(node, target, names, device):
        text = right(node, target, names, device)
        is_second = target is torch.ops.aten.conv2d.default and "second" in str(node.meta["nn_module_stack"])
        return f"({text}) * 1.01" if is_second else text

    monkeypatch.setattr(torchscript_source, "_operator_call", wrong)
    with pytest.raises(
        ParityFailed,
        match=r"the TorchScript file .*output 'y', 2 rows.* tolerance 1.0e-04. .*second.0 \(aten.conv2d\)",
    ):
        export(Deep(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_onnx_file_is_caught_and_its_layer_named(tmp_path, monkeypatch):
    def wrong(captured, opset=None):
        written = to_onnx(captured, opset)
        sigmoid = next(node for node in written.model.graph.node if node.op_type == "Sigmoid")
        sigmoid.op_type = "HardSigmoid"
        return written

    monkeypatch.setattr(steps, "to_onnx", wrong)
    with pytest.raises(
        ParityFailed, match=r"the ONNX file .*First layer whose output differs: sigmoid \(aten.sigmoid\)"
    ):
        export(Deep(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_run_is_told_with_the_shapes(tmp_path, monkeypatch):
    def broken(session, inputs):
        if len(inputs[0]) == 7:
            raise RuntimeError("no kernel")
        return run_onnx(session, inputs)

    monkeypatch.setattr(check_files, "run_onnx", broken)
    with pytest.raises(
        ParityFailed, match=r"ONNX file fails on inputs of the shapes \[\(7, 3, 8, 8\)\].*no kernel"
    ):
        export(ConvNorm(), tmp_path)


MIXERS = {
    "batch statistics": (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        r"row 0 alone and in a batch of 7 differ .*first at 1 \(aten.sub\).*Use running statistics",
    ),
    "training mode in forward": (
        Fn(lambda x: F.batch_norm(x, torch.zeros(3), torch.ones(3), training=True)),
        r"the answer for a row depends on the other rows",
    ),
    "mean over rows": (Fn(lambda x: x - x.mean(0, keepdim=True)), r"first at sub \(aten.sub\)"),
    "rows in dim 1": (nn.RNN(8, 8), r"rows in dim 0|expected dim 0"),
}


@pytest.mark.parametrize("case", MIXERS)
def test_a_network_that_mixes_rows_is_refused_with_the_layer(case, tmp_path):
    module, message = MIXERS[case]
    inputs = (torch.randn(2, 5, 8),) if case == "rows in dim 1" else (pictures(),)
    with pytest.raises(NotCapturable, match=message):
        export(module, tmp_path, *inputs)


def test_batch_statistics_of_one_row_alone_or_of_a_weight_are_fine(tmp_path):
    class Standardised(nn.Conv2d):
        def forward(self, x):
            flat = self.weight.reshape(1, self.out_channels, -1)
            return self._conv_forward(
                x, F.batch_norm(flat, None, None, training=True).reshape_as(self.weight), None
            )

    report = export(
        nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4), nn.InstanceNorm2d(4)), tmp_path
    ).report
    assert (report["fold"]["found"], report["fold"]["folded"]) == (1, 1)


def test_a_network_that_answers_differently_in_large_batches_is_refused(tmp_path):
    class Sometimes(nn.Module):
        def forward(self, x):
            return x * 2 if x.shape[0] < 20 else x * 3

    with pytest.raises(NotCapturable, match=r"number of rows|depends on its batch"):
        export(Sometimes(), tmp_path)


def test_a_network_with_hidden_state_is_refused(tmp_path):
    calls = []

    def count(x):
        calls.append(1)
        return x * len(calls)

    with pytest.raises(NotCapturable, match="differs between two runs on the same inputs"):
        export(Fn(count), tmp_path)


def test_a_squeeze_that_loses_a_single_row_is_refused_with_the_mend(tmp_path):
    with pytest.raises(BadExample, match=r"for 1 rows .* the shape \(3,\) as output 0.*name the dim"):
        export(Fn(lambda x: x.mean((2, 3)).squeeze()), tmp_path)


def test_a_network_that_fails_on_one_row_is_told_so(tmp_path):
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(
        BadExample, match=r"with the shapes \[\(1, 3, 8, 8\)\]: ValueError: Expected more than 1"
    ):
        export(module, tmp_path)


def test_values_that_are_not_finite_must_agree_and_then_pass(tmp_path):
    report = export(Fn(lambda x: x.sqrt()), tmp_path).report["parity"]
    assert math.isfinite(report["onnx"]["max_rel"])
