"""The protocol of gRPC, as a function between messages and arrays."""

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse

from foldserve.service.artifact.datatypes import DATATYPES, numpy_dtype
from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.codecs.fast.codec import Schedule
from foldserve.service.codecs.protocol import Served
from foldserve.service.errors import BadRequest, BadTensor, ServiceError
from foldserve.service.protocols.oip.grpc_infer import OIP_GRPC
from foldserve.service.protocols.oip.tensors import BINARY_ONLY

CONTENTS = {
    "BOOL": "bool_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
PAIR = Signature(
    (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "INT32", (-1,))),
    (TensorSpec("s", "FP32", (-1, 3)), TensorSpec("t", "FP16", (-1,))),
)
SERVED = Served("m", "1", PAIR, ("cat", "dog"))
A, B = np.array([[1, 2], [3, 4]], "<f4"), np.array([5, 6], "<i4")


def pair(*, raw: bool = True, **changed: Any) -> ModelInferRequest:
    message = ModelInferRequest(model_name="m", **changed)
    message.inputs.add(name="a", datatype="FP32", shape=[2, 2])
    message.inputs.add(name="b", datatype="INT32", shape=[2])
    if raw:
        message.raw_input_contents.extend([A.tobytes(), B.tobytes()])
    else:
        message.inputs[0].contents.fp32_contents.extend(A.reshape(-1).tolist())
        message.inputs[1].contents.int_contents.extend(B.tolist())
    return message


def parse(message: ModelInferRequest, signature: Signature = PAIR) -> Any:
    return OIP_GRPC.parse(message.SerializeToString(), Served("m", "1", signature), ())


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
def test_inputs_come_by_their_names(raw: bool) -> None:
    inputs = parse(pair(raw=raw)).inputs
    np.testing.assert_array_equal(inputs["a"], A)
    np.testing.assert_array_equal(inputs["b"], B)


def test_outputs_are_chosen_in_order_with_classes_of_one() -> None:
    message = pair(id="an id")
    message.outputs.add(name="t")
    message.outputs.add(name="s").parameters["classification"].int64_param = 2
    message.parameters["timeout"].int64_param = 250
    message.parameters["priority"].uint64_param = 2
    parsed = parse(message)
    assert (parsed.outputs, parsed.schedule) == (("t", "s"), Schedule(250, 2))
    outputs = {"t": np.array([1, 2], "f2"), "s": np.array([[0.5, 2, 1], [9, 8, 7]], "f4")}
    answer = ModelInferResponse.FromString(OIP_GRPC.render(SERVED, outputs, parsed.reply).body)
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "1", "an id")
    assert [(one.name, one.datatype, list(one.shape)) for one in answer.outputs] == [
        ("t", "FP16", [2]),
        ("s", "BYTES", [2, 2]),
    ]
    assert answer.raw_output_contents[0] == outputs["t"].tobytes()
    best = b"2.000000:1:dog"
    assert answer.raw_output_contents[1].startswith(len(best).to_bytes(4, "little") + best)


def test_one_output_is_laid_out_as_it_is_rendered() -> None:
    reply = parse(pair()).reply
    outputs = {"s": np.arange(6, dtype="f4").reshape(2, 3)}
    laid = OIP_GRPC.lay_out(SERVED, outputs, reply)
    assert laid is not None
    assert laid.prefix + bytes(laid.numbers) == OIP_GRPC.render(SERVED, outputs, reply).body


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
@given(data=st.data())
def test_every_datatype_comes_back_as_it_went(raw: bool, data: st.DataObject) -> None:
    words = [word for word in DATATYPES if raw or word not in BINARY_ONLY]
    word = data.draw(st.sampled_from(words))
    dtype, shape = numpy_dtype(word), tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    count = int(np.prod(shape)) * (1 if word == "BOOL" else dtype.itemsize)
    numbers = data.draw(st.binary(min_size=count, max_size=count))
    if word == "BOOL":
        numbers = bytes(byte & 1 for byte in numbers)
    array = np.frombuffer(numbers, dtype).reshape(shape)
    if array.dtype.kind == "f":
        array = np.nan_to_num(array)
    spec = TensorSpec("x", word, (-1,) * len(shape))
    message = ModelInferRequest(model_name="m")
    one = message.inputs.add(name="x", datatype=word, shape=shape)
    if raw:
        message.raw_input_contents.append(array.tobytes())
    else:
        getattr(one.contents, CONTENTS[word]).extend(array.reshape(-1).tolist())
    signature = Signature((spec,), (TensorSpec("y", word, (-1,) * len(shape)),))
    parsed = parse(message, signature)
    found = parsed.inputs["x"]
    assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())
    body = OIP_GRPC.render(Served("m", "1", signature), {"y": found}, parsed.reply).body
    answer = ModelInferResponse.FromString(body)
    assert (list(answer.outputs[0].shape), answer.raw_output_contents[0]) == ([*shape], array.tobytes())


def refused(message: ModelInferRequest) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        parse(message)
    return caught.value


def test_what_is_wrong_is_told_with_its_place() -> None:
    message = pair()
    del message.raw_input_contents[1]
    assert "has 1 entries; expected 2" in str(refused(message))
    message = pair()
    message.raw_input_contents.append(b"")
    assert "has 3 entries; expected 2" in str(refused(message))
    message = pair()
    message.inputs[1].contents.int_contents.append(1)
    error = refused(message)
    assert isinstance(error, BadRequest)
    assert "int_contents" in str(error)
    assert "raw_input_contents" in str(error)
    message = pair(raw=False)
    message.inputs[0].contents.Clear()
    message.inputs[0].contents.fp64_contents.extend([1, 2, 3, 4])
    error = refused(message)
    assert isinstance(error, BadTensor)
    assert "expected fp32_contents for FP32" in str(error)
    message = pair()
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"
    assert "shared memory" in str(refused(message))
    message = pair()
    message.parameters["timeout"].string_param = "soon"
    assert "'timeout' of the request" in str(refused(message))
    message = pair()
    message.inputs[1].name = "a"
    assert "two entries named 'a'" in str(refused(message))


def test_small_integers_out_of_their_range_are_refused() -> None:
    signature = Signature((TensorSpec("x", "INT8", (-1,)),), (TensorSpec("y", "INT8", (-1,)),))
    message = ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype="INT8", shape=[1]).contents.int_contents.append(300)
    with pytest.raises(BadTensor, match="300 at position 0, out of the range of INT8"):
        parse(message, signature)


@given(data=st.data())
def test_changed_bytes_are_parsed_or_refused_and_nothing_else(data: st.DataObject) -> None:
    message = bytearray(pair(raw=data.draw(st.booleans()), id="one").SerializeToString())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(message) - 1))
        how = data.draw(st.sampled_from(["set", "cut", "twice"]))
        if how == "set":
            message[at] = data.draw(st.integers(0, 255))
        elif how == "cut":
            del message[at : at + data.draw(st.integers(1, 4))]
        else:
            message[at:at] = message[at : at + 8]
        if not message:
            break
    with contextlib.suppress(ServiceError):
        PAIR.check_inputs(OIP_GRPC.parse(bytes(message), SERVED, ()).inputs)
