"""TorchServe's calls through the ASGI application, without a socket."""

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.codecs.protocol import Served
from foldserve.service.errors import ModelFailed, ServiceError
from foldserve.service.protocols.torchserve import TORCHSERVE, TORCHSERVE_ANY
from tests.service.protocols.picture_models import COLOURS, IMAGE, LABELS, photo, picture_models, saved
from tests.service.support import app_of, call, call_async, models

ROWS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
TRIPLED = [[3.0, 6.0, 9.0], [12.0, 15.0, 18.0]]
RED = (250, 10, 10)
JPEG = saved(photo(RED))
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
BOUNDARY = b'--b\r\nContent-Disposition: form-data; name="data"; filename="c.jpg"\r\n\r\n%b\r\n--b--\r\n'
DOUBLE = "/predictions/double"


@pytest.fixture(scope="module")
def pictures() -> Iterator[Any]:
    """Asks models that take pictures, all on one loop, whose codec process is ended."""
    with asyncio.Runner() as runner:
        app = app_of(picture_models())
        yield lambda *request: runner.run(call_async(app, *request))
        runner.run(app.end())


@pytest.mark.parametrize(
    ("document", "answer"),
    [
        (ROWS[0], TRIPLED[0]),
        (ROWS, TRIPLED),
        (ROWS[:1], TRIPLED[:1]),
        ({"data": ROWS[0]}, TRIPLED[0]),
        ({"body": ROWS}, TRIPLED),
        ({"instances": ROWS}, {"predictions": TRIPLED}),
        ({"instances": [{"x": row} for row in ROWS]}, {"predictions": TRIPLED}),
        ({"inputs": ROWS}, {"outputs": TRIPLED}),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_row_is_answered_by_a_row_and_rows_by_rows(document, answer, method):
    reply = call(app_of(), method, DOUBLE, json.dumps(document).encode())
    assert (reply.status, reply.json()) == (200, answer)


def test_a_version_may_be_chosen_and_types_are_not_looked_at():
    body, headers = json.dumps(ROWS[0]).encode(), {"Content-Type": "application/x-www-form-urlencoded"}
    assert call(app_of(), "POST", f"{DOUBLE}/1", body, headers).json() == [2.0, 4.0, 6.0]


def test_several_inputs_and_outputs_go_by_name():
    document = {"instances": [{"a": [1, 2], "b": 10}, {"a": [3, 4], "b": 20}]}
    reply = call(app_of(), "POST", "/predictions/pair", json.dumps(document).encode())
    assert reply.json() == {
        "predictions": [{"sum": [11.0, 12.0], "count": 11}, {"sum": [23.0, 24.0], "count": 21}]
    }


def shares(colour: tuple[int, ...]) -> dict[str, float]:
    powers = np.exp(np.array(colour, np.float64) - max(colour))
    return dict(zip(LABELS, powers / powers.sum(), strict=True))


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (JPEG, {}),
        (JPEG, {"Content-Type": "image/jpeg"}),
        (JPEG, {"Content-Type": "application/octet-stream"}),
        (saved(photo(RED), "PNG"), {}),
        (BOUNDARY % JPEG, FORM),
        (json.dumps({"data": base64.b64encode(JPEG).decode()}).encode(), {}),
        (json.dumps(base64.b64encode(JPEG).decode()).encode(), {"Content-Type": "application/json"}),
        (json.dumps(np.full((4, 6, 3), RED).tolist()).encode(), {}),
    ],
    ids=["unnamed", "jpeg", "bytes", "png", "form", "base64", "a text", "numbers"],
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_picture_is_answered_by_labels_with_shares_the_largest_first(pictures, body, headers, method):
    reply = pictures(method, "/predictions/colours", body, headers)
    assert reply.status == 200, reply.body
    assert next(iter(reply.json())) == "red"
    # A JPEG of one colour is that colour within two of 255, and softmax spreads what is left.
    assert reply.json().keys() == shares(RED).keys()
    assert reply.json()["red"] == pytest.approx(1.0, abs=1e-6)
    assert sum(reply.json().values()) == pytest.approx(1.0)


def test_several_pictures_get_an_answer_each(pictures):
    one = {"b64": base64.b64encode(JPEG).decode()}
    for document in ({"instances": [one, one]}, [one, one]):
        reply = pictures("POST", "/predictions/colours", json.dumps(document).encode())
        assert reply.status == 200, reply.body
        rows = reply.json()["predictions"] if isinstance(document, dict) else reply.json()
        assert [next(iter(row)) for row in rows] == ["red", "red"]


def test_without_labels_a_picture_is_answered_by_its_row(pictures):
    reply = pictures("PUT", "/predictions/free", JPEG)
    assert np.abs(np.array(reply.json()) - RED).max() <= 3


def test_five_classes_are_told_and_labels_that_are_named_twice_once():
    signature = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 7)),))
    version = Served("m", "1", signature, ("crane", *"bcdef", "crane"))
    scores = np.array([[1, 2, 3, 4, 5, 6, 7]], "f4")
    (row,) = json.loads(TORCHSERVE.render(version, {"y": scores}, "rows").body)
    powers = np.exp(scores[0].astype("f8"))
    assert list(row) == ["crane", "f", "e", "d", "c"]
    assert row["crane"] == pytest.approx(powers[6] / powers.sum())
    again = json.loads(TORCHSERVE.render(version, {"y": np.zeros((1, 7), "f4")}, "row").body)
    assert list(again) == ["crane", "b", "c", "d", "e"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_told(bad):
    signature = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),))
    for labels in ((), ("a", "b")):
        with pytest.raises(ModelFailed):
            TORCHSERVE.render(Served("m", "1", signature, labels), {"y": np.array([[1, bad]], "f4")}, "row")


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "says"),
    [
        (DOUBLE, b"", {}, 400, "is empty|not JSON"),
        (DOUBLE, b"\xff\xd8", {}, 400, "not JSON"),
        (DOUBLE, b"7", {}, 400, "holds a number"),
        (DOUBLE, b'"text"', {}, 400, "holds a text|holds a string"),
        (DOUBLE, b"{}", {}, 400, "the keys none"),
        (DOUBLE, b'{"data": 1, "body": 2}', {}, 400, "the keys 'data', 'body'"),
        (DOUBLE, b'{"data": [[1, 2]]}', {}, 400, "dim 1 is 2"),
        (DOUBLE, b"[1, 2, true]", {}, 400, "true"),
        (DOUBLE, b"[[[1]]]", {}, 400, "dims"),
        (DOUBLE, b"[]", {}, 400, "expected"),
        (DOUBLE, b"[" * 5000, {}, 400, "JSON"),
        (DOUBLE, b"[1,2,3]", {"Content-Type": "image/jpeg"}, 415, "does not say how it takes pictures"),
        ("/predictions/pair", b"[1, 2]", {}, 400, "the body names none"),
        ("/predictions/none", b"[]", {}, 404, "not served"),
        (f"{DOUBLE}/9", b"[]", {}, 404, "no version '9'"),
    ],
)
def test_a_bad_request_says_what_is_wrong(path, body, headers, status, says):
    reply = call(app_of(), "POST", path, body, headers)
    assert (reply.status, set(reply.json())) == (status, {"error", "code"})
    assert any(part in reply.json()["error"] for part in says.split("|")), reply.json()["error"]


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", {}),
        (b"GIF89a", {}),
        (JPEG[:100], {}),
        (b'"%%%"', {}),
        (b'{"data": "AAAA"}', {}),
        (b'[{"b64": 7}]', {}),
        (BOUNDARY % b"", FORM),
        (b"--b--", FORM),
        (JPEG, {"Content-Type": "image/webp"}),
    ],
)
def test_what_is_no_picture_is_the_clients_fault(pictures, body, headers):
    reply = pictures("PUT", "/predictions/colours", body, headers)
    assert reply.status in (400, 415), reply.body
    assert set(reply.json()) == {"error", "code"}


VERSIONS = (
    Served("m", "1", COLOURS, LABELS, IMAGE),
    Served("m", "1", Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),))),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["data", "body", "instances", "inputs", "x", "b64"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@given(
    st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()), st.sampled_from(VERSIONS)
)
def test_any_body_is_parsed_or_refused_as_the_clients_fault(body, version):
    protocol = TORCHSERVE if version.image is None else TORCHSERVE_ANY
    refused = None
    try:
        parsed = protocol.parse(body, version, ())
        rows = version.signature.check_inputs(parsed.inputs)
        scores = np.zeros((rows, 3), "f4")
        json.loads(protocol.render(version, {"y": scores}, parsed.reply).body)
    except ServiceError as error:
        refused = error
    assert refused is None or 400 <= refused.status < 500


def test_models_are_listed_and_described_as_far_as_it_is_so_here():
    app = app_of(models())
    assert {"modelName": "double", "modelUrl": "double"} in call(app, "GET", "/models").json()["models"]
    (described,) = call(app, "GET", "/models/double").json()
    assert (described["modelName"], described["modelVersion"], described["batchSize"]) == ("double", "2", 32)
    assert [one["status"] for one in described["workers"]] == ["READY", "UNLOADING"]
    assert [one["modelVersion"] for one in call(app, "GET", "/models/double/all").json()] == ["1", "2"]
    assert [one["modelVersion"] for one in call(app, "GET", "/models/double/1").json()] == ["1"]
    assert call(app, "GET", "/models/none").status == 404
    assert call(app, "POST", "/models").status == 405
    assert call(app, "GET", "/ping").json() == {"status": "Healthy"}
