"""Models whose outputs do not count rows, or that mix rows, are not served together with others' requests."""

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from foldserve.service.backends import LoadError, Session, SessionOptions
from foldserve.service.repository.artifact import read_artifact
from foldserve.service.repository.loading import load_model
from tests.service.repositories import WEIGHT, config, save_exported, save_onnx

ONE_THREAD = SessionOptions(threads=1)
UNBATCHED = "max_batch_size: 0"
Node = helper.make_node


def load_onnx(
    folder: Path,
    nodes: list[Any],
    rows: tuple[str | None, str | None] = (None, None),
    outputs: tuple[tuple[int, list[Any]], ...] = ((TensorProto.FLOAT, [4]),),
    constants: dict[str, np.ndarray] | None = None,
    keys: dict[str, Any] | None = None,
) -> Session:
    """Load a model of x FP32 [rows, 4] to y (and z, ...), whose dim 0 has the other name."""
    save_onnx(
        folder / "model.onnx",
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows[0], 4])],
        [
            helper.make_tensor_value_info(name, kind, [rows[1], *dims])
            for name, (kind, dims) in zip("yzw", outputs, strict=False)
        ],
        constants or {},
    )
    settings = config(**(keys or {}))
    return load_model(read_artifact(folder, "m", "1", settings), settings, "cpu", ONE_THREAD)


INDICES = ((TensorProto.INT64, [2]),)
NONZERO = [Node("NonZero", ["x"], ["i"]), Node("Transpose", ["i"], ["y"], perm=[1, 0])]


def chosen_rows(threshold: float) -> list[Any]:
    """Those rows whose sum is larger."""
    return [
        Node("ReduceSum", ["x", "axis"], ["sums"], keepdims=0),
        Node("Constant", [], ["least"], value_float=threshold),
        Node("Greater", ["sums", "least"], ["good"]),
        Node("Compress", ["x", "good"], ["y"], axis=0),
    ]


AXIS_1 = {"axis": np.array([1], np.int64)}


@pytest.mark.parametrize("names", [(None, None), ("N", "N"), ("N", "K"), ("N", None), (None, "K")])
def test_onnx_file_whose_output_counts_what_it_found_is_refused_whatever_its_dims_are_named(
    tmp_path: Path, names: tuple[str | None, str | None]
) -> None:
    with pytest.raises(LoadError, match=UNBATCHED):
        load_onnx(tmp_path, NONZERO, names, INDICES)


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.5, 3.5, 100.0, -100.0, -3.5])
def test_onnx_file_that_leaves_rows_out_is_refused_at_whatever_threshold(
    tmp_path: Path, threshold: float
) -> None:
    with pytest.raises(LoadError, match=UNBATCHED):
        load_onnx(tmp_path, chosen_rows(threshold), constants=AXIS_1)


def test_dims_that_are_named_apart_are_believed_where_an_operator_sizes_its_output_by_values(
    tmp_path: Path,
) -> None:
    """No rows that are tried are as large."""
    with pytest.raises(
        LoadError,
        match=r"dim 0 of output 'y' is named 'kept', that of the inputs 'rows', .* \(Compress\).*max_batch_size: 0",
    ):
        load_onnx(tmp_path, chosen_rows(-1e30), ("rows", "kept"), constants=AXIS_1)


def test_dims_that_a_converter_named_apart_are_served_where_sizes_follow_from_sizes(tmp_path: Path) -> None:
    session = load_onnx(tmp_path, [Node("Relu", ["x"], ["y"])], ("batch", "Reluoutput_dim_0"))
    assert session.run({"x": np.ones((3, 4), np.float32)})["y"].shape == (3, 4)


MIXING: dict[str, tuple[list[Any], dict[str, np.ndarray]]] = {
    "softmax over the rows": ([Node("Softmax", ["x"], ["y"], axis=0)], {}),
    "minus the mean of the rows": (
        [Node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1), Node("Sub", ["x", "m"], ["y"])],
        {},
    ),
    "running sum over the rows": (
        [Node("CumSum", ["x", "axis"], ["y"])],
        {"axis": np.array(0, np.int64)},
    ),
    "batch norm of the batch": (
        [
            Node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
            Node("Sub", ["x", "m"], ["d"]),
            Node("Mul", ["d", "d"], ["q"]),
            Node("ReduceMean", ["q"], ["v"], axes=[0], keepdims=1),
            Node("Add", ["v", "eps"], ["ve"]),
            Node("Sqrt", ["ve"], ["s"]),
            Node("Div", ["d", "s"], ["y"]),
        ],
        {"eps": np.array(1e-5, np.float32)},
    ),
    "the rows backwards": (
        [
            Node("Slice", ["x", "from", "to", "axis", "step"], ["y"]),
        ],
        {
            "from": np.array([-1], np.int64),
            "to": np.array([-(2**60)], np.int64),
            "axis": np.array([0], np.int64),
            "step": np.array([-1], np.int64),
        },
    ),
    "the first row for all": (
        [
            Node("Gather", ["x", "first"], ["g"], axis=0),
            Node("Shape", ["x"], ["s"]),
            Node("Expand", ["g", "s"], ["y"]),
        ],
        {"first": np.array([0], np.int64)},
    ),
    "rows in order of size": (
        [
            Node("Shape", ["x"], ["s"]),
            Node("Gather", ["s", "first"], ["n"], axis=0),
            Node("TopK", ["x", "n"], ["y", "places"], axis=0),
        ],
        {"first": np.array([0], np.int64)},
    ),
}


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.parametrize("keys", [{}, {"warmup": False}, {"batch_buckets": [4]}, {"batch_buckets": [2, 4]}])
def test_model_that_mixes_rows_is_refused(tmp_path: Path, name: str, keys: dict[str, Any]) -> None:
    nodes, constants = MIXING[name]
    with pytest.raises(LoadError, match=rf"mixes rows: output 'y'.*{UNBATCHED}"):
        load_onnx(tmp_path, nodes, constants=constants, keys=keys)


class Found(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x > 0).nonzero()


class Distinct(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.unique_consecutive(x, dim=0)


class Finite(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[torch.isfinite(x).all(1)]


class Largest(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[x.sum(1).topk(min(8, x.size(0)))[1]]


class Transposed(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.t()


class Halves(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, 2)


class Summed(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(0, keepdim=True)


class TwoRowsAtMost(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:2]


class Trained(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(4, track_running_stats=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


def load_scripted(
    folder: Path, module: torch.nn.Module, datatype: str = "FP32", dims: str = "-1", **keys: Any
) -> Session:
    path = folder / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.13 calls TorchScript deprecated
        torch.jit.script(module).save(str(path))
    signature = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": datatype, "shape": [-1, -1] if dims else [-1]}],
    }
    settings = config(signature=signature, **keys)
    return load_model(read_artifact(folder, "m", "1", settings), settings, "cpu", ONE_THREAD)


@pytest.mark.parametrize(
    "module", [Found(), Distinct(), Finite(), Largest(), Transposed(), Halves(), Summed(), TwoRowsAtMost()]
)
@pytest.mark.parametrize("warmup", [True, False])
def test_torchscript_file_whose_output_does_not_count_rows_is_refused(
    tmp_path: Path, module: torch.nn.Module, warmup: bool
) -> None:
    datatype = "INT64" if isinstance(module, Found) else "FP32"
    with pytest.raises(LoadError, match=UNBATCHED):
        load_scripted(tmp_path, module, datatype, warmup=warmup)


def test_torchscript_file_that_norms_by_the_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=f"on them in a batch|mixes rows|{UNBATCHED}|takes no rows"):
        load_scripted(tmp_path, Trained().train())


class Noisy(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


class Rounded(torch.nn.Module):
    """As dynamic quantisation: by the largest value of the whole batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().max() / 24
        return (x / scale.clamp(min=1e-9)).round() * scale


class Padded(torch.nn.Module):
    """As many columns as the widest row of the batch has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        width = int((x > 0).sum(1).max().item()) + 1
        return torch.zeros(x.size(0), width)


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (Noisy(), "gives other answers each time to the same rows"),
        (Rounded(), "when it is run with others"),
        (Padded(), ""),
        (torch.nn.Linear(4, 4), ""),
    ],
)
def test_model_that_counts_rows_is_served_and_doubts_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, module: torch.nn.Module, told: str
) -> None:
    with caplog.at_level(logging.WARNING):
        session = load_scripted(tmp_path, module)
    assert len(session.run({"x": np.ones((5, 4), np.float32)})["y"]) == 5
    assert told in caplog.text
    assert bool(caplog.text) == bool(told)


def test_exported_model_that_mixes_rows_is_refused_without_a_warm_up_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mixing:
        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            y = inputs["x"] @ WEIGHT
            return {"y": y if len(y) == 7 else y - y.mean(0)}

    save_exported(tmp_path)
    monkeypatch.setattr("foldserve.service.repository.loading.load_session", lambda *_: Mixing())
    settings = config(warmup=False)
    with pytest.raises(LoadError, match="mixes rows"):
        load_model(read_artifact(tmp_path, "linear", "1", settings), settings, "cpu", ONE_THREAD)


def test_model_is_run_with_one_two_three_and_the_most_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "1").mkdir()
    save_exported(tmp_path / "1")
    ran: set[int] = set()

    class Watched:
        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            ran.add(len(inputs["x"]))
            return {"y": inputs["x"] @ WEIGHT}

    monkeypatch.setattr("foldserve.service.repository.loading.load_session", lambda *_: Watched())
    settings = config(warmup=False, max_batch_size=21)
    load_model(read_artifact(tmp_path / "1", "linear", "1", settings), settings, "cpu", ONE_THREAD)
    assert {1, 2, 3, 21} <= ran
