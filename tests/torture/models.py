"""Five models whose answers identify their inputs, and requests to them with the answer that each must get.

`linear` (ONNX) has fixed dims, `digits` (ONNX) a dim of any length and fails on indices past its table, `pair` (ONNX)
two inputs of one length, `colours` (ONNX) takes pictures, `inplace` (TorchScript) works in place on its input and gives
more than it takes. All numbers are exact in float32, whatever the batch: an answer is right to the bit, or wrong.
"""

import gzip
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Final

import numpy as np
from onnx import TensorProto, helper

from foldserve.service.artifact.pictures import PictureInput
from tests.service.repositories import TABLE, WEIGHT, save_linear, save_lookup, save_manifest, save_onnx
from tests.torture.protocols.seam import Asked, Carried, Request, Wanted
from tests.torture.protocols.table import that_take

PICTURE: Final = (4, 8)
"""Height and width of what `colours` takes."""
REPEATS: Final = 8
"""How often `inplace` repeats a row: more than the room that is set aside for an answer of unknown size."""
MODELS: Final = ("linear", "digits", "pair", "colours", "inplace")


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
    if "colours" in models:
        _save_colours(folder / "colours" / "1")
    if "inplace" in models:
        _save_inplace(folder / "inplace")
    return folder


def _save_colours(folder: Path) -> None:
    """The sums of red, green and blue: pictures UINT8 [-1, 4, 8, 3], y FP32 [-1, 3]."""
    save_onnx(
        folder / "model.onnx",
        [
            helper.make_node("Cast", ["pictures"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["pixels", "axes"], ["y"], keepdims=0),
        ],
        [helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["rows", *PICTURE, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 3])],
        {"axes": np.array([1, 2])},
    )
    image = PictureInput("pictures", size=PICTURE).to_manifest()
    inputs = [{"name": "pictures", "datatype": "UINT8", "shape": [-1, *PICTURE, 3]}]
    outputs = [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}]
    save_manifest(folder, "colours", "1", inputs=inputs, outputs=outputs, image=image, max_batch_size=32)


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
    if model == "colours":
        return _pictures(number, rows)
    x = np.array(number % 1_000_000 + digits[None, :] * 16 + place, np.float32)
    if model == "pair":
        b = np.array(digits[None, :] + place, np.float32)
        return {"a": x, "b": b}, x - b
    return {"x": x}, np.tile(2 * x, (1, REPEATS))


def _pictures(number: int, rows: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Of one colour each: one of 64 a channel, so far apart that JPEG tells them apart; and a pixel for the row."""
    colour = np.array([number // 4096 % 64, number // 64 % 64, number % 64]) * 4
    pictures = np.broadcast_to(colour, (rows, *PICTURE, 3)).astype(np.uint8)
    pictures[:, 0, 0, 0] = np.arange(rows)
    return {"pictures": pictures}, pictures.sum(axis=(1, 2), dtype=np.float32)


def asked(
    model: str,
    number: int,
    chosen: Random,
    rows: int = 0,
    wanted: Wanted = Wanted.RIGHT,
    late_ms: int | None = None,
) -> Asked:
    """A question that no other number asks; of some rows if it is not said of how many."""
    rows = rows or chosen.choice((1, 1, 1, 2, 3, 5))
    inputs, y = inputs_of(model, number, rows, chosen.randint(7, 12))
    level = chosen.randint(0, 3) if model == "linear" else None
    return Asked(model, inputs, y, id_of(number), wanted, late_ms, level)


def id_of(number: int) -> str:
    """The id of a request."""
    return f"torture-{number}"


def good(
    model: str, number: int, chosen: Random, carried: Carried = Carried.HTTP, late_ms: int | None = None
) -> Request:
    """A request that must be answered, in a protocol by luck. late_ms: unless so much time passes before."""
    wanted = Wanted.RIGHT if late_ms is None else Wanted.RIGHT_OR_LATE
    return _written(asked(model, number, chosen, wanted=wanted, late_ms=late_ms), chosen, carried)


def with_nan(number: int, chosen: Random, carried: Carried = Carried.HTTP) -> Request:
    """Good rows with one of NaN among them, whose answer is NaN; JSON has no word for either."""
    question = asked("linear", number, chosen, 3)
    x = question.inputs["x"]
    x[chosen.randrange(3), chosen.randrange(4)] = np.nan
    return _written(replace(question, y=x @ WEIGHT), chosen, carried)


def guilty(number: int, chosen: Random, carried: Carried = Carried.HTTP) -> Request:
    """A request that is well-formed and on which the model raises."""
    question = asked("digits", number, chosen, 2, Wanted.FAILED)
    index = question.inputs["index"]
    index[1, chosen.randrange(index.shape[1])] = 99
    return _written(question, chosen, carried)


def bad(model: str, number: int, chosen: Random, carried: Carried = Carried.HTTP) -> Request:
    """A request that does not fit the model, and must be told so before it shares a batch."""
    alone = asked(model, number, chosen, 1)
    protocol = chosen.choice(that_take(alone, carried))
    two = asked(model, number, chosen, 2)
    return protocol.spoil(two if protocol.takes(two) else alone, chosen)


def _written(question: Asked, chosen: Random, carried: Carried) -> Request:
    request = chosen.choice(that_take(question, carried)).write(question, chosen)
    return request if carried is Carried.GRPC or chosen.random() < 0.9 else compressed(request, chosen)


def compressed(request: Request, chosen: Random) -> Request:
    """The same request with a compressed body."""
    encoding = chosen.choice(("gzip", "deflate"))
    body = gzip.compress(request.body, 1) if encoding == "gzip" else zlib.compress(request.body, 1)
    return replace(request, body=body, headers=(*request.headers, f"content-encoding: {encoding}"))


def in_every_protocol(model: str, carried: Carried, chosen: Random) -> Sequence[Request]:
    """A good request of one row in each protocol that the model can be asked in so, with numbers of its own."""
    protocols = that_take(asked(model, 0, chosen, 1), carried)
    return [one.write(asked(model, number, chosen, 1), chosen) for number, one in enumerate(protocols)]
