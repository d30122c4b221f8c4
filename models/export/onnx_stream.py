"""Check and write an ONNX model without a second copy of its weights.

onnx.checker and the protobuf library first make one string of the whole model, and the checker parses it again: three
times the weights beside the model. Here the checker sees the model with its large weights declared as inputs, and the
file is written weight by weight. It is an ordinary protobuf message: the fields of a message may come in any order, so
the weights stand behind the rest of their graph.
"""

from collections.abc import Iterator
from typing import IO

import onnx

# What the checker needs to see: shapes, axes and other numbers that other shapes depend on.
_SMALL_BYTES = 4096
# Length-delimited fields of onnx.proto: ModelProto.graph and GraphProto.initializer.
_GRAPH = 7
_INITIALIZER = 5


def check_onnx(model: onnx.ModelProto) -> None:
    """onnx.checker's full check of all but the numbers of large weights. Raises: what the checker raises."""
    skeleton = _without_initializers(model)
    for weight in model.graph.initializer:
        if weight.ByteSize() <= _SMALL_BYTES:
            skeleton.graph.initializer.append(weight)
        else:
            skeleton.graph.input.append(
                onnx.helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims))
            )
    onnx.checker.check_model(skeleton, full_check=True)


def write_onnx(model: onnx.ModelProto, file: IO[bytes]) -> None:
    """Write model; the same model gives the same bytes. Raises: OSError."""
    outside = _without_initializers(model)
    graph = outside.graph.SerializeToString(deterministic=True)
    outside.ClearField("graph")
    file.write(outside.SerializeToString(deterministic=True))
    weights = model.graph.initializer
    sizes = [weight.ByteSize() for weight in weights]
    length = len(graph) + sum(len(_head(_INITIALIZER, size)) + size for size in sizes)
    file.write(_head(_GRAPH, length) + graph)
    for weight, size in zip(weights, sizes, strict=True):
        file.write(_head(_INITIALIZER, size))
        file.write(weight.SerializeToString(deterministic=True))


def _without_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of model with all but the weights of its graph."""
    copied = onnx.ModelProto()
    for field, value in _set_fields(model):
        if field != "graph":
            _set(copied, field, value)
    for field, value in _set_fields(model.graph):
        if field != "initializer":
            _set(copied.graph, field, value)
    return copied


def _set_fields(message: onnx.ModelProto | onnx.GraphProto) -> Iterator[tuple[str, object]]:
    for descriptor, value in message.ListFields():
        yield descriptor.name, value


def _set(message: onnx.ModelProto | onnx.GraphProto, field: str, value: object) -> None:
    held = getattr(message, field)
    if hasattr(held, "MergeFrom"):  # a message, or a list of them
        held.MergeFrom(value)
    else:
        setattr(message, field, value)


def _head(field: int, length: int) -> bytes:
    """The key of a length-delimited field and its length, each a varint (protobuf.dev, "Encoding")."""
    return _varint(field << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)
