"""The outline of a message is what protobuf finds in it, whatever it holds."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.service_pb2 import ModelInferRequest

from foldserve.service.codecs.protobuf_fields import field_of_bytes, varint
from foldserve.service.errors import BadRequest
from foldserve.service.protocols.oip.wire import Outline, outline


@given(st.text(), st.text(), st.text(), st.lists(st.binary(), max_size=4), st.lists(st.text(), max_size=3))
def test_outline_is_what_the_message_says(
    model: str, version: str, identity: str, raw: list[bytes], inputs: list[str]
) -> None:
    message = ModelInferRequest(model_name=model, model_version=version, id=identity, raw_input_contents=raw)
    for name in inputs:
        message.inputs.add(name=name, shape=[1, 2], datatype="FP32")
    message.parameters["timeout"].int64_param = 3
    found = outline(message.SerializeToString())
    assert found == Outline(model, version, identity, sum(map(len, raw)))


@given(st.integers(0, 2**63 - 1))
def test_varint_is_protobufs(number: int) -> None:
    message = ModelInferRequest()
    message.parameters["n"].uint64_param = number
    assert message.parameters["n"].SerializeToString() == bytes([5 << 3]) + varint(number)


@given(st.binary(max_size=200))
def test_no_bytes_end_in_another_error(message: bytes) -> None:
    with contextlib.suppress(BadRequest):
        outline(message)


@pytest.mark.parametrize("kind", [0, 1, 5])
def test_field_of_another_kind_is_passed_over(kind: int) -> None:
    value = {0: b"\x96\x01", 1: bytes(8), 5: bytes(4)}[kind]
    unknown = bytes([15 << 3 | kind]) + value
    assert outline(unknown + field_of_bytes(1, 1) + b"m").model == "m"


def test_name_is_found_wherever_it_stands() -> None:
    raw = field_of_bytes(7, 3) + b"abc"
    assert outline(raw + field_of_bytes(1, 1) + b"m") == Outline("m", "", "", 3)


def test_message_of_endless_small_fields_is_refused_before_it_takes_long() -> None:
    with pytest.raises(BadRequest, match="more than 4096 fields"):
        outline(field_of_bytes(7, 0) * 1_000_000)
