"""The Open Inference Protocol over gRPC: tensors as raw contents or typed ones. Messages by NVIDIA's own classes."""

from random import Random
from typing import Any, Final

import numpy as np
from tritonclient.grpc import service_pb2

from tests.torture.protocols.damage import DATATYPES, DTYPES, Tensor, damaged_tensors, described
from tests.torture.protocols.oip import parameters
from tests.torture.protocols.seam import Asked, Carried, Protocol, Request, finite
from tests.torture.wire import Answer

_TYPED: Final = {"FP32": "fp32_contents", "INT64": "int64_contents", "UINT8": "uint_contents"}
_TOKENS: Final = (
    b"\x00", b"\xff", b"\x7f", b"\x80", b"\x0a", b"\x12", b"\x1a", b"\x22", b"\x2a", b"\x32", b"\x3a", b"\x3a\x00",
    b"\x08\x01", b"\x0b", b"\x0c", b"\x0d\x00\x00\x00\x00", b"\x09" + b"\x00" * 8, b"\xff" * 9 + b"\x01",
    b"\xff" * 10, b"\x80" * 10, b"\xff\xff\xff\xff\x0f", b"\xff\xff\xff\xff\x07", b"FP32", b"FP16", b"BF16",
    b"BYTES", b"BOOL", b"INT64", b"linear", b"digits", b"timeout", b"priority", b"classification",
    b"binary_data_output", b"shared_memory_region", b"\xed\xa0\x80", b"\x00\x00\xc0\x7f",
)  # fmt: skip


def _read(answer: Answer, like: np.ndarray) -> np.ndarray:
    """See seam.Read. Whose it is stands in the answer's headers: links/grpc_links.py."""
    message = service_pb2.ModelInferResponse.FromString(answer.body)
    (output,), (data,) = message.outputs, message.raw_output_contents
    return np.frombuffer(data, DTYPES[output.datatype]).reshape(output.shape)


def _request(name: str, asked: Asked, tensors: list[Tensor], chosen: Random, *, raw: bool) -> Request:
    message = service_pb2.ModelInferRequest(model_name=asked.model, id=asked.request_id)
    for key, value in parameters(asked).items():
        message.parameters[key].int64_param = value
    for tensor in tensors:
        one: Any = message.inputs.add(**{key: value for key, value in tensor.items() if key != "array"})
        if raw:
            message.raw_input_contents.append(tensor["array"].tobytes())
        else:
            typed = _TYPED[DATATYPES[tensor["array"].dtype]]
            getattr(one.contents, typed).extend(tensor["array"].ravel().tolist())
    if chosen.random() < 0.5:
        message.outputs.add(name="y")
    return Request(asked, name, message.SerializeToString(), _read)


def _write_raw(asked: Asked, chosen: Random) -> Request:
    return _request("gRPC raw", asked, described(asked), chosen, raw=True)


def _write_typed(asked: Asked, chosen: Random) -> Request:
    return _request("gRPC typed", asked, described(asked), chosen, raw=False)


def _spoil_raw(asked: Asked, chosen: Random) -> Request:
    return _request("gRPC raw", asked, damaged_tensors(asked, chosen), chosen, raw=True).to_be_refused()


def _spoil_typed(asked: Asked, chosen: Random) -> Request:
    return _request("gRPC typed", asked, damaged_tensors(asked, chosen), chosen, raw=False).to_be_refused()


OIP_GRPC: Final = (
    Protocol("gRPC raw", Carried.GRPC, _write_raw, _spoil_raw, _TOKENS),
    Protocol("gRPC typed", Carried.GRPC, _write_typed, _spoil_typed, _TOKENS, finite),
)
