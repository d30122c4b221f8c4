"""POST /predict through the ASGI application, without a socket."""

import asyncio
import io
import json

import numpy as np
import pytest

from foldserve.service.codecs.fast.json_rows import JsonRowsCodec
from tests.service.support import (
    DOUBLE,
    JSON,
    NPY,
    RAW,
    CountingMetrics,
    app_of,
    call,
    call_async,
    double,
    models,
    one_model,
    post,
    served,
)

ROWS = np.array([[1, 2, 3], [4, 5, 6]], "f4")


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_json_is_answered_with_model_version_and_outputs():
    reply = post(app_of(), "/predict/double/versions/1", {"inputs": ROWS.tolist()})
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.json() == {"model": "double", "version": "1", "outputs": {"y": (2 * ROWS).tolist()}}


def test_the_three_body_types_give_the_same_numbers():
    app = app_of()
    as_json = post(app, "/predict/double", {"inputs": {"x": ROWS.tolist()}}).json()["outputs"]["y"]
    raw = call(app, "POST", "/predict/double", ROWS.tobytes(), RAW)
    as_npy = call(app, "POST", "/predict/double", npy(ROWS), NPY)
    np.testing.assert_array_equal(np.frombuffer(raw.body, "<f4").reshape(2, 3), as_json)
    np.testing.assert_array_equal(np.load(io.BytesIO(as_npy.body)), as_json)
    for reply, kind in ((raw, RAW), (as_npy, NPY)):
        assert reply.headers["content-type"] == kind["content-type"]
        assert reply.headers["x-tensor-name"] == "y"
        assert reply.headers["x-tensor-datatype"] == "FP32"
        assert reply.headers["x-tensor-shape"] == "2,3"


def test_accept_chooses_another_type_for_the_answer():
    reply = call(app_of(), "POST", "/predict/double", ROWS.tobytes(), {**RAW, "accept": "application/json"})
    assert reply.json()["outputs"]["y"] == (3 * ROWS).tolist()


def test_accept_in_two_lines_is_one_list():
    headers = [
        ("content-type", "application/octet-stream"),
        ("accept", "text/html"),
        ("accept", "application/x-npy"),
    ]
    assert (
        call(app_of(), "POST", "/predict/double", ROWS.tobytes(), headers).headers["content-type"]
        == NPY["content-type"]
    )


@pytest.mark.parametrize(
    ("path", "version", "factor"),
    [
        ("/predict", "2", 3),
        ("/predict/double", "2", 3),
        ("/predict/double?version=1", "1", 2),
        ("/predict/double/versions/1", "1", 2),
        ("/predict/double/versions/1?version=1", "1", 2),
        ("/predict?version=1", "1", 2),
    ],
)
def test_model_and_version_are_chosen_by_path_and_query(path, version, factor):
    said = post(app_of(), path, {"inputs": [[1, 2, 3]]}).json()
    assert said["version"] == version
    assert said["outputs"]["y"] == [[factor, 2 * factor, 3 * factor]]


def test_the_only_model_needs_no_name_and_no_setting():
    assert post(app_of(one_model(), default_model=None), "/predict", {"inputs": [[1, 2, 3]]}).status == 200


def test_no_name_among_several_models_is_refused_with_the_names():
    reply = post(app_of(default_model=None), "/predict", {"inputs": [[1, 2, 3]]})
    assert reply.error() == (404, "unknown_model")
    assert "double, pair, picture, sequence" in reply.json()["error"]


def test_several_inputs_and_outputs_go_by_name():
    said = post(app_of(), "/predict/pair", {"inputs": {"a": [[1, 2]], "b": [10]}}).json()
    assert said["outputs"] == {"sum": [[11.0, 12.0]], "count": [11]}


def test_one_of_several_outputs_can_be_had_in_every_type():
    app = app_of()
    body = json.dumps({"inputs": {"a": [[1, 2]], "b": [10]}}).encode()
    assert call(app, "POST", "/predict/pair?output=count", body, JSON).json()["outputs"] == {"count": [11]}
    raw = call(app, "POST", "/predict/pair?output=count", body, {**JSON, "accept": RAW["content-type"]})
    assert raw.body == (11).to_bytes(8, "little")
    assert raw.headers["x-tensor-datatype"] == "INT64"


def test_several_outputs_in_a_type_for_one_are_refused_before_the_model_runs():
    behind = models()
    body = json.dumps({"inputs": {"a": [[1, 2]], "b": [10]}}).encode()
    reply = call(app_of(behind), "POST", "/predict/pair", body, {**JSON, "accept": NPY["content-type"]})
    assert reply.error() == (406, "not_acceptable")
    assert "?output=sum" in reply.json()["error"]
    assert behind.calls == []


def test_a_raw_sequence_needs_its_shape():
    app = app_of()
    tokens = np.arange(6, dtype="i8")
    shaped = call(app, "POST", "/predict/sequence", tokens.tobytes(), {**RAW, "x-tensor-shape": "2,3"})
    assert np.frombuffer(shaped.body, "<i8").tolist() == [3, 12]
    assert call(app, "POST", "/predict/sequence", tokens.tobytes(), RAW).error() == (400, "bad_tensor")


BAD_JSON = [
    (b"{", "bad_json"),
    (b"", "bad_json"),
    (b'{"inputs": [[1, NaN, 3]]}', "bad_json"),
    (b'{"inputs": [[1, Infinity, 3]]}', "bad_json"),
    (b"[[1, 2, 3]]", "bad_json"),
    (b'{"input": [[1, 2, 3]]}', "bad_json"),
    (b'{"inputs": [[1, 2, 3], [4, 5]]}', "bad_tensor"),
    (b'{"inputs": [["1", "2", "3"]]}', "bad_tensor"),
    (b'{"inputs": [[true, 2, 3]]}', "bad_tensor"),
    (b'{"inputs": [[null, 2, 3]]}', "bad_tensor"),
    (b'{"inputs": [1, 2, 3]}', "bad_tensor"),
    (b'{"inputs": [[1, 2]]}', "bad_tensor"),
    (b'{"inputs": {"z": [[1, 2, 3]]}}', "bad_tensor"),
    (b'{"inputs": []}', "bad_tensor"),
    (b'{"inputs": [[]]}', "bad_tensor"),
    (b'{"inputs": [[1e39, 2, 3]]}', "bad_tensor"),
]


@pytest.mark.parametrize(("body", "code"), BAD_JSON)
def test_a_bad_json_body_is_400_and_never_reaches_the_engine(body, code):
    behind = models()
    assert call(app_of(behind), "POST", "/predict/double", body, JSON).error() == (400, code)
    assert behind.calls == []


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", RAW),
        (bytes(13), RAW),
        (bytes(12), {**RAW, "x-tensor-shape": "2,3"}),
        (b"x", NPY),
        (npy(np.zeros((1, 3))), NPY),
        (npy(np.zeros((0, 3), "f4")), NPY),
    ],
)
def test_a_bad_binary_body_is_400_and_never_reaches_the_engine(body, headers):
    behind = models()
    assert call(app_of(behind), "POST", "/predict/double", body, headers).error() == (400, "bad_tensor")
    assert behind.calls == []


def test_inputs_of_different_rows_are_400():
    assert post(app_of(), "/predict/pair", {"inputs": {"a": [[1, 2]], "b": [1, 2]}}).error() == (
        400,
        "bad_tensor",
    )


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        ("/predict/nobody", JSON, (404, "unknown_model")),
        ("/predict/nobody/versions/1", JSON, (404, "unknown_model")),
        ("/predict/double/versions/9", JSON, (404, "unknown_version")),
        ("/predict/double?version=9", JSON, (404, "unknown_version")),
        ("/predict/double/versions/1?version=2", JSON, (400, "bad_request")),
        ("/predict/double?verison=1", JSON, (400, "bad_request")),
        ("/predict/double?output=z", JSON, (400, "bad_request")),
        ("/predict/double", {}, (415, "unsupported_media_type")),
        ("/predict/double", {"content-type": "text/plain"}, (415, "unsupported_media_type")),
        (
            "/predict/double",
            {"content-type": "application/x-www-form-urlencoded"},
            (415, "unsupported_media_type"),
        ),
        ("/predict/double", {**JSON, "content-encoding": "br"}, (415, "unsupported_media_type")),
        ("/predict/double", {**JSON, "accept": "text/html"}, (406, "not_acceptable")),
        ("/predict/double", {**JSON, "x-timeout-ms": "soon"}, (400, "bad_request")),
        ("/predict/double", {**JSON, "x-timeout-ms": "-5"}, (400, "bad_request")),
        ("/predict/pair", RAW, (415, "unsupported_media_type")),
    ],
)
def test_what_the_head_gets_wrong_is_refused(path, headers, expected):
    assert call(app_of(), "POST", path, b'{"inputs": [[1, 2, 3]]}', headers).error() == expected


def test_an_identity_encoding_is_no_encoding():
    assert (
        call(app_of(), "POST", "/predict/double", bytes(12), {**RAW, "content-encoding": "identity"}).status
        == 200
    )


def test_an_unknown_model_of_many_does_not_list_them_all():
    behind = models()
    behind.functions = {(f"m{number:03}", "1"): double for number in range(100)}
    behind.served = {f"m{number:03}": served(f"m{number:03}", ("1", DOUBLE)) for number in range(100)}
    said = post(app_of(behind), "/predict/nobody", {"inputs": [[1, 2, 3]]}).json()["error"]
    assert "and 80 more" in said


def test_too_large_a_body_is_413():
    app = app_of(max_body_bytes=100)
    assert call(app, "POST", "/predict/double", bytes(101), RAW).error() == (413, "too_large")
    chunked = call(app, "POST", "/predict/double", [bytes(60), bytes(60), bytes(60)], RAW)
    assert chunked.error() == (413, "too_large")
    assert chunked.headers["connection"] == "close"
    assert call(app, "POST", "/predict/double", bytes(96), RAW).status == 200


def test_the_models_own_error_reaches_the_client():
    behind = models()

    def fail(inputs):
        raise ValueError("no luck")

    behind.functions["double", "2"] = fail
    reply = post(app_of(behind), "/predict/double", {"inputs": ROWS.tolist()})
    assert reply.error() == (500, "model_failed")


def test_a_full_queue_is_429_with_the_time_to_wait():
    behind = models()
    behind.held, behind.queue = True, {"max_rows": 1}

    async def two():
        app = app_of(behind)
        first = asyncio.create_task(call_async(app, "POST", "/predict/double", bytes(12), RAW))
        await asyncio.to_thread(behind.arrived.wait, 10)
        second = await call_async(app, "POST", "/predict/double", bytes(12), RAW)
        behind.held = False
        return await first, second

    first, second = asyncio.run(two())
    assert first.status == 200
    assert second.error() == (429, "queue_full")
    assert int(second.headers["retry-after"]) >= 1


def test_a_fault_of_the_server_is_500_with_nothing_of_its_cause(caplog, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(JsonRowsCodec, "decode", fail)
    reply = post(app_of(), "/predict/double", {"inputs": ROWS.tolist()}, X_Request_Id="id-7")
    assert reply.error() == (500, "internal")
    assert b"secret" not in reply.body
    assert "id-7" in reply.json()["error"]
    assert "id-7" in caplog.text
    assert "/secret/path" in caplog.text


def test_a_model_that_is_not_ready_is_503():
    behind = models()
    behind.served["double"] = served("double", ("1", DOUBLE), ready=False)
    assert post(app_of(behind), "/predict/double", {"inputs": ROWS.tolist()}).error() == (503, "not_ready")
    assert behind.calls == []


def test_an_answer_that_json_cannot_carry_is_500_and_npy_carries_it():
    behind = models()
    behind.functions["double", "2"] = lambda inputs: {
        "y": inputs["x"] / np.float32(np.inf) * np.float32("nan")
    }
    app = app_of(behind)
    reply = post(app, "/predict/double", {"inputs": ROWS.tolist()})
    assert reply.error() == (500, "model_failed")
    assert "application/x-npy" in reply.json()["error"]
    assert np.isnan(np.load(io.BytesIO(call(app, "POST", "/predict/double", npy(ROWS), NPY).body))).all()


def test_a_request_that_no_worker_takes_in_time_is_given_up_with_504():
    behind = models()
    behind.held = True
    reply = post(app_of(behind), "/predict/double", {"inputs": ROWS.tolist()}, X_Timeout_Ms="300")
    assert reply.error() == (504, "deadline_passed")
    assert behind.calls == []


def test_requests_are_answered_side_by_side():
    behind = models()

    async def both():
        behind.held = True
        app = app_of(behind)
        first = asyncio.create_task(call_async(app, "POST", "/predict/double", bytes(12), RAW))
        second = asyncio.create_task(call_async(app, "POST", "/predict/double", b"x", RAW))
        assert (await second).status == 400
        assert not first.done()
        behind.held = False
        assert (await first).status == 200

    asyncio.run(both())


def test_an_answer_has_the_stages_in_order_and_the_batch():
    timing = post(app_of(), "/predict/double", {"inputs": ROWS.tolist()}).headers["server-timing"]
    parts = timing.split(", ")
    assert [part.partition(";")[0] for part in parts] == [
        "decode",
        "queue",
        "gather",
        "run",
        "scatter",
        "encode",
        "batch",
    ]
    assert all(float(part.partition("=")[2]) >= 0.0 for part in parts[:6])
    assert parts[6] == 'batch;desc="2"'


def test_the_stages_that_were_passed_are_told_with_an_error_too():
    behind = models()

    def fail(inputs):
        raise ValueError("no luck")

    behind.functions["double", "2"] = fail
    timing = post(app_of(behind), "/predict/double", {"inputs": ROWS.tolist()}).headers["server-timing"]
    assert "run;dur=" in timing
    assert "encode" not in timing


def test_what_was_answered_is_counted():
    metrics = CountingMetrics()
    app = app_of(metrics=metrics)
    post(app, "/predict/double", {"inputs": ROWS.tolist()})
    call(app, "POST", "/predict/double", b"x", RAW)
    post(app, "/predict/nobody", {})
    good, bad, unknown = metrics.finished
    assert (good["protocol"], good["model"], good["version"], good["status"]) == ("json", "double", "2", 200)
    assert good["rows"] == 2
    assert good["error_code"] is None
    assert set(good["stages"]) == {"decode", "queue", "gather", "run", "scatter", "encode"}
    assert 0 < good["duration_s"] < 10
    assert (bad["protocol"], bad["status"], bad["error_code"]) == ("raw", 400, "bad_tensor")
    assert (unknown["model"], unknown["status"]) == ("", 404)


def test_a_client_that_leaves_is_counted_and_answered_nothing(caplog):
    metrics = CountingMetrics()
    app = app_of(metrics=metrics)
    assert asyncio.run(call_async(app, "POST", "/predict/double", [b"half"], RAW, then_gone=True)) is None
    assert metrics.finished[0]["status"] == 499
    assert caplog.text == ""
