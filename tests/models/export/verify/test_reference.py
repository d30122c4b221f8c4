"""The inputs that every file is proved on: what the network takes, met widely, and said where it is not."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from foldserve.models.errors import BadExample, ParityFailed
from foldserve.models.export import export_model, steps
from foldserve.models.export.capture.outputs import Output, Outputs
from foldserve.models.export.cli.summary import table
from foldserve.models.export.network.example.example import read_example
from foldserve.models.export.network.module_copy import eval_copy
from foldserve.models.export.network.sampling.source import with_source
from foldserve.models.export.verify.reference import EagerReference
from foldserve.models.export.writers.torchscript_writer import to_torchscript
from tests.models.export.support import Fn


def reference_of(module: nn.Module, *inputs: Tensor, axes: dict[str, dict[int, str]] | None = None) -> Any:
    copied = eval_copy(module)
    example = with_source(copied, read_example(copied.module, inputs, axes, None))
    return EagerReference(copied, example, Outputs(("y",), (Output(0, 0),), ())), example


class Rows(nn.Module):
    """An embedding of what a function makes of the input."""

    def __init__(self, numbers: int, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.function = nn.Embedding(numbers, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.table(self.function(x))


def test_the_example_itself_is_always_among_the_cases():
    x = torch.tensor([[7.0, -1e9], [torch.nan, 2.0]])
    reference, _ = reference_of(Fn(lambda x: x * 2), x)
    assert torch.equal(reference.cases()[0].inputs[0].nan_to_num(5), x.nan_to_num(5))


def test_the_cases_have_several_spreads():
    reference, _ = reference_of(Fn(lambda x: x * 2), torch.randn(2, 100))
    spreads = [float(case.inputs[0].std()) for case in reference.cases() if case.fresh]
    assert max(spreads) > 2
    assert min(spreads) < 0.2


def test_a_network_that_takes_only_some_combinations_is_proved_on_the_rows_of_its_example_and_says_so():
    rows = torch.tensor([[8, 8], [4, 0], [6, 4]])

    def known(x: Tensor) -> Tensor:
        if not bool((x[:, None] == rows).all(-1).any(-1).all()):
            raise IndexError("no such row")
        return x * 2.0

    reference, _ = reference_of(Fn(known), rows)
    for case in reference.cases():
        assert {tuple(row) for row in case.inputs[0].tolist()} <= {tuple(row) for row in rows.tolist()}
    (told,) = reference.warnings
    assert "IndexError" in told
    assert "the example's own rows" in told


def test_a_network_that_takes_only_some_values_is_proved_on_those_of_its_example_and_says_so():
    reference, _ = reference_of(
        Rows(3, lambda x: torch.where(x == 700, 2, x)), torch.tensor([[0, 700], [700, 1]])
    )
    assert {v for case in reference.cases() for v in case.inputs[0].unique().tolist()} == {0, 1, 700}
    assert "values at each place" in reference.warnings[0]


def test_inputs_that_give_no_finite_answer_are_drawn_nearer_to_the_example():
    reference, _ = reference_of(Fn(torch.acos), torch.rand(4, 6) * 2 - 1)
    assert all(bool(case.wanted[0].isfinite().all()) for case in reference.cases())
    assert "not finite" in reference.warnings[0]


def test_a_network_without_a_finite_answer_says_that_nothing_is_compared():
    reference, _ = reference_of(Fn(lambda x: x * torch.nan), torch.randn(2, 3))
    reference.cases()
    assert "output 0" in reference.warnings[0]


def test_nothing_is_told_of_an_example_that_shows_enough():
    reference, _ = reference_of(Fn(lambda x: x * 2), torch.randn(2, 3))
    reference.cases()
    assert reference.warnings == ()


def test_a_network_that_fails_on_its_own_rows_says_how_many_they_were():
    def no_single_row(x: Tensor) -> Tensor:
        if x.shape[0] == 1:
            raise ValueError("too few")
        return x * 2

    reference, _ = reference_of(Fn(no_single_row), torch.randn(2, 3))
    with pytest.raises(BadExample, match=r"shapes \[\(1, 3\)\].*too few"):
        reference.cases()


class Bytes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.float().flatten(1) / 255)


def test_a_picture_left_empty_is_proved_on_bytes_of_all_values(tmp_path):
    result = export_model(Bytes(), (torch.zeros(2, 3, 4, 4, dtype=torch.uint8),), tmp_path, name="m")
    with np.load(result.reference_path) as reference:
        assert (reference["input.x"].min(), reference["input.x"].max()) == (0, 255)
    assert "warnings" not in result.report


def test_a_file_that_is_wrong_for_all_bytes_but_those_of_the_example_is_caught(tmp_path, monkeypatch):
    write = to_torchscript

    def squared(graph_module: fx.GraphModule) -> torch.jit.ScriptModule:
        wrong = copy.deepcopy(graph_module)
        x = next(node for node in wrong.graph.nodes if node.op == "placeholder")
        with wrong.graph.inserting_after(x):
            square = wrong.graph.call_function(torch.ops.aten.mul.Tensor, (x, x))
        square.meta = dict(x.meta)
        x.replace_all_uses_with(square, delete_user_cb=lambda user: user is not square)
        return write(wrong)

    monkeypatch.setattr(steps, "to_torchscript", squared)
    with pytest.raises(ParityFailed):
        export_model(Bytes(), (torch.zeros(2, 3, 4, 4, dtype=torch.uint8),), tmp_path, name="m")


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_wide_unsigned_inputs_are_exported_with_both_ends_of_what_is_shown(dtype, tmp_path):
    shown = torch.tensor([[0, 60000, 5, 7], [9, 1, 65535, 8]]).to(dtype)
    net = nn.Sequential(Fn(lambda x: x.float()), nn.Linear(4, 3))
    report = export_model(net, (shown,), tmp_path, name="m").report
    assert report["parity"]["onnx"]["max_rel"] <= report["parity"]["onnx"]["tolerance"]


class Attention(nn.Module):
    """Self-attention over tokens, with a mask of those that count, or that do not; causal or not."""

    def __init__(self, *, ignored: bool, causal: bool) -> None:
        super().__init__()
        self.table, self.ignored, self.causal = nn.Embedding(50, 8), ignored, causal

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x, length = self.table(ids)[:, None], ids.shape[1]
        counts = mask[:, None, None, :].bool()
        if self.ignored:
            counts = ~counts
        if self.causal:
            counts = counts & torch.ones(length, length, dtype=torch.bool).tril()
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=counts)[:, 0]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("ignored", "mask"),
    [
        (False, torch.tensor([[1] * 8, [1] * 5 + [0] * 3])),
        (False, torch.ones(2, 8, dtype=torch.int64)),
        (False, torch.tensor([[1] * 7 + [0], [1] * 5 + [0] * 3], dtype=torch.bool)),
        (True, torch.zeros(2, 8, dtype=torch.bool)),
        (True, torch.tensor([[0] * 8, [0] * 5 + [1] * 3], dtype=torch.bool)),
    ],
)
def test_no_row_of_attention_is_ever_masked_wholly(ignored, mask, causal):
    reference, _ = reference_of(
        Attention(ignored=ignored, causal=causal),
        torch.randint(0, 50, (2, 8)),
        mask,
        axes={"ids": {1: "length"}, "mask": {1: "length"}},
    )
    cases = reference.cases([{"length": 1}, {"length": 16}])
    assert {1, 8, 16} <= {case.inputs[0].shape[1] for case in cases}
    for case in cases:
        counts = case.inputs[1].bool() != ignored
        assert bool(counts.any(1).all())
        if causal:
            assert bool(counts[:, 0].all())
    assert any(bool((case.inputs[1] != case.inputs[1][:1]).any()) for case in cases)


def test_what_is_not_proved_is_told_in_the_manifest_and_the_table(tmp_path):
    result = export_model(Rows(9, lambda x: x), (torch.full((2, 4), 3),), tmp_path, name="m")
    (told,) = result.report["warnings"]
    assert "every value of the input 'x' is 3" in told
    assert told in table(result)
