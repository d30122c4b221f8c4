"""Models that count no rows, for tests: their outputs hang on values, or their dims are fixed, or they have none."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto, helper

from tests.service.repositories import save_onnx

FLOAT, WHOLE = TensorProto.FLOAT, TensorProto.INT64


def save_nonzero(folder: Path) -> Path:
    """found [K, 2]: where image FP32 [-1, -1] is not zero, as ONNX."""
    path = save_onnx(
        folder / "1" / "model.onnx",
        [
            helper.make_node("NonZero", ["image"], ["places"]),
            helper.make_node("Transpose", ["places"], ["found"], perm=[1, 0]),
        ],
        [helper.make_tensor_value_info("image", FLOAT, ["height", "width"])],
        [helper.make_tensor_value_info("found", WHOLE, ["count", 2])],
        {},
    )
    return _one_by_one(folder, path)


def save_fixed(folder: Path) -> Path:
    """y [1, 3] = x [1, 4] @ ones, as ONNX with a fixed dim 0."""
    path = save_onnx(
        folder / "1" / "model.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [helper.make_tensor_value_info("x", FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", FLOAT, [1, 3])],
        {"w": np.ones((4, 3), np.float32)},
    )
    return _one_by_one(folder, path)


def save_scalars(folder: Path) -> Path:
    """total [] = sum(x [-1]) * scale [], as ONNX."""
    path = save_onnx(
        folder / "1" / "model.onnx",
        [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Mul", ["sum", "scale"], ["total"]),
        ],
        [
            helper.make_tensor_value_info("x", FLOAT, ["length"]),
            helper.make_tensor_value_info("scale", FLOAT, []),
        ],
        [helper.make_tensor_value_info("total", FLOAT, [])],
        {},
    )
    return _one_by_one(folder, path)


def save_degrees(folder: Path) -> Path:
    """degrees [n] = the sums of edges FP32 [n, n], of which the other dim must be as large as dim 0, as ONNX."""
    path = save_onnx(
        folder / "1" / "model.onnx",
        [helper.make_node("ReduceSum", ["edges", "axis"], ["degrees"], keepdims=0)],
        [helper.make_tensor_value_info("edges", FLOAT, ["n", "n"])],
        [helper.make_tensor_value_info("degrees", FLOAT, ["n"])],
        {"axis": np.array([1])},
    )
    return _one_by_one(folder, path)


def save_double(folder: Path) -> Path:
    """y [] = 2 * x [], as ONNX."""
    path = save_onnx(
        folder / "1" / "model.onnx",
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [helper.make_tensor_value_info("x", FLOAT, [])],
        [helper.make_tensor_value_info("y", FLOAT, [])],
        {},
    )
    return _one_by_one(folder, path)


class _Found(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = torch.nonzero(image)
        return found, torch.tensor(found.shape[0])


class _FoundSlowly(torch.nn.Module):
    def forward(self, image: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        for _ in range(int(steps)):
            image = image * 1.0
        return torch.nonzero(image)


def save_scripted_nonzero(folder: Path) -> Path:
    """found [K, 2]: where image FP32 [-1, -1] is not zero, and count []: how many, as TorchScript."""
    return _scripted(
        folder,
        _Found(),
        "  inputs: [{name: image, datatype: FP32, shape: [-1, -1]}]\n"
        "  outputs: [{name: found, datatype: INT64, shape: [-1, 2]}, {name: count, datatype: INT64, shape: []}]\n",
    )


def save_slow(folder: Path) -> Path:
    """found [K, 2]: where image FP32 [-1, -1] is not zero, after steps INT64 [] steps, as TorchScript."""
    return _scripted(
        folder,
        _FoundSlowly(),
        "  inputs: [{name: image, datatype: FP32, shape: [-1, -1]}, {name: steps, datatype: INT64, shape: []}]\n"
        "  outputs: [{name: found, datatype: INT64, shape: [-1, 2]}]\n",
    )


def _scripted(folder: Path, module: torch.nn.Module, signature: str) -> Path:
    path = folder / "1" / "model.pt"
    path.parent.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch 2.13 calls TorchScript deprecated
        torch.jit.script(module.eval()).save(str(path))
    return _one_by_one(folder, path, f"signature:\n{signature}")


def _one_by_one(folder: Path, path: Path, more: str = "") -> Path:
    (folder / "config.yaml").write_text(f"max_batch_size: 0\n{more}")
    return path


def places(image: np.ndarray) -> np.ndarray:
    """What the models that look for values other than zero find."""
    return np.argwhere(image).astype(np.int64)


def images(count: int) -> Mapping[int, np.ndarray]:
    """By the number of values other than zero, pictures with so many: none, one, many, of several sizes."""
    rng = np.random.default_rng(count)
    found: dict[int, np.ndarray] = {}
    for number in range(count):
        height, width = (int(size) for size in rng.integers(2, 12, 2))
        wanted = number % (height * width)
        image = np.zeros(height * width, np.float32)
        image[rng.permutation(height * width)[:wanted]] = 1 + number
        found[number] = image.reshape(height, width)
    return found
