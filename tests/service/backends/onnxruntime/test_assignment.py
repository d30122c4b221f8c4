"""What is told of operators that a GPU session runs on the CPU."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

from foldserve.service.backends.onnxruntime.assignment import RECORD, on_the_cpu
from foldserve.service.backends.onnxruntime.cpu_session import _open
from tests.service.repositories import save_linear


def session_of(**kinds: Sequence[str]) -> Any:
    parts = [
        SimpleNamespace(
            ep_name=f"{name}ExecutionProvider",
            get_nodes=lambda kinds=kinds: [SimpleNamespace(op_type=kind) for kind in kinds],
        )
        for name, kinds in kinds.items()
    ]
    return SimpleNamespace(get_provider_graph_assignment_info=lambda: parts)


@pytest.mark.parametrize(
    ("kinds", "note"),
    [
        ({"CUDA": ["Conv", "Relu"]}, ""),
        (
            {"CUDA": ["Conv"], "CPU": ["Shape", "NonZero", "Shape"]},
            "3 of 4 operators run on the CPU: 2 Shape, 1 NonZero",
        ),
        (
            {"CPU": list("ABCDEFGHI")},
            "9 of 9 operators run on the CPU: 1 A, 1 B, 1 C, 1 D, 1 E, 1 F, 1 G, 1 H, ...",
        ),
    ],
)
def test_operators_on_the_cpu_are_told_by_kind_and_number(kinds: dict[str, list[str]], note: str) -> None:
    assert on_the_cpu(session_of(**kinds)) == note


def test_every_opened_file_can_be_asked(tmp_path: Path) -> None:
    session = _open(save_linear(tmp_path / "m.onnx"), [("CPUExecutionProvider", {})], 1)
    assert on_the_cpu(session) == "1 of 1 operators run on the CPU: 1 MatMul"


def test_session_that_kept_no_record_has_no_note(tmp_path: Path) -> None:
    options = ort.SessionOptions()
    assert RECORD == "session.record_ep_graph_assignment_info"
    path = str(save_linear(tmp_path / "m.onnx"))
    assert on_the_cpu(ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])) == ""
