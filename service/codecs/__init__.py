"""The three body types of /predict, as pure functions between bytes and arrays.

    media_types   Content-Type and Accept -> which of the three
    json_codec    {"inputs": ...} <-> arrays        json_diagnostics   what is wrong with a refused one, and where
    raw_codec     little-endian rows <-> one array
    npy_codec     a NumPy file <-> one array

They know signatures and arrays, not HTTP, so any front can use them on any buffer: decode() takes bytes, a
bytearray or a memoryview, and raw and npy arrays are views of it.
"""

from collections.abc import Mapping

import numpy as np

from foldserve.service.artifact.signature import Signature
from foldserve.service.codecs import json_codec, npy_codec, raw_codec
from foldserve.service.codecs.encoded import Encoded, LaidOut
from foldserve.service.codecs.media_types import BodyType, answer_types, body_type
from foldserve.service.codecs.raw_codec import TensorHeaders
from foldserve.service.errors import BadRequest, NotAcceptable

__all__ = [
    "BodyType",
    "Encoded",
    "LaidOut",
    "TensorHeaders",
    "answer_type",
    "body_type",
    "check_kind",
    "decode",
    "encode",
    "lay_out",
    "pick_outputs",
]


def decode(
    kind: BodyType,
    body: bytes | bytearray | memoryview,
    signature: Signature,
    headers: TensorHeaders | None = None,
) -> dict[str, np.ndarray]:
    """Return input name -> array, of the signature's datatypes, ranks and dims.

    Raises: BadJson, BadTensor, UnsupportedMediaType, as the codec of that kind says. That inputs agree in
        their rows is left to Signature.check_inputs.
    """
    if kind is BodyType.JSON:
        return json_codec.decode(body, signature)
    if kind is BodyType.RAW:
        return raw_codec.decode(body, signature, headers)
    return npy_codec.decode(body, signature, headers)


def check_kind(kind: BodyType, signature: Signature) -> None:
    """Raise UnsupportedMediaType when a body of that kind cannot hold the model's inputs."""
    if kind is not BodyType.JSON:
        raw_codec.only_input(signature, kind.value)


def pick_outputs(signature: Signature, wanted: str | None) -> tuple[str, ...]:
    """The outputs to answer with: all, or the wanted one. Raises BadRequest when there is no such."""
    names = tuple(signature.outputs_by_name)
    if wanted is None:
        return names
    if wanted not in names:
        raise BadRequest(
            f"output {wanted[:100]!r} is asked for; the model has {', '.join(names)}: name one of them"
        )
    return (wanted,)


def answer_type(accept: str | None, own: BodyType, outputs: tuple[str, ...]) -> BodyType:
    """The type to answer in; asked before the model runs, so that no work is done for an unwanted answer.

    Args:
        accept: the Accept header; own: the type of the request's body; outputs: names from pick_outputs().
    Raises: NotAcceptable when Accept admits no type of ours, or only types that hold one tensor where there
        are several.
    """
    kinds = answer_types(accept, own)
    for kind in kinds:
        if kind is BodyType.JSON or len(outputs) == 1:
            return kind
    raise NotAcceptable(
        f"the answer has {len(outputs)} outputs ({', '.join(outputs)}) and {kinds[0].value} holds one "
        f"tensor; choose one with ?output={outputs[0]}, or send 'Accept: application/json' for all"
    )


def encode(
    kind: BodyType, model: str, version: str, outputs: Mapping[str, np.ndarray], signature: Signature
) -> Encoded:
    """Write the outputs as one body; RAW and NPY take exactly one output.

    Raises: ModelFailed when JSON cannot carry a value (NaN, infinities).
    """
    if kind is BodyType.JSON:
        return Encoded(kind.value, json_codec.encode(model, version, outputs))
    ((name, array),) = outputs.items()
    headers = raw_codec.tensor_headers(name, signature.outputs_by_name[name].datatype, array.shape)
    body = raw_codec.encode(array) if kind is BodyType.RAW else npy_codec.encode(array)
    return Encoded(kind.value, body, headers)


def lay_out(kind: BodyType, outputs: Mapping[str, np.ndarray], signature: Signature) -> LaidOut:
    """What encode() makes of one output as RAW or NPY; nothing is copied that is little-endian and in order."""
    ((name, given),) = outputs.items()
    array = np.asarray(given, dtype=given.dtype.newbyteorder("<"), order="C")
    headers = raw_codec.tensor_headers(name, signature.outputs_by_name[name].datatype, array.shape)
    prefix = b"" if kind is BodyType.RAW else npy_codec.header_of(array)
    return LaidOut(kind.value, prefix, raw_codec.elements(array), headers)
