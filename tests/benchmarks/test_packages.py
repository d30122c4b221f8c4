"""The judge of published classes: what it calls right, refused and a fault, on networks made for the purpose."""

import re
from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from benchmarks.packages import trial
from benchmarks.packages.published_class import Inputs, PublishedClass, Size
from foldserve.models.export import ExportResult, export_model
from foldserve.models.export.process.suppress_output import suppress_output
from foldserve.models.export.writers.torchscript_writer import load_torchscript


class Steps(nn.Module):
    """Shape: in float (N, T, 4), out (N, T, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))


class BranchOnValues(Steps):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x[..., :3]


def _steps(rows: int, size: Size) -> Inputs:
    return (torch.randn(rows, *size, 4),)


def _published(build: Any) -> PublishedClass:
    return PublishedClass("made for this", "steps", build, _steps, ((6,), (1,), (9,)), {"x": {1: "steps"}})


def test_a_class_whose_files_answer_as_it_does_is_right() -> None:
    verdict = trial.tried(_published(Steps))
    assert (verdict.kind, verdict.compared) == ("right", 3), verdict.detail


def test_a_class_that_the_export_refuses_is_refused_with_the_reason() -> None:
    verdict = trial.tried(_published(BranchOnValues))
    assert verdict.kind == "refused"
    assert "sum" in verdict.detail


class Inverse(Steps):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.inv(super().forward(x).transpose(1, 2) @ super().forward(x) + 9 * torch.eye(3))


def test_a_class_of_which_one_file_can_be_written_is_judged_by_that_and_says_so() -> None:
    verdict = trial.tried(_published(Inverse))
    assert verdict.kind == "right", verdict.detail
    assert "model.onnx not written" in verdict.detail


def test_a_class_that_cannot_be_built_is_a_fault() -> None:
    def build() -> nn.Module:
        raise ValueError("no such configuration")

    assert trial.tried(_published(build)).detail == "ValueError: no such configuration"


class FewSteps(Steps):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.shape[1] > 5 else x[..., :3]


def test_sizes_that_the_files_do_not_take_are_not_counted_as_compared() -> None:
    verdict = trial.tried(_published(FewSteps))
    assert (verdict.kind, verdict.compared) == ("right", 2), verdict.detail
    assert "narrowed" in verdict.detail


class HeadOfZeros(Steps):
    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)


def test_a_head_of_zeros_is_drawn_so_that_a_fault_can_be_seen() -> None:
    network = HeadOfZeros()
    trial.draw_weights(network)
    assert float(network(torch.ones(1, 1, 4)).detach().std()) > 0.01


class AlwaysOne(Steps):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0 + 1


def test_a_network_that_answers_one_number_proves_nothing_and_is_a_fault() -> None:
    assert "one number everywhere" in trial.tried(_published(AlwaysOne)).detail


def _spoil_onnx(result: ExportResult) -> None:
    model = onnx.load(result.onnx_path)
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.1, weight.name))
    onnx.save(model, result.onnx_path)


def _spoil_torchscript(result: ExportResult) -> None:
    scripted = load_torchscript(result.torchscript_path)
    with torch.no_grad():
        next(scripted.buffers()).mul_(1.1)
    with suppress_output():
        scripted.save(str(result.torchscript_path))


@pytest.mark.parametrize(("file", "spoil"), [("model.onnx", _spoil_onnx), ("model.pt", _spoil_torchscript)])
def test_a_file_with_another_weight_is_a_fault_that_names_the_file(
    file: str, spoil: Callable[[ExportResult], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_a_wrong_file(*given: Any, **named: Any) -> ExportResult:
        result = export_model(*given, **named)
        spoil(result)
        return result

    monkeypatch.setattr(trial, "export_model", with_a_wrong_file)
    verdict = trial.tried(_published(Steps))
    assert verdict.kind == "fault"
    assert re.fullmatch(
        rf"{re.escape(file)} answers otherwise for 1 rows of \(6,\): [1-9]e-0[12] of 2e-03", verdict.detail
    )
