"""The InferenceProtocol of /v2/models/.../infer: JSON and binary tensors, in every mix, to arrays and back.

A body is JSON, followed by the bytes of those tensors that are binary; the header Inference-Header-Content-Length says
where the JSON ends (binary tensor data extension).
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import orjson

from foldserve.service.codecs import raw_codec
from foldserve.service.codecs.encoded import Encoded, LaidOut
from foldserve.service.codecs.fast.codec import FastCodec
from foldserve.service.codecs.json_codec import encodable
from foldserve.service.codecs.json_diagnostics import why_not_json
from foldserve.service.codecs.protocol import Options, ParsedRequest, Served
from foldserve.service.engine.codec_process import LARGE_COPY_BYTES, LARGE_JSON_BYTES
from foldserve.service.engine.codec_process.rendering_time import SMALL_BYTES, copy_ns, json_ns, largest_ns
from foldserve.service.errors import BadJson, BadRequest, ServiceError
from foldserve.service.inference.response import JSON, error_body
from foldserve.service.protocols.oip.fast import BINARY, JSON_LENGTH, OipFastCodec
from foldserve.service.protocols.oip.request import JsonAndBytes, Reply, parse_document, parse_raw
from foldserve.service.protocols.oip.shared_memory import write_output
from foldserve.service.protocols.oip.tensors import strings_to_binary

_NUMPY: Final = orjson.OPT_SERIALIZE_NUMPY
_EXPECTED: Final = 'expected {"inputs": [{"name", "shape", "datatype", "data"}, ...]}'
_TENSOR_AS_BYTES: Final = 'send the tensor\'s bytes after the JSON, with "binary_data_size" in its parameters'
_BYTES_FOLLOW: Final = f"where bytes follow the JSON, say in {JSON_LENGTH} how long that is"
_NOT_AS_JSON: Final = (
    f', or binary data behind the JSON ("binary_data_size", {JSON_LENGTH}) instead of "data"'
)
_AS_BINARY: Final = (
    'To get the numbers as they are, ask for the output with "binary_data": true in its parameters'
)


class OipProtocol:
    """Implements InferenceProtocol: bodies that are JSON, or that have little of it."""

    name = "oip"
    media_type = JSON
    raw = False
    at_once_bytes = SMALL_BYTES

    def __init__(self, key: str, *, is_json: bool) -> None:
        self.key = key
        self.is_json = is_json
        self.shorter = f"send fewer rows{_NOT_AS_JSON if is_json else ''}"
        self.large_bytes = LARGE_JSON_BYTES if is_json else LARGE_COPY_BYTES

    def parse(self, body: bytes | bytearray | memoryview, served: Served, options: Options) -> ParsedRequest:
        """See InferenceProtocol. options: the value of Inference-Header-Content-Length."""
        whole = memoryview(body)
        end = int(options[0]) if options and options[0] is not None else len(whole)
        if end > len(whole):
            raise BadRequest(
                f"{JSON_LENGTH} is {end} and the body has {len(whole)} bytes; send the length of the JSON part"
            )
        if not end and options:
            return parse_raw(whole, served.signature)
        text = whole[:end]
        try:
            document = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            why = why_not_json(bytes(text), error, _EXPECTED, _TENSOR_AS_BYTES)
            lost = not options and b'"binary_data_size"' in bytes(text)
            raise BadJson(f"{why}; {_BYTES_FOLLOW}" if lost else why) from None
        return parse_document(document, JsonAndBytes(whole[end:]), served)

    def render(self, served: Served, outputs: Mapping[str, np.ndarray], reply: Any) -> Encoded:
        """See InferenceProtocol."""
        asked = Reply(*reply)
        described: list[dict[str, Any]] = []
        blobs: list[bytes] = []
        for name, array in outputs.items():
            if name in asked.places:
                write_output(asked.places[name], name, array, served.regions)
                described.append(shape_of(served, name, array.shape))
                continue
            binary, classes = asked.of(name)
            strings = classes_of(served, name, array, classes) if classes else None
            described.append(_described(served, name, array, binary, strings))
            if binary:
                blobs.append(raw_codec.encode(array) if strings is None else strings_to_binary(strings))
                described[-1]["parameters"] = {"binary_data_size": len(blobs[-1])}
        document = _document(served, asked, described)
        return _encoded(document, b"".join(blobs))

    def render_ns(self, served: Served, outputs: Mapping[str, np.ndarray], reply: Any) -> int:
        """See InferenceProtocol."""
        return answer_ns(outputs, Reply(*reply))

    def lay_out(self, served: Served, outputs: Mapping[str, np.ndarray], reply: Any) -> LaidOut | None:
        """See InferenceProtocol: of one output as bytes, whose numbers are sent from where they lie."""
        asked = Reply(*reply)
        ((name, array), *others) = outputs.items()
        binary, classes = asked.of(name)
        if others or not binary or classes or name in asked.places:
            return None
        described = {**shape_of(served, name, array.shape), "parameters": {"binary_data_size": array.nbytes}}
        document = _document(served, asked, [described])
        return LaidOut(BINARY, document, raw_codec.elements(array), ((JSON_LENGTH, str(len(document))),))

    def render_error(self, error: ServiceError) -> Encoded:
        """See InferenceProtocol."""
        return error_body(error)

    def fast_codec(self, served: Served) -> FastCodec | None:
        """See InferenceProtocol."""
        return OipFastCodec.of(served.model, served.version, served.signature)


OIP_JSON: Final = OipProtocol("oip", is_json=True)
"""Of bodies that are JSON, or begin with much of it."""
OIP_BINARY: Final = OipProtocol("oip_binary", is_json=False)
"""Of bodies that are all but their beginning bytes of tensors."""


def _document(served: Served, asked: Reply, described: list[dict[str, Any]]) -> bytes:
    head = {"model_name": served.model, "model_version": served.version}
    identity = {} if asked.id is None else {"id": asked.id}
    return orjson.dumps({**head, **identity, "outputs": described}, option=_NUMPY)


def _encoded(document: bytes, blobs: bytes) -> Encoded:
    if not blobs:
        return Encoded(JSON, document)
    return Encoded(BINARY, document + blobs, ((JSON_LENGTH, str(len(document))),))


def _described(
    served: Served, name: str, array: np.ndarray, binary: bool, strings: list[str] | None
) -> dict[str, Any]:
    """An output as the answer's JSON has it: with its values, unless they follow as bytes. strings: its classes."""
    if strings is not None:
        described = shape_of_classes(name, len(array), strings)
        return described if binary else {**described, "data": strings}
    described = shape_of(served, name, array.shape)
    if binary:
        return described
    return {**described, "data": encodable(name, array, _AS_BINARY).reshape(-1)}


def answer_ns(outputs: Mapping[str, np.ndarray], asked: Reply) -> int:
    """About how long an answer takes: see InferenceProtocol.render_ns()."""
    total = 0
    for name, array in outputs.items():
        binary, classes = asked.of(name)
        if classes:
            total += largest_ns(array, classes)
        elif binary or name in asked.places:
            total += copy_ns((array,))
        else:
            total += json_ns((array,))
    return total


def shape_of(served: Served, name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """What an answer says of an output of numbers."""
    datatype = served.signature.outputs_by_name[name].datatype
    return {"name": name, "datatype": datatype, "shape": list(shape)}


def shape_of_classes(name: str, rows: int, strings: list[str]) -> dict[str, Any]:
    """What an answer says of an output whose classes were asked for."""
    return {"name": name, "datatype": "BYTES", "shape": [rows, len(strings) // rows]}


def classes_of(served: Served, name: str, array: np.ndarray, count: int) -> list[str]:
    """The largest values of each row, as "value:index" or "value:index:label" (classification extension); of equal ones
    the first goes first."""
    encodable(name, array, "Ask for the numbers as binary data to see them")
    rows = array.reshape(len(array), -1)
    last = rows.shape[1] - 1
    # Sorted backwards and then read backwards: negated, the smallest integer would stay the smallest.
    places = (last - np.argsort(rows[:, ::-1], axis=1, kind="stable")[:, ::-1])[:, :count]
    labels = [f":{label}" for label in served.labels] + [""] * (last + 1 - len(served.labels))
    values = np.take_along_axis(rows, places, axis=1)
    return [
        f"{value:f}:{at}{labels[at]}"
        for value, at in zip(values.reshape(-1).tolist(), places.reshape(-1).tolist(), strict=True)
    ]
