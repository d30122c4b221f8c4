"""Check and write an ONNX model without a second copy of its weights, beyond 2 GiB in two files.

onnx.checker and the protobuf library first make one string of the whole model, and the checker parses it again: three
times the weights beside the model. Here the checker sees the model with its large weights declared as inputs, and the
file is written weight by weight. It is an ordinary protobuf message: the fields of a message may come in any order, so
the weights stand behind the rest of their graph.

A message ends at 2 GiB. The weights of a larger model lie in a second file beside the first, in ONNX's own way
(TensorProto.external_data: location, offset, length).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import onnx

from foldserve.service.codecs.protobuf_fields import field_of_bytes

# A protobuf message ends at 2 GiB; a little is left for the graph around the weights.
LARGEST_MESSAGE_BYTES = 2**31 - 2**24
# Of a weight that may lie in the second file, and the multiple at which it begins there: a runtime may then map it.
_OUTSIDE_BYTES = 1024
_PAGE_BYTES = 4096

# What the checker needs to see: shapes, axes and other numbers that other shapes depend on.
_SMALL_BYTES = 4096
# Length-delimited fields of onnx.proto: ModelProto.graph and GraphProto.initializer.
_GRAPH = 7
_INITIALIZER = 5
# TensorProto.raw_data; and the same as a name.
_NUMBERS = 9
_NUMBERS_NAME = "raw_data"


def check_onnx(model: onnx.ModelProto) -> None:
    """onnx.checker's full check of all but the numbers of large weights. Raises: what the checker raises."""
    skeleton = without_weights(model)
    for weight in model.graph.initializer:
        if len(weight.raw_data) <= _SMALL_BYTES and weight.ByteSize() <= _SMALL_BYTES:
            skeleton.graph.initializer.append(weight)
        else:
            skeleton.graph.input.append(
                onnx.helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims))
            )
    onnx.checker.check_model(skeleton, full_check=True)


def fits_one_message(model: onnx.ModelProto) -> bool:
    """Whether model may be one message, weights inside."""
    size = sum(len(weight.raw_data) or int(weight.ByteSize()) for weight in model.graph.initializer)
    return size <= LARGEST_MESSAGE_BYTES


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write model to path, and where it is too large for one message its weights to <path>.data beside it.

    The same model gives the same bytes. Raises: OSError.
    """
    with path.open("wb") as file:
        if fits_one_message(model):
            _write_message(model, model.graph.initializer, file)
            return
        beside = path.with_name(f"{path.name}.data")
        with beside.open("wb") as data:
            _write_message(
                model, [_moved(weight, data, beside.name) for weight in model.graph.initializer], file
            )


def _moved(weight: onnx.TensorProto, data: IO[bytes], location: str) -> onnx.TensorProto:
    """weight with its numbers in data; itself where it is small, or its numbers are no raw bytes."""
    content = weight.raw_data
    if len(content) < _OUTSIDE_BYTES:
        return weight
    data.write(bytes(-data.tell() % _PAGE_BYTES))
    moved = onnx.TensorProto(name=weight.name, data_type=weight.data_type, dims=weight.dims)
    moved.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", data.tell()), ("length", len(content))):
        moved.external_data.add(key=key, value=str(value))
    data.write(content)
    return moved


def _write_message(model: onnx.ModelProto, weights: Sequence[onnx.TensorProto], file: IO[bytes]) -> None:
    outside = without_weights(model)
    graph = outside.graph.SerializeToString(deterministic=True)
    outside.ClearField("graph")
    file.write(outside.SerializeToString(deterministic=True))
    heads = [_head_of_weight(weight) for weight in weights]
    sizes = [len(head) + len(weight.raw_data) for head, weight in zip(heads, weights, strict=True)]
    length = len(graph) + sum(len(field_of_bytes(_INITIALIZER, size)) + size for size in sizes)
    file.write(field_of_bytes(_GRAPH, length) + graph)
    for head, size, weight in zip(heads, sizes, weights, strict=True):
        file.write(field_of_bytes(_INITIALIZER, size) + head)
        file.write(weight.raw_data)


def _head_of_weight(weight: onnx.TensorProto) -> bytes:
    """The message of weight but for its raw bytes, which follow as the last of its fields.

    Not by the library: it makes the whole message, numbers and all, to tell how long it is.
    """
    head = onnx.TensorProto()
    for field, value in _set_fields(weight):
        if field != _NUMBERS_NAME:
            _set(head, field, value)
    message: bytes = head.SerializeToString(deterministic=True)
    return (
        message + field_of_bytes(_NUMBERS, len(weight.raw_data))
        if weight.HasField(_NUMBERS_NAME)
        else message
    )


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of model with all but the weights of its graph."""
    copied = onnx.ModelProto()
    for field, value in _set_fields(model):
        if field != "graph":
            _set(copied, field, value)
    for field, value in _set_fields(model.graph):
        if field != "initializer":
            _set(copied.graph, field, value)
    return copied


def _set_fields(
    message: onnx.ModelProto | onnx.GraphProto | onnx.TensorProto,
) -> Iterator[tuple[str, object]]:
    for descriptor, value in message.ListFields():
        yield descriptor.name, value


def _set(message: onnx.ModelProto | onnx.GraphProto | onnx.TensorProto, field: str, value: object) -> None:
    held = getattr(message, field)
    if hasattr(held, "MergeFrom"):  # a message, or a list of them
        held.MergeFrom(value)
    else:
        setattr(message, field, value)
