"""POST /v1/models/{model}:predict through the ASGI application, without a socket."""

import contextlib
import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from foldserve.service.artifact.datatypes import DATATYPES, numpy_dtype
from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.codecs.protocol import Served
from foldserve.service.errors import BadJson, BadTensor, ModelFailed
from foldserve.service.protocols.kserve_v1 import KSERVE_V1
from tests.service.support import app_of, call, models, one_model, served

ROWS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
TRIPLED = [[3.0, 6.0, 9.0], [12.0, 15.0, 18.0]]
DOUBLED = [[2.0, 4.0, 6.0], [8.0, 10.0, 12.0]]
PAIRS = {"a": [[1, 2], [3, 4]], "b": [10, 20]}
"""Of which `pair` makes the sums [[11, 12], [23, 24]] and the counts [11, 21]."""


def predict(document: Any, path: str = "/v1/models/double:predict") -> Any:
    return call(app_of(), "POST", path, json.dumps(document).encode())


@pytest.mark.parametrize(
    ("document", "answer"),
    [
        ({"instances": ROWS}, {"predictions": TRIPLED}),
        ({"instances": [{"x": row} for row in ROWS]}, {"predictions": TRIPLED}),
        ({"inputs": ROWS}, {"outputs": TRIPLED}),
        ({"inputs": {"x": ROWS}}, {"outputs": TRIPLED}),
        ({"instances": ROWS, "signature_name": "serving_default"}, {"predictions": TRIPLED}),
        (ROWS, {"predictions": TRIPLED}),
    ],
)
def test_rows_are_answered_by_rows_and_columns_by_columns(document, answer):
    reply = predict(document)
    assert (reply.status, reply.json()) == (200, answer)
    assert reply.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("document", "answer"),
    [
        (
            {"instances": [{"a": [1, 2], "b": 10}, {"a": [3, 4], "b": 20}]},
            {"predictions": [{"sum": [11.0, 12.0], "count": 11}, {"sum": [23.0, 24.0], "count": 21}]},
        ),
        ({"inputs": PAIRS}, {"outputs": {"sum": [[11.0, 12.0], [23.0, 24.0]], "count": [11, 21]}}),
    ],
)
def test_several_inputs_and_outputs_go_by_name(document, answer):
    reply = predict(document, "/v1/models/pair:predict")
    assert (reply.status, reply.json()) == (200, answer)


def test_a_version_may_be_chosen():
    path = "/v1/models/double/versions/1:predict"
    assert predict({"instances": ROWS}, path).json() == {"predictions": DOUBLED}


@pytest.mark.parametrize(
    ("document", "path", "pattern"),
    [
        (7, "double", "the body is a number"),
        ({}, "double", "the keys none"),
        ({"instances": ROWS, "inputs": ROWS}, "double", "the keys 'instances', 'inputs'"),
        ({"instances": ROWS, "extra": 1}, "double", "and nothing else"),
        ({"instances": 7}, "double", '"instances" is a number'),
        ({"instances": []}, "double", "no rows"),
        (
            {"instances": [{"x": ROWS[0]}, ROWS[1]]},
            "double",
            r""""instances"\[1\] has not the inputs 'x' that""",
        ),
        ({"instances": [{"x": ROWS[0]}, {"z": 1}]}, "double", r'"instances"\[1\] has not'),
        ({"instances": [{"z": ROWS[0]}]}, "double", "no input 'z'"),
        ({"instances": [[1, 2]]}, "double", "dim 1 is 2; expected 3"),
        ({"instances": [[1, 2, True]]}, "double", "boolean|true"),
        ({"instances": [[1, 2], [3, 4]]}, "pair", "the values name none"),
        ({"inputs": [[1, 2]]}, "pair", "the values name none"),
        ({"inputs": {"a": [[1, 2]]}}, "pair", "input b is missing"),
    ],
)
def test_a_bad_body_is_400_and_says_what_is_wrong(document, path, pattern):
    reply = predict(document, f"/v1/models/{path}:predict")
    assert reply.status == 400
    assert re.search(pattern, reply.json()["error"]), reply.json()["error"]


@pytest.mark.parametrize("form", ["rows of two kinds", "unknown keys"])
def test_how_long_an_error_is_cannot_be_chosen_by_the_client(form):
    names = {f"name {at}" * 100: 1 for at in range(1000)}
    document = {"instances": [names, {"x": 1}]} if form == "rows of two kinds" else names
    with pytest.raises(BadJson) as refused:
        KSERVE_V1.parse(json.dumps(document).encode(), Served("m", "1", Signature((SPEC,), (OUT,))), ())
    assert len(str(refused.value)) < 1000


def test_what_is_no_json_is_400():
    for body, pattern in (
        (b"{", "not JSON"),
        (b"", '"instances"'),
        (b'{"inputs": [[NaN]]}', "POST .* to /predict"),
    ):
        reply = call(app_of(), "POST", "/v1/models/double:predict", body)
        assert reply.error() == (400, "bad_json")
        assert re.search(pattern, reply.json()["error"]), reply.json()["error"]


def test_unknown_models_and_versions_are_404():
    assert predict({"instances": ROWS}, "/v1/models/none:predict").error() == (404, "unknown_model")
    assert predict({"instances": ROWS}, "/v1/models/double/versions/9:predict").error() == (
        404,
        "unknown_version",
    )


def test_a_model_tells_whether_it_is_ready():
    reply = call(app_of(), "GET", "/v1/models/double")
    assert reply.status == 200
    assert (reply.json()["name"], reply.json()["ready"]) == ("double", True)
    assert [one["state"] for one in reply.json()["model_version_status"]] == ["AVAILABLE", "AVAILABLE"]
    behind = models()
    behind.served["double"] = served("double", ("1", Signature((SPEC,), (OUT,))), ready=False)
    reply = call(app_of(behind), "GET", "/v1/models/double")
    assert (reply.status, reply.json()["ready"]) == (503, False)
    assert call(app_of(), "GET", "/v1/models").json() == {"models": ["double", "pair", "picture", "sequence"]}


def test_sagemaker_finds_the_only_model_and_whether_it_is_ready():
    app = app_of(one_model(), default_model=None)
    assert call(app, "GET", "/ping").status == 200
    reply = call(app, "POST", "/invocations", json.dumps(ROWS).encode())
    assert reply.json() == {"predictions": DOUBLED}
    assert app.metrics.finished[-1]["protocol"] == "v1"
    behind = one_model()
    behind.is_ready = False
    assert call(app_of(behind), "GET", "/ping").error() == (503, "not_ready")


SPEC = TensorSpec("x", "FP32", (-1, 2))
OUT = TensorSpec("y", "FP32", (-1, 2))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["x", "y", "b64"]), inner),
    max_leaves=12,
)


@given(document=VALUES | st.dictionaries(st.sampled_from(["instances", "inputs", "parameters"]), VALUES))
def test_any_document_is_parsed_or_refused(document):
    with contextlib.suppress(BadJson, BadTensor):
        KSERVE_V1.parse(json.dumps(document).encode(), Served("m", "1", Signature((SPEC,), (OUT,))), ())


def test_rows_of_a_model_that_counts_none_are_refused_with_the_way_out():
    whole = TensorSpec("x", "FP32", (2, 2), counts_rows=False)
    signature = Signature((whole,), (TensorSpec("y", "FP32", (-1,), counts_rows=False),))
    version = Served("m", "1", signature)
    with pytest.raises(BadTensor, match=r'\{"inputs": values\}'):
        KSERVE_V1.parse(b'{"instances": [[1, 2]]}', version, ())
    parsed = KSERVE_V1.parse(b'{"inputs": [[1, 2], [3, 4]]}', version, ())
    assert parsed.inputs["x"].tolist() == [[1, 2], [3, 4]]


def test_an_answer_that_json_cannot_carry_is_an_error():
    with pytest.raises(ModelFailed, match="JSON cannot carry"):
        KSERVE_V1.render(
            Served("m", "1", Signature((SPEC,), (OUT,))), {"y": np.array([[1, np.inf]], "f4")}, "instances"
        )


@settings(max_examples=60, deadline=None, database=None)
@given(data=st.data(), rows=st.booleans())
def test_every_datatype_goes_in_and_out_as_it_is(data, rows):
    word = data.draw(st.sampled_from(DATATYPES))
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=4))
    finite = {"allow_nan": False, "allow_infinity": False} if word.startswith(("FP", "BF")) else None
    array = data.draw(hnp.arrays(numpy_dtype(word), shape, elements=finite))
    spec = TensorSpec("t", word, (-1, *shape[1:]))
    version = Served("m", "1", Signature((spec,), (spec,)))
    body = json.dumps({"instances" if rows else "inputs": array.tolist()}).encode()
    parsed = KSERVE_V1.parse(body, version, ())
    assert (parsed.inputs["t"].dtype, parsed.inputs["t"].shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(parsed.inputs["t"], array)
    (answer,) = json.loads(bytes(KSERVE_V1.render(version, {"t": array}, parsed.reply).body)).values()
    np.testing.assert_array_equal(np.array(answer, array.dtype).reshape(shape), array)
