"""POST /v2/models/.../infer through the ASGI application, without a socket."""

import contextlib
import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldserve.service.artifact.datatypes import DATATYPES, numpy_dtype
from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.codecs.protocol import Served
from foldserve.service.errors import BadJson, BadRequest, BadTensor, ServiceError
from foldserve.service.protocols.oip.infer import OIP_BINARY, OIP_JSON
from foldserve.service.protocols.oip.request import Reply
from foldserve.service.protocols.oip.tensors import BINARY_ONLY
from tests.service.support import app_of, call, models

ROWS = np.array([[1, 2, 3], [4, 5, 6]], "f4")
LENGTH = "inference-header-content-length"
DOUBLE = "/v2/models/double/versions/1/infer"
PAIR = "/v2/models/pair/infer"


def tensor(name: str, array: np.ndarray, *, binary: bool = False, **changed: Any) -> dict[str, Any]:
    datatype = {"f4": "FP32", "i8": "INT64", "u1": "UINT8", "f8": "FP64"}[array.dtype.str[1:]]
    one: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype}
    one |= {"parameters": {"binary_data_size": array.nbytes}} if binary else {"data": array.tolist()}
    return one | changed


def infer(document: Any, *blobs: bytes, path: str = DOUBLE, headers: dict[str, str] | None = None) -> Any:
    text = json.dumps(document).encode()
    lengths = {LENGTH: str(len(text))} if blobs else {}
    return call(app_of(), "POST", path, text + b"".join(blobs), {**lengths, **(headers or {})})


def outputs_of(reply: Any) -> dict[str, np.ndarray]:
    """The outputs of an answer, read as tritonclient reads them."""
    assert reply.status == 200, reply.body
    end = int(reply.headers.get(LENGTH, len(reply.body)))
    document, at = json.loads(reply.body[:end]), end
    arrays = {}
    for output in document["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        dtype = np.dtype(object) if output["datatype"] == "BYTES" else numpy_dtype(output["datatype"])
        if size is None:
            flat = np.array(output["data"], dtype)
        else:
            flat, at = np.frombuffer(reply.body[at : at + size], dtype), at + size
        arrays[output["name"]] = flat.reshape(output["shape"])
    assert at == len(reply.body)
    return arrays


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "flat"])
def test_json_is_answered_in_json_with_flat_data(nested):
    data = ROWS.tolist() if nested else ROWS.reshape(-1).tolist()
    reply = infer({"id": "a1", "inputs": [tensor("x", ROWS, data=data)]})
    assert reply.headers["content-type"] == "application/json"
    assert LENGTH not in reply.headers
    assert reply.json() == {
        "model_name": "double",
        "model_version": "1",
        "id": "a1",
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [2, 3], "data": (2 * ROWS).reshape(-1).tolist()}
        ],
    }


@pytest.mark.parametrize(
    ("request_wide", "of_output", "binary"),
    [
        (None, None, False), (True, None, True), (False, True, True), (True, False, False), (None, True, True),
    ],
)  # fmt: skip
def test_the_choice_of_an_output_goes_before_that_of_the_request(request_wide, of_output, binary):
    document: dict[str, Any] = {"inputs": [tensor("x", ROWS)]}
    if request_wide is not None:
        document["parameters"] = {"binary_data_output": request_wide}
    if of_output is not None:
        document["outputs"] = [{"name": "y", "parameters": {"binary_data": of_output}}]
    reply = infer(document)
    np.testing.assert_array_equal(outputs_of(reply)["y"], 2 * ROWS)
    assert (LENGTH in reply.headers) is binary
    assert (reply.headers["content-type"] == "application/octet-stream") is binary


def test_binary_and_json_inputs_may_stand_in_one_request():
    a, b = ROWS[:, :2], np.array([7, 8], "i8")
    for binary_a, binary_b in ((True, False), (False, True), (True, True)):
        document = {"inputs": [tensor("b", b, binary=binary_b), tensor("a", a, binary=binary_a)]}
        blobs = [array.tobytes() for array, binary in ((b, binary_b), (a, binary_a)) if binary]
        expected = outputs_of(infer({"inputs": [tensor("a", a), tensor("b", b)]}, path=PAIR))
        found = outputs_of(infer(document, *blobs, path=PAIR))
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)


def test_outputs_come_chosen_and_in_the_order_asked_for():
    inputs = [tensor("a", ROWS[:, :2]), tensor("b", np.array([7, 8], "i8"))]
    names = [output["name"] for output in infer({"inputs": inputs}, path=PAIR).json()["outputs"]]
    for chosen in (names[::-1], names[1:], names[:1]):
        document = {"inputs": inputs, "outputs": [{"name": name} for name in chosen]}
        found = [output["name"] for output in infer(document, path=PAIR).json()["outputs"]]
        assert found == chosen


def test_a_raw_request_has_as_many_rows_as_its_size_and_a_binary_answer():
    reply = call(app_of(), "POST", DOUBLE, ROWS.tobytes(), {LENGTH: "0"})
    np.testing.assert_array_equal(outputs_of(reply)["y"], 2 * ROWS)
    assert LENGTH in reply.headers


def test_a_raw_request_of_a_model_with_another_free_dim_is_one_row():
    tokens = np.array([5, 6, 7], "i8")
    reply = call(app_of(), "POST", "/v2/models/sequence/infer", tokens.tobytes(), {LENGTH: "0"})
    assert outputs_of(reply)["total"].tolist() == [[18]]


@pytest.mark.parametrize(
    ("body", "length", "pattern"),
    [
        (b"", None, r'the body is empty; expected \{"inputs": \[\{"name"'),
        (b'{"inputs": [NaN]}', None, 'bytes after the JSON, with "binary_data_size"'),
        (b'["binary_data_size"]\x00\x00\x80\x3f', None, "in Inference-Header-Content-Length how long"),
        (b'["binary_data_size"]\x00\x00\x80\x3f', "22", "expected one JSON document in UTF-8$"),
        (b'{"inputs": []} x', None, "expected one JSON document in UTF-8$"),
    ],
)
def test_what_is_no_json_is_400_with_what_this_protocol_expects(body, length, pattern):
    reply = call(app_of(), "POST", DOUBLE, body, {} if length is None else {LENGTH: length})
    assert reply.error() == (400, "bad_json")
    assert re.search(pattern, reply.json()["error"]), reply.json()["error"]


def test_what_is_null_is_as_if_it_were_not_there():
    # As pydantic writes the requests of MLServer's client.
    nothing = {"content_type": "np", "headers": None}
    inputs = [tensor("x", ROWS, parameters={**nothing, "binary_data_size": None})]
    assert infer({"id": None, "parameters": None, "inputs": inputs, "outputs": None}).json() == (
        infer({"inputs": [tensor("x", ROWS)]}).json()
    )
    outputs = [{"name": "y", "parameters": {"binary_data": None, "classification": None}}]
    document = {"parameters": {**nothing, "timeout": None}, "inputs": inputs, "outputs": outputs}
    assert outputs_of(infer(document))["y"].tolist() == (2 * ROWS).tolist()
    sent = [tensor("x", ROWS, binary=True, data=None)]
    assert outputs_of(infer({"inputs": sent}, ROWS.tobytes()))["y"].tolist() == (2 * ROWS).tolist()


def test_classification_gives_the_largest_of_each_row_with_their_places():
    document = {
        "inputs": [tensor("x", ROWS)],
        "outputs": [{"name": "y", "parameters": {"classification": 2}}],
    }
    (output,) = infer(document).json()["outputs"]
    assert output == {
        "name": "y",
        "datatype": "BYTES",
        "shape": [2, 2],
        "data": ["6.000000:2", "4.000000:1", "12.000000:2", "10.000000:1"],
    }


def test_more_classes_than_there_are_gives_all():
    document = {
        "inputs": [tensor("x", ROWS)],
        "outputs": [{"name": "y", "parameters": {"classification": 9}}],
    }
    (output,) = infer(document).json()["outputs"]
    assert output["shape"] == [2, 3]


@pytest.mark.parametrize(
    ("datatype", "row", "data"),
    [
        ("FP32", [2, 1, 2, 1], ["2.000000:0", "2.000000:2", "1.000000:1", "1.000000:3"]),
        ("INT8", [-128, 127, 0], ["127.000000:1", "0.000000:2", "-128.000000:0"]),
        ("UINT64", [0, 2**53, 1], ["9007199254740992.000000:1", "1.000000:2", "0.000000:0"]),
    ],
)
@pytest.mark.parametrize("binary", [True, False])
def test_classes_go_from_the_largest_value_down_and_of_equal_ones_the_first_is_first(
    datatype, row, data, binary
):
    signature = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", datatype, (-1, len(row))),))
    reply = Reply(choices={"y": (binary, len(row))})
    array = np.array([row], numpy_dtype(datatype))
    answer = OIP_JSON.render(Served("m", "1", signature), {"y": array}, tuple(reply))
    if not binary:
        assert json.loads(answer.body)["outputs"][0]["data"] == data
        return
    _, length = answer.headers[0]
    assert answer.body[int(length) :] == b"".join(
        len(one).to_bytes(4, "little") + one.encode() for one in data
    )


@pytest.mark.parametrize("timeout_us", [1, 1000])
def test_a_timeout_bounds_the_time_in_the_queue(timeout_us):
    behind = models()
    behind.held = True
    document = {"inputs": [tensor("x", ROWS)], "parameters": {"timeout": timeout_us}}
    reply = call(app_of(behind), "POST", DOUBLE, json.dumps(document).encode())
    assert (reply.status, reply.json()["code"]) == (504, "deadline_passed")


def test_parameters_of_others_are_passed_over():
    document = {
        "model_name": "other", "inputs": [tensor("x", ROWS)], "parameters": {"sequence_id": 3, "trace": "yes", "k": 0.5}
    }  # fmt: skip
    assert infer(document).status == 200


GOOD = tensor("x", ROWS)
BAD: dict[str, tuple[Any, str]] = {
    "no object": ([], "the request is a list"),
    "no inputs": ({}, '"inputs" is missing'),
    "inputs no list": ({"inputs": {"x": 1}}, '"inputs" is an object'),
    "an input without a name": (
        {"inputs": [{"shape": [1]}]},
        r'"inputs"\[0\] is not an object with a "name"',
    ),
    "an input twice": ({"inputs": [GOOD, GOOD]}, "two entries named 'x'"),
    "an unknown input": ({"inputs": [tensor("z", ROWS)]}, "no input 'z'"),
    "another datatype": ({"inputs": [{**GOOD, "datatype": "FP64"}]}, "has datatype 'FP64'; expected 'FP32'"),
    "no datatype": ({"inputs": [{**GOOD, "datatype": None}]}, "has no datatype"),
    "no shape": ({"inputs": [{**GOOD, "shape": "2,3"}]}, 'no list of sizes as "shape"'),
    "a negative size": ({"inputs": [{**GOOD, "shape": [-1, 3]}]}, 'no list of sizes as "shape"'),
    "a true size": ({"inputs": [{**GOOD, "shape": [True, 3]}]}, 'no list of sizes as "shape"'),
    "a huge size": ({"inputs": [{**GOOD, "shape": [2**62, 3]}]}, "6 values"),
    "no rows": ({"inputs": [{**GOOD, "shape": [0, 3], "data": []}]}, "has no rows"),
    "another rank": ({"inputs": [{**GOOD, "shape": [6]}]}, "with 1 dims"),
    "another dim": ({"inputs": [{**GOOD, "shape": [3, 2]}]}, "dim 1 is 2; expected 3"),
    "too few values": ({"inputs": [{**GOOD, "data": [1, 2]}]}, "has 2 values"),
    "ragged values": ({"inputs": [{**GOOD, "data": [[1, 2, 3], 4, 5, 6]}]}, "lists beside values"),
    "true for a number": ({"inputs": [{**GOOD, "data": [True] * 6}]}, "has true at position 0"),
    "null for a number": ({"inputs": [{**GOOD, "data": [1, 2, None, 4, 5, 6]}]}, "null at position 2"),
    "a number out of range": (
        {"inputs": [{**GOOD, "data": [1, 2, 3, 4, 5, 1e39]}]},
        "at position 5, out of the range of FP32",
    ),
    "data no list": ({"inputs": [{**GOOD, "data": 7}]}, 'as "data"'),
    "no data": ({"inputs": [{k: v for k, v in GOOD.items() if k != "data"}]}, "has neither"),
    "data and bytes": ({"inputs": [{**GOOD, "parameters": {"binary_data_size": 24}}]}, '"data" and "binary'),
    "shared memory": (
        {"inputs": [{**tensor("x", ROWS, binary=True), "parameters": {"shared_memory_region": "r"}}]},
        "--client-shared-memory",
    ),
    "bytes that are not there": (
        {"inputs": [tensor("x", ROWS, binary=True)]},
        "0 bytes of the body are left",
    ),
    "parameters no object": ({"inputs": [GOOD], "parameters": 1}, 'as "parameters"'),
    "a parameter that is a list": ({"inputs": [GOOD], "parameters": {"k": []}}, "parameter 'k'"),
    "a bad timeout": ({"inputs": [GOOD], "parameters": {"timeout": -1}}, "parameter 'timeout'"),
    "a bad priority": ({"inputs": [GOOD], "parameters": {"priority": "high"}}, "parameter 'priority'"),
    "an unknown output": ({"inputs": [GOOD], "outputs": [{"name": "q"}]}, "output 'q' is asked for"),
    "an output in shared memory": (
        {"inputs": [GOOD], "outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]},
        "--client-shared-memory",
    ),
    "a bad choice": (
        {"inputs": [GOOD], "outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]},
        "expected true or false",
    ),
    "a long id": ({"id": "x" * 2000, "inputs": [GOOD]}, '"id"'),
    "an id that is no text": ({"id": 7, "inputs": [GOOD]}, '"id"'),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_400_and_says_what_is_wrong(case):
    document, pattern = BAD[case]
    reply = infer(document)
    assert reply.status == 400, reply.body
    error = reply.json()
    assert set(error) == {"error", "code"}
    assert re.search(pattern, error["error"]), error["error"]


@pytest.mark.parametrize(
    ("length", "body"),
    [
        ("x", b"{}"),
        ("-1", b"{}"),
        ("3", b"{}"),
        ("1e3", b"{}"),
        ("9" * 40, b"{}"),
        ("0", b""),
        ("0", bytes(13)),
        ("1", b"{}"),
    ],
)
def test_a_bad_length_of_the_json_is_400(length, body):
    assert call(app_of(), "POST", DOUBLE, body, {LENGTH: length}).status == 400


@pytest.mark.parametrize("size", [0, 23, 25, 48])
def test_a_binary_size_that_is_not_the_shapes_is_400(size):
    document = {"inputs": [{**tensor("x", ROWS, binary=True), "parameters": {"binary_data_size": size}}]}
    assert infer(document, ROWS.tobytes()).status == 400


def test_bytes_that_are_left_over_are_400():
    reply = infer({"inputs": [tensor("x", ROWS, binary=True)]}, ROWS.tobytes(), b"more")
    assert (reply.status, "4 bytes of the body are left over" in reply.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v2/models/none/infer", "unknown_model"),
        ("/v2/models/double/versions/9/infer", "unknown_version"),
    ],
)
def test_what_is_not_served_is_404(path, code):
    reply = infer({"inputs": [GOOD]}, path=path)
    assert (reply.status, reply.json()["code"]) == (404, code)


def specs(datatype: str) -> Signature:
    return Signature((TensorSpec("x", datatype, (-1, 2)),), (TensorSpec("y", datatype, (-1, 2)),))


def version_of(datatype: str) -> Served:
    return Served("m", "1", specs(datatype))


def arrays(datatype: str) -> st.SearchStrategy[np.ndarray]:
    dtype = numpy_dtype(datatype)
    elements: st.SearchStrategy[Any]
    if dtype.kind == "b":
        elements = st.booleans()
    elif dtype.kind == "f":
        elements = st.floats(width=8 * dtype.itemsize, allow_nan=False, allow_infinity=False)
    else:
        limits = np.iinfo(dtype.name)
        elements = st.integers(int(limits.min), int(limits.max))
    rows = st.lists(st.tuples(elements, elements), min_size=1, max_size=4)
    return rows.map(lambda values: np.array(values, dtype))


@pytest.mark.parametrize("datatype", DATATYPES)
@settings(max_examples=30)
@given(data=st.data(), binary=st.booleans(), identity=st.text(max_size=20))
def test_every_datatype_goes_in_and_out_as_it_is(datatype, data, binary, identity):
    array = data.draw(arrays(datatype))
    binary |= datatype in BINARY_ONLY
    one = {"name": "x", "shape": list(array.shape), "datatype": datatype}
    one |= {"parameters": {"binary_data_size": array.nbytes}} if binary else {"data": array.tolist()}
    document = {"id": identity, "inputs": [one], "parameters": {"binary_data_output": binary}}
    text = json.dumps(document).encode()
    body = text + array.tobytes() if binary else text
    protocol = OIP_BINARY if binary else OIP_JSON
    parsed = protocol.parse(body, version_of(datatype), (str(len(text)),) if binary else ())
    np.testing.assert_array_equal(parsed.inputs["x"], array)
    assert parsed.inputs["x"].dtype == array.dtype
    answer = protocol.render(Served("m", "1", specs(datatype)), {"y": array}, parsed.reply)
    end = int(dict(answer.headers)["Inference-Header-Content-Length"]) if binary else len(answer.body)
    (output,) = json.loads(answer.body[:end])["outputs"]
    found = np.frombuffer(answer.body[end:], array.dtype) if binary else np.array(output["data"], array.dtype)
    np.testing.assert_array_equal(found.reshape(output["shape"]), array)
    laid = protocol.lay_out(Served("m", "1", specs(datatype)), {"y": array}, parsed.reply)
    assert (laid is not None) is binary
    if laid is not None:
        assert (laid.prefix + bytes(laid.numbers), laid.headers) == (answer.body, answer.headers)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["name", "shape", "datatype", "data", "parameters", "binary_data_size", "binary_data"]
            ),
            inner,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300)
@given(
    document=st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("id", "parameters", "inputs", "outputs"), VALUES)
    ),
    rest=st.binary(max_size=30),
)
def test_any_document_is_parsed_or_refused(document, rest):
    text = json.dumps(document).encode()
    with contextlib.suppress(BadRequest, BadJson, BadTensor):
        OIP_BINARY.parse(text + rest, version_of("FP32"), (str(len(text)),))


def test_an_answer_that_json_cannot_carry_names_the_way_out():
    array = np.array([[1, np.nan]], "f4")
    served = Served("m", "1", specs("FP32"))
    with pytest.raises(ServiceError, match='"binary_data": true'):
        OIP_JSON.render(served, {"y": array}, tuple(Reply()))
    assert OIP_JSON.render(served, {"y": array}, tuple(Reply(binary=True))).body.endswith(array.tobytes())


def test_an_fp16_output_is_refused_as_json_before_it_is_computed():
    document = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP16", "data": [1, 2]}]}
    with pytest.raises(ServiceError, match="output 'y' is FP16"):
        OIP_JSON.parse(json.dumps(document).encode(), version_of("FP16"), ())


def test_labels_stand_behind_the_places_of_classes():
    served = Served("m", "1", specs("FP32"), ("cat", "dog"))
    reply = Reply(choices={"y": (False, 1)})
    (output,) = json.loads(OIP_JSON.render(served, {"y": np.array([[0.25, 0.5]], "f4")}, tuple(reply)).body)[
        "outputs"
    ]
    assert output["data"] == ["0.500000:1:dog"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (DOUBLE, "binary_data_size"),
        ("/v1/models/double:predict", "fewer rows"),
        ("/predictions/double", "fewer rows"),
        ("/predict/double", "application/x-npy"),
    ],
)
def test_body_that_is_too_long_says_what_its_protocol_can_do(path, says):
    body, headers = b"[" + b" " * 2**21 + b"]", {"Content-Type": "application/json"}
    reply = call(app_of(), "POST", path, body, headers)
    assert reply.error() == (413, "too_large")
    assert says in reply.json()["error"]
    assert ("npy" in reply.json()["error"]) == (path == "/predict/double")
