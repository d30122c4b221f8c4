"""The InferenceProtocol of the calls ModelInfer and ModelStreamInfer: protobuf messages to arrays and back.

A request's tensors are raw, all of them, or typed contents. An answer's are raw: the numbers as they lie.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from foldserve.service.artifact.signature import TensorSpec
from foldserve.service.codecs import raw_codec
from foldserve.service.codecs.encoded import Encoded, LaidOut
from foldserve.service.codecs.fast.codec import FastCodec
from foldserve.service.codecs.protobuf_fields import field_of_bytes
from foldserve.service.codecs.protocol import Options, ParsedRequest, Served
from foldserve.service.engine.codec_process import LARGE_COPY_BYTES, LARGE_JSON_BYTES
from foldserve.service.engine.codec_process.rendering_time import SMALL_BYTES
from foldserve.service.errors import BadRequest, BadTensor, ServiceError
from foldserve.service.protocols.oip.infer import answer_ns, classes_of, shape_of, shape_of_classes
from foldserve.service.protocols.oip.request import Reply, parse_document
from foldserve.service.protocols.oip.shared_memory import write_output
from foldserve.service.protocols.oip.tensors import BINARY_ONLY, from_binary, from_json, strings_to_binary
from foldserve.service.protocols.oip.wire import malformed

MEDIA_TYPE: Final = "application/grpc"
_RAW_OUTPUT: Final = 6
"""raw_output_contents of ModelInferResponse."""
_CONTENTS: Final = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""Where a tensor's elements are, by its datatype."""


class OipGrpcProtocol:
    """Implements InferenceProtocol: messages whose numbers are raw, or that have many typed contents."""

    name = "grpc"
    media_type = MEDIA_TYPE
    is_json = False
    raw = False
    shorter = "send fewer rows, in raw_input_contents"
    at_once_bytes = SMALL_BYTES

    def __init__(self, key: str, large_bytes: int) -> None:
        self.key = key
        self.large_bytes = large_bytes

    def parse(self, body: bytes | bytearray | memoryview, served: Served, options: Options) -> ParsedRequest:
        """See InferenceProtocol: a ModelInferRequest. Its model was read before (wire.py)."""
        message = _request(bytes(body))
        document = {
            "id": message.id,
            "parameters": {**_parameters(message), "binary_data_output": True},
            "inputs": [
                {
                    "name": one.name,
                    "datatype": one.datatype,
                    "shape": list(one.shape),
                    "parameters": _parameters(one),
                }
                for one in message.inputs
            ],
            "outputs": [
                {"name": one.name, "parameters": {**_parameters(one), "binary_data": True}}
                for one in message.outputs
            ],
        }
        return parse_document(document, MessageContents(message), served)

    def render(self, served: Served, outputs: Mapping[str, np.ndarray], reply: Any) -> Encoded:
        """See InferenceProtocol: a ModelInferResponse."""
        asked = Reply(*reply)
        described: list[Mapping[str, Any]] = []
        parts: list[bytes | memoryview] = []
        for name, array in outputs.items():
            _, classes = asked.of(name)
            data: bytes | memoryview = b""
            if name in asked.places:
                write_output(asked.places[name], name, array, served.regions)
                described.append(shape_of(served, name, array.shape))
            elif classes:
                strings = classes_of(served, name, array, classes)
                described.append(shape_of_classes(name, len(array), strings))
                data = strings_to_binary(strings)
            else:
                described.append(shape_of(served, name, array.shape))
                data = raw_codec.elements(array)
            parts += (field_of_bytes(_RAW_OUTPUT, len(data)), data)
        # The raw contents are the last of the fields, and so the message need not hold them as it is written.
        return Encoded(MEDIA_TYPE, b"".join((_response(served, asked, described), *parts)))

    def render_ns(self, served: Served, outputs: Mapping[str, np.ndarray], reply: Any) -> int:
        """See InferenceProtocol."""
        return answer_ns(outputs, Reply(*reply))

    def lay_out(self, served: Served, outputs: Mapping[str, np.ndarray], reply: Any) -> LaidOut | None:
        """See InferenceProtocol: of one output, whose numbers are sent from where they lie."""
        asked = Reply(*reply)
        ((name, array), *others) = outputs.items()
        if others or asked.of(name)[1] or name in asked.places:
            return None
        data = raw_codec.elements(array)
        message = _response(served, asked, [shape_of(served, name, array.shape)])
        return LaidOut(MEDIA_TYPE, message + field_of_bytes(_RAW_OUTPUT, len(data)), data, ())

    def render_error(self, error: ServiceError) -> Encoded:
        """See InferenceProtocol: the text, and the code as trailing metadata."""
        return Encoded(MEDIA_TYPE, str(error).encode(), (("code", error.code),))

    def fast_codec(self, served: Served) -> FastCodec | None:
        """See InferenceProtocol."""
        return None


OIP_GRPC: Final = OipGrpcProtocol("oip_grpc", LARGE_JSON_BYTES)
"""Of messages with many typed contents."""
OIP_GRPC_RAW: Final = OipGrpcProtocol("oip_grpc_raw", LARGE_COPY_BYTES)
"""Of messages that are all but their beginning raw contents."""


class MessageContents:
    """Implements Carrier: in raw_input_contents, or in the inputs' own contents."""

    def __init__(self, message: Any) -> None:
        self._inputs = {one.name: one for one in message.inputs}
        self._raw: list[bytes] = list(message.raw_input_contents)
        self._count = len(self._raw)
        self._at = 0

    def holds(self, tensor: Mapping[str, Any]) -> str:
        """See Carrier."""
        return "".join(field.name for field, _ in self._inputs[tensor["name"]].contents.ListFields()[:1])

    def read(self, tensor: Mapping[str, Any], spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
        """See Carrier."""
        contents = self._inputs[spec.name].contents
        filled = [field.name for field, _ in contents.ListFields()]
        if not self._count:
            return _typed(contents, filled, spec, shape)
        if filled:
            raise BadRequest(
                f"input {spec.name!r} has {filled[0]}, and the request has raw_input_contents; send all inputs in one "
                "of the two ways"
            )
        if self._at >= self._count:
            raise BadTensor(
                f"raw_input_contents has {self._count} entries; expected {len(self._inputs)}, one for each input in "
                "their order"
            )
        self._at += 1
        return from_binary(memoryview(self._raw[self._at - 1]), spec, shape)

    def end(self) -> None:
        """See Carrier."""
        if self._at < self._count:
            raise BadTensor(
                f"raw_input_contents has {self._count} entries; expected {self._at}, one for each input in their order"
            )


def _typed(contents: Any, filled: list[str], spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
    """The elements of an input in its own contents."""
    if spec.datatype in BINARY_ONLY:
        raise BadTensor(
            f"input {spec.name!r} is {spec.datatype}, which typed contents cannot carry; send it in raw_input_contents"
        )
    wanted = _CONTENTS[spec.datatype]
    if filled not in ([wanted], []):
        raise BadTensor(
            f"input {spec.name!r} has {' and '.join(filled)}; expected {wanted} for {spec.datatype}, or "
            "raw_input_contents"
        )
    return from_json(list(getattr(contents, wanted)), spec, shape)


def _request(body: bytes) -> Any:
    """The message. Raises: BadRequest."""
    from google.protobuf.message import DecodeError

    from foldserve.service.protocols.oip.messages import ModelInferRequest

    try:
        return ModelInferRequest.FromString(body)
    except DecodeError:
        raise malformed() from None


def _response(served: Served, asked: Reply, described: Iterable[Mapping[str, Any]]) -> bytes:
    """A ModelInferResponse without its raw contents."""
    from foldserve.service.protocols.oip.messages import ModelInferResponse

    message = ModelInferResponse(
        model_name=served.model,
        model_version=served.version,
        id=asked.id or "",
        outputs=[ModelInferResponse.InferOutputTensor(**one) for one in described],
    )
    written: bytes = message.SerializeToString()
    return written


def _parameters(message: Any) -> dict[str, Any]:
    """The values of a map of InferParameter; those that say none are left out."""
    found = {}
    for name, value in message.parameters.items():
        kind = value.WhichOneof("parameter_choice")
        if kind is not None:
            found[name] = getattr(value, kind)
    return found
