"""Small repositories for tests: models of a few numbers, made on the spot."""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from prometheus_client.parser import text_string_to_metric_families

from foldserve.service.artifact.manifest import Manifest
from foldserve.service.artifact.pictures import PictureInput
from foldserve.service.artifact.signature import Signature
from foldserve.service.ipc.model_table import ModelTable
from foldserve.service.metrics.exposition import Exposition, LiveGauges
from foldserve.service.metrics.recorder import Metrics, MetricsLayoutSpec
from foldserve.service.repository.artifact import Artifact
from foldserve.service.repository.model_config import ModelConfig, parse_model_config
from foldserve.service.repository.model_version import ModelVersion

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3) / 8
"""Eighths: products and sums of small whole numbers with them are exact in float32, whatever the order."""

TABLE = np.arange(20, dtype=np.float32).reshape(10, 2)


def config(**keys: Any) -> ModelConfig:
    """A ModelConfig from config.yaml's keys."""
    return parse_model_config(keys, "config.yaml of a test")


def save_onnx(
    path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, Any]
) -> Path:
    """Write an ONNX file."""
    graph = helper.make_graph(
        nodes,
        "test",
        inputs,
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def save_linear(path: Path, weight: np.ndarray = WEIGHT, rows: str | int = "rows") -> Path:
    """y = x @ weight: x FP32 [-1, 4], y FP32 [-1, 3]."""
    return save_onnx(
        path,
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, weight.shape[1]])],
        {"w": weight},
    )


def save_lookup(path: Path) -> Path:
    """y = TABLE[index]: index INT64 [-1, -1], y FP32 [-1, -1, 2]. Indices past 9 make the run fail."""
    return save_onnx(
        path,
        [helper.make_node("Gather", ["table", "index"], ["y"], axis=0)],
        [helper.make_tensor_value_info("index", TensorProto.INT64, ["rows", "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "length", 2])],
        {"table": TABLE},
    )


def save_scripted(folder: Path, weight: np.ndarray = WEIGHT) -> Path:
    """The linear model as TorchScript, with the signature that such a file needs in config.yaml."""
    import torch

    layer = torch.nn.Linear(*weight.shape, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight.T.copy()))
    path = folder / "1" / "model.pt"
    path.parent.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch 2.13 calls TorchScript deprecated
        torch.jit.script(layer.eval()).save(str(path))
    (folder / "config.yaml").write_text(
        "signature:\n"
        f"  inputs: [{{name: x, datatype: FP32, shape: [-1, {weight.shape[0]}]}}]\n"
        f"  outputs: [{{name: y, datatype: FP32, shape: [-1, {weight.shape[1]}]}}]\n"
    )
    return path


def save_endless(folder: Path) -> Path:
    """A TorchScript model of x FP32 [-1, 4] whose run never ends."""
    import torch

    class Endless(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            while bool(x.numel() > 0):
                x = x * 1.0
            return x

    path = folder / "1" / "model.pt"
    path.parent.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch 2.13 calls TorchScript deprecated
        torch.jit.script(Endless()).save(str(path))
    (folder / "config.yaml").write_text(
        "signature:\n"
        "  inputs: [{name: x, datatype: FP32, shape: [-1, 4]}]\n"
        "  outputs: [{name: y, datatype: FP32, shape: [-1, 4]}]\n"
    )
    return path


def save_exported(
    folder: Path, name: str = "linear", version: str = "1", error: float = 0.0
) -> dict[str, Any]:
    """The linear model as the export leaves it: manifest, hashes, reference.

    error: added to the reference's outputs, relative to the largest; the manifest's tolerance is 1e-4.
    Returns: the manifest.
    """
    save_linear(folder / "model.onnx")
    x = np.arange(28, dtype=np.float32).reshape(7, 4)
    y = x @ WEIGHT
    np.savez(folder / "reference.npz", **{"input.x": x, "output.y": y + error * np.abs(y).max()})
    return save_manifest(
        folder,
        name,
        version,
        inputs=[{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        outputs=[{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    )


def save_colours(folder: Path) -> dict[str, Any]:
    """A model that takes pictures, as the export leaves it: how red, green and blue one is, with those labels.

    Returns: the manifest.
    """
    save_onnx(
        folder / "model.onnx",
        [
            helper.make_node("Cast", ["pictures"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["numbers"], ["y"], axes=[1, 2], keepdims=0),
        ],
        [helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["rows", 4, 6, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 3])],
        {},
    )
    pictures = np.arange(7 * 72, dtype=np.uint8).reshape(7, 4, 6, 3)
    y = pictures.mean(axis=(1, 2), dtype=np.float32)
    np.savez(folder / "reference.npz", **{"input.pictures": pictures, "output.y": y})
    return save_manifest(
        folder,
        "colours",
        "1",
        inputs=[{"name": "pictures", "datatype": "UINT8", "shape": [-1, 4, 6, 3]}],
        outputs=[{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
        image=PictureInput("pictures", size=(4, 6)).to_manifest(),
        labels=["red", "green", "blue"],
    )


def save_manifest(folder: Path, name: str, version: str, **keys: Any) -> dict[str, Any]:
    """Beside the files of an export. keys: of the manifest, its inputs and outputs among them."""
    files = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
        for path in sorted(folder.iterdir())
    }
    parity = {"max_abs": 0.0, "max_rel": 0.0, "rows_tried": [1, 2, 7], "tolerance": 1e-4}
    manifest = {
        "format_version": 1,
        "name": name,
        "version": version,
        "created": "2026-01-01T00:00:00Z",
        "source": "tests",
        "opset": 17,
        "tool_versions": {},
        "max_batch_size": 8,
        "files": files,
        "parameter_count": 12,
        "fold": {"found": 0, "folded": 0, "left": []},
        "parity": {"torchscript": parity, "onnx": parity},
        **keys,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return manifest


def table_of(*versions: tuple[str, str]) -> ModelTable:
    """A model table with these versions in its rows, of which there is nothing else to know."""
    table = ModelTable(len(versions))
    for version in versions:
        table.map().add(*version, b"", 32)
    return table


def model_version(
    name: str,
    version: str,
    signature: Signature,
    max_batch_size: int = 8,
    image: Mapping[str, Any] | None = None,
    labels: Sequence[str] = (),
    **keys: Any,
) -> ModelVersion:
    """A version without files. image, labels: as in a manifest; keys: of config.yaml."""
    nowhere = Path("/nonexistent") / name / version
    manifest = None
    if image is not None or labels:
        bare: dict[str, Any] = {"inputs": (), "outputs": (), "files": {}, "parity": {}}
        manifest = Manifest(name=name, version=version, image=image, labels=tuple(labels), **bare)
    artifact = Artifact(
        *(
            name,
            version,
            nowhere,
            "onnxruntime",
            nowhere / "model.onnx",
            signature,
            max_batch_size,
            manifest,
            {},
        )
    )
    return ModelVersion(config(**keys), artifact)


def metrics_of(*versions: tuple[str, str], writers: tuple[str, ...] = ("one", "two")) -> Metrics:
    """Metrics for the given (model, version) pairs by row; "linear", "1" alone if there are none."""
    versions = versions or (("linear", "1"),)
    metrics = Metrics.create(MetricsLayoutSpec(len(versions), ("cpu",), writers))
    metrics.rows.update((version, row) for row, version in enumerate(versions))
    return metrics


def attached(metrics: Metrics, writer: str) -> Metrics:
    """The same metrics as another process sees them, which counts under that name."""
    return Metrics.attach(metrics.store.memory, metrics.spec, writer)


def nothing_live(metrics: Metrics) -> LiveGauges:
    """Nothing waits, nothing is in flight, no model is ready, and none may run a row."""
    zeros = [0.0] * metrics.spec.models
    return LiveGauges(zeros, zeros, zeros, zeros)


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    """One sample of the exposition; None when it is not exposed."""
    models = table_of(*metrics.rows).map()
    text, _ = Exposition(metrics, models, lambda: nothing_live(metrics), os.getpid())("")
    return next(
        (
            found.value
            for family in text_string_to_metric_families(text.decode())
            for found in family.samples
            if (found.name, found.labels) == (name, labels)
        ),
        None,
    )
