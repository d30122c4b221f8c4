"""Dims whose sizes are bound, to each other or to a range, on whole servers: from an ONNX file, from an export, from
config.yaml."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from foldserve.models.export import export_model
from tests.e2e.server_process import ServerProcess, serving

pytestmark = pytest.mark.e2e


class Masked(torch.nn.Module):
    """The sum of the ids that the mask lets pass."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (ids * mask).sum(1)


class LastSteps(torch.nn.Module):
    """The mean of the last 64 steps, by a branch that only one side of is in the files."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] > 64:
            x = x[:, -64:]
        return x.mean(1)


class Steps(torch.nn.Module):
    """The steps between points, each weighted."""

    def forward(self, points: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return ((points[:, 1:] - points[:, :-1]) * weights).sum(1)


def bare_onnx(path: Path, *dims: tuple[Any, Any]) -> None:
    """ids * mask, with these names of the inputs' dims."""
    path.parent.mkdir(parents=True)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(of_one))
        for name, of_one in zip(("ids", "mask"), dims, strict=True)
    ]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", None])
    graph = helper.make_graph([helper.make_node("Mul", ["ids", "mask"], ["y"])], "g", inputs, [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    bare_onnx(folder / "bare" / "1" / "model.onnx", ("N", "seq"), ("N", "seq"))
    bare_onnx(folder / "free" / "1" / "model.onnx", ("N", "a"), ("N", "b"))
    bare_onnx(folder / "nameless" / "1" / "model.onnx", ("N", "?"), ("N", "?"))
    bare_onnx(folder / "mixed" / "1" / "model.onnx", ("N", "N"), ("N", "seq"))
    example = (torch.ones(2, 5), torch.ones(2, 5))
    axes = {"ids": {1: "seq"}, "mask": {1: "seq"}}
    export_model(Masked().eval(), example, folder, name="exported", version=1, dynamic_axes=axes)
    shutil.copytree(folder / "exported", folder / "scripted")
    manifest = folder / "scripted" / "1" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "name": "scripted"}))
    (folder / "scripted" / "config.yaml").write_text("backend: torchscript\n")
    x = torch.randn(2, 12, 3)
    export_model(LastSteps(), (x,), folder, name="bounded", dynamic_axes={"x": {1: "length"}})
    steps = (torch.ones(2, 6), torch.ones(2, 5))
    axes = {"points": {1: "points"}, "weights": {1: "steps"}}
    export_model(Steps(), steps, folder, name="linked", dynamic_axes=axes)
    (folder / "stated" / "1").mkdir(parents=True)
    shutil.copy(folder / "exported" / "1" / "model.pt", folder / "stated" / "1" / "model.pt")
    (folder / "stated" / "config.yaml").write_text(
        "backend: torchscript\nsignature:\n"
        "  inputs: [{name: ids, datatype: FP32, shape: [-1, seq]}, {name: mask, datatype: FP32, shape: [-1, seq]}]\n"
        "  outputs: [{name: y, datatype: FP32, shape: [-1]}]\n"
    )
    return folder


def ask(server: ServerProcess, model: str, ids: int, mask: int, query: str = "") -> httpx.Response:
    """One row of ones, of these lengths."""
    body = {"inputs": {"ids": [[1.0] * ids], "mask": [[1.0] * mask]}}
    return server.post(f"/predict/{model}{query}", json=body)


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(repository, tmp_path_factory.mktemp("server") / "output") as running:
        running.wait_until("/v2/health/live", 200)
        for model in ("bare", "free", "nameless", "exported", "scripted", "stated"):
            running.until(lambda name=model: ask(running, name, 2, 2).status_code == 200)
        yield running


@pytest.mark.parametrize("query", ["", "?version=1"])
@pytest.mark.parametrize("model", ["bare", "exported", "scripted", "stated"])
def test_lengths_that_must_be_equal_are_compared(server: ServerProcess, model: str, query: str) -> None:
    for ids, mask, status in ((3, 3, 200), (3, 2, 400), (3, 1, 400), (1, 3, 400), (1, 1, 200)):
        answer = ask(server, model, ids, mask, query)
        assert answer.status_code == status, answer.text
        if status == 400:
            assert answer.json()["code"] == "bad_tensor"
            assert f"dim 1 is {mask}, and dim 1 of input 'ids' is {ids}" in answer.json()["error"]


@pytest.mark.parametrize("model", ["free", "nameless"])
def test_dims_of_other_names_or_of_none_are_not_compared(server: ServerProcess, model: str) -> None:
    answer = ask(server, model, 3, 1)
    assert (answer.status_code, answer.json().get("outputs")) == (200, {"y": [[1.0, 1.0, 1.0]]})


def test_model_whose_rows_are_another_dim_too_is_not_served_and_says_why(server: ServerProcess) -> None:
    why = "dim 1 of input 'ids' is named 'N', as dim 0 of input 'ids' is"
    assert why in server.output
    assert ask(server, "mixed", 1, 1).status_code in (404, 503)


def steps_body(kind: str, length: int) -> dict[str, Any]:
    """Two rows of so many steps of three numbers, as httpx sends them."""
    x = np.ones((2, length, 3), "f4")
    if kind == "json":
        return {"json": {"inputs": x.tolist()}}
    if kind == "npy":
        file = io.BytesIO()
        np.save(file, x)
        return {"content": file.getvalue(), "headers": {"Content-Type": "application/x-npy"}}
    shape = {"Content-Type": "application/octet-stream", "X-Tensor-Shape": f"2,{length},3"}
    return {"content": x.tobytes(), "headers": shape}


@pytest.mark.parametrize("query", ["", "?version=1"])
@pytest.mark.parametrize("kind", ["json", "npy", "raw"])
def test_a_size_that_the_files_do_not_answer_for_is_400_with_the_range_in_every_form(
    server: ServerProcess, kind: str, query: str
) -> None:
    server.until(lambda: server.post("/predict/bounded", **steps_body(kind, 64)).status_code == 200)
    for length, status in ((1, 200), (64, 200), (65, 400), (200, 400)):
        answer = server.post(f"/predict/bounded{query}", **steps_body(kind, length))
        assert answer.status_code == status, answer.text
        if status == 400:
            assert answer.json()["code"] == "bad_tensor"
            assert f"dim 1 ('length') is {length}; expected 1 to 64" in answer.json()["error"]
    told = server.get("/info").text.replace(" ", "")
    assert '"dims":{"length":{"min":1,"max":64,"multiple_of":1}}' in told


@pytest.mark.parametrize("query", ["", "?version=1"])
def test_a_size_that_hangs_on_another_is_compared(server: ServerProcess, query: str) -> None:
    def ask_steps(points: int, weights: int) -> httpx.Response:
        body = {"inputs": {"points": [[1.0] * points], "weights": [[1.0] * weights]}}
        return server.post(f"/predict/linked{query}", json=body)

    server.until(lambda: ask_steps(4, 3).status_code == 200)
    answer = ask_steps(4, 4)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_tensor"), answer.text
    assert "'points' is" in answer.json()["error"] or "('points') is" in answer.json()["error"]
