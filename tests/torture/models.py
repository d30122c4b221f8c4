"""Four models whose answers identify their inputs, and requests to them with the answer that each must get.

`linear` (ONNX) has fixed dims, `digits` (ONNX) a dim of any length and fails on indices past its table, `pair` (ONNX)
two inputs of one length, `inplace` (TorchScript) works in place on its input and gives more than it takes. All numbers
are exact in float32, whatever the batch: an answer is right to the bit, or wrong.
"""

import io
import json
import warnings
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from random import Random
from typing import Final

import numpy as np
from onnx import TensorProto, helper

from tests.service.repositories import TABLE, WEIGHT, save_linear, save_lookup, save_onnx

JSON: Final = "application/json"
RAW: Final = "application/octet-stream"
NPY: Final = "application/x-npy"
REPEATS: Final = 8
"""How often `inplace` repeats a row: more than the room that is set aside for an answer of unknown size."""
MODELS: Final = ("linear", "digits", "pair", "inplace")


class Wanted(Enum):
    """What a request must get."""

    RIGHT = "200 with its own numbers"
    RIGHT_OR_LATE = "200 with its own numbers, or 504"
    REFUSED = "400"
    FAILED = "500 model_failed, alone of its batch"


@dataclass(frozen=True)
class Request:
    """One request: everything but its id, and what must come back."""

    model: str
    kind: str
    body: bytes
    wanted: Wanted
    y: np.ndarray | None = None
    headers: tuple[str, ...] = ()
    accept: str = ""

    def message(self, request_id: str, *, long_way: bool, chunked: bool) -> bytes:
        """As it goes over the wire. long_way: with a header that only the ASGI application knows."""
        lines = [f"POST /predict/{self.model} HTTP/1.1", "host: x", f"content-type: {self.kind}"]
        lines += [f"x-request-id: {request_id}", *self.headers]
        if self.accept:
            lines.append(f"accept: {self.accept}")
        if long_way:
            lines.append("trailer: none")
        body = self.body
        if chunked:
            lines.append("transfer-encoding: chunked")
            half = len(body) // 2
            parts = [part for part in (body[:half], body[half:]) if part]
            body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        else:
            lines.append(f"content-length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode() + body


def make_repository(folder: Path, models: tuple[str, ...] = MODELS) -> Path:
    """These models in a repository."""
    if "linear" in models:
        save_linear(folder / "linear" / "1" / "model.onnx")
        (folder / "linear" / "config.yaml").write_text(
            "queue: {priority_levels: 3, default_priority_level: 2}\n"
        )
    if "digits" in models:
        save_lookup(folder / "digits" / "1" / "model.onnx")
    if "pair" in models:
        tensors = {
            name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", "length"]) for name in "aby"
        }
        path = folder / "pair" / "1" / "model.onnx"
        node = helper.make_node("Sub", ["a", "b"], ["y"])
        save_onnx(path, [node], [tensors["a"], tensors["b"]], [tensors["y"]], {})
    if "inplace" in models:
        _save_inplace(folder / "inplace")
    return folder


def _save_inplace(folder: Path) -> None:
    import torch

    class InPlace(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mul_(2.0).repeat(1, 8)

    path = folder / "1" / "model.pt"
    path.parent.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch 2.13 calls TorchScript deprecated
        torch.jit.script(InPlace()).save(str(path))
    (folder / "config.yaml").write_text(
        "signature:\n"
        "  inputs: [{name: x, datatype: FP32, shape: [-1, -1]}]\n"
        "  outputs: [{name: y, datatype: FP32, shape: [-1, -1]}]\n"
    )


def inputs_of(model: str, number: int, rows: int, length: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs that no other number has, and what the model answers to them."""
    digits = np.array([int(digit) for digit in f"{number:0{length}d}"[-length:]])
    place = np.arange(rows)[:, None]
    if model == "linear":
        x = np.array([[number % 50_000, number // 50_000, 1, row] for row in range(rows)], np.float32)
        return {"x": x}, x @ WEIGHT
    if model == "digits":
        index = (digits[None, :] + place) % 10
        return {"index": index.astype(np.int64)}, TABLE[index]
    x = np.array(number % 1_000_000 + digits[None, :] * 16 + place, np.float32)
    if model == "pair":
        b = np.array(digits[None, :] + place, np.float32)
        return {"a": x, "b": b}, x - b
    return {"x": x}, np.tile(2 * x, (1, REPEATS))


def good(model: str, number: int, chosen: Random, wanted: Wanted = Wanted.RIGHT) -> Request:
    """A request that must be answered, in an encoding by luck."""
    rows = chosen.choice((1, 1, 1, 2, 3, 5))
    inputs, y = inputs_of(model, number, rows, chosen.randint(7, 12))
    return _encoded(model, inputs, y, chosen, wanted)


def with_nan(number: int, chosen: Random) -> Request:
    """Good rows with one of NaN among them, whose answer is NaN; JSON has no word for either."""
    inputs, _ = inputs_of("linear", number, 3, 0)
    inputs["x"][chosen.randrange(3), chosen.randrange(4)] = np.nan
    y = inputs["x"] @ WEIGHT
    kind = chosen.choice((RAW, NPY))
    return _encoded("linear", inputs, y, chosen, Wanted.RIGHT, kind, chosen.choice((RAW, NPY)))


def guilty(number: int, chosen: Random) -> Request:
    """A request that is well-formed and on which the model raises."""
    inputs, y = inputs_of("digits", number, 2, 9)
    inputs["index"][1, chosen.randrange(9)] = 99
    return _encoded("digits", inputs, y, chosen, Wanted.FAILED)


def bad(model: str, number: int, chosen: Random) -> Request:
    """A request that does not fit the model, and must be told so before it shares a batch."""
    inputs, _ = inputs_of(model, number, 2, 9)
    ways = ["ragged", "kind", "depth", "cut"]
    if model == "pair":
        ways += ["lengths", "one of the lengths", "rows"]
    if model == "linear":
        ways += ["dim", "left over"]
    way = chosen.choice(ways)
    values = {name: array.tolist() for name, array in inputs.items()}
    name = chosen.choice(list(values))
    if way == "ragged":
        values[name][1].append(1)
    elif way == "kind":
        values[name][-1][-1] = chosen.choice((True, None, "1", {}, [1]))
    elif way == "depth":
        values[name] = values[name][0]
    elif way in ("dim", "lengths"):
        values[name] = [row[:-1] for row in values[name]]
    elif way == "one of the lengths":
        values[name] = [row[:1] for row in values[name]]  # which numpy would stretch
    elif way == "rows":
        values[name] = values[name][:1]
    elif way == "left over":
        return Request(model, RAW, inputs[name].tobytes() + b"\0", Wanted.REFUSED)
    body = json.dumps({"inputs": values}).encode()
    return Request(model, JSON, body[:-2] if way == "cut" else body, Wanted.REFUSED)


def _encoded(
    model: str,
    inputs: dict[str, np.ndarray],
    y: np.ndarray,
    chosen: Random,
    wanted: Wanted,
    kind: str = "",
    accept: str = "",
) -> Request:
    kind = JSON if len(inputs) > 1 else kind or chosen.choice((JSON, RAW, NPY))
    accept = accept or chosen.choice(("", "", JSON, RAW, NPY))
    level = (f"x-priority: {chosen.randint(0, 3)}",) if model == "linear" else ()
    if kind == JSON:
        values = {name: array.tolist() for name, array in inputs.items()}
        given = values if len(values) > 1 or chosen.random() < 0.3 else next(iter(values.values()))
        return Request(model, kind, json.dumps({"inputs": given}).encode(), wanted, y, level, accept)
    (array,) = inputs.values()
    if kind == NPY:
        file = io.BytesIO()
        np.save(file, array)
        return Request(model, kind, file.getvalue(), wanted, y, level, accept)
    shape = f"x-tensor-shape: {','.join(map(str, array.shape))}"
    headers = level if model == "linear" else (shape,)
    return Request(model, kind, array.tobytes(), wanted, y, headers, accept)


def numbers_in(kind: str, headers: dict[str, str], body: bytes, like: np.ndarray) -> np.ndarray:
    """The tensor in an answer. Raises: ValueError or KeyError when it is not what its headers say."""
    if kind == JSON:
        return np.array(json.loads(body)["outputs"]["y"], like.dtype)
    if kind == NPY:
        return np.load(io.BytesIO(body), allow_pickle=False)
    shape = [int(word) for word in headers["x-tensor-shape"].split(",")]
    return np.frombuffer(body, like.dtype).reshape(shape)
