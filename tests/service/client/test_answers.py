"""What the client makes of answers, without a server."""

import json

import numpy as np
import pytest

from foldserve.service.client.answers import (
    Answer,
    read_datatypes,
    read_inference,
    read_json,
    read_labels,
    read_numbers,
    read_ready,
    refusal,
)
from foldserve.service.client.errors import ClientError, DeadlinePassed, NotFoldserve, ServerRefused


def inference(outputs, binary, **headers):
    head = json.dumps({"model_name": "m", "outputs": outputs}).encode()
    return Answer(200, {"Inference-Header-Content-Length": str(len(head)), **headers}, head + binary)


def described(size, datatype="FP32", shape=(1,)):
    return {"name": "y", "datatype": datatype, "shape": list(shape), "parameters": {"binary_data_size": size}}


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, {}, b""),
        Answer(200, {"Inference-Header-Content-Length": "x"}, b"{}"),
        Answer(200, {"Inference-Header-Content-Length": "2"}, b"[]"),
        Answer(200, {"Inference-Header-Content-Length": "9"}, b"{}"),
        Answer(200, {"Inference-Header-Content-Length": "100000"}, b"[" * 100_000),
        inference([described(4)], b"123"),
        inference([described(4)], b"12345"),
        inference([described(4, shape=(2,))], b"1234"),
        inference([described(4, shape=(-1,))], b"1234"),
        inference([described(4, shape=("1",))], b"1234"),
        inference([described(4, "BYTES")], b"1234"),
        inference([described(8, shape=(2**62, 2**62))], b"12345678"),
        inference([{"name": "y"}], b""),
        inference("outputs", b""),
    ],
)
def test_answer_that_is_no_inference_is_not_foldserves(answer):
    with pytest.raises(NotFoldserve, match="is not foldserve's"):
        read_inference(answer)


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b'{"outputs": 1}', b'{"outputs": {"z": [1]}}', b"\xff"]
)
def test_answer_to_a_picture_that_is_none_is_not_foldserves(body):
    for read in (
        lambda answer: read_numbers(answer, {"y": "FP32"}),
        lambda answer: read_labels(answer, None),
    ):
        with pytest.raises(NotFoldserve):
            read(Answer(200, {"Content-Type": "application/json"}, body))
    with pytest.raises(NotFoldserve):
        read_numbers(Answer(200, {"Content-Type": "application/octet-stream"}, body), {})
    with pytest.raises(NotFoldserve):
        read_datatypes(None, "inputs")


def test_arrays_are_ones_own_and_aligned_wherever_they_lie_in_the_answer():
    y = np.arange(6, dtype="<f8").reshape(2, 3)
    for padding in range(8):
        head = json.dumps({"outputs": [described(y.nbytes, "FP64", y.shape)]}).encode() + b" " * padding
        headers = {"Inference-Header-Content-Length": str(len(head)), "X-Request-Id": "me"}
        found = read_inference(Answer(200, headers, head + y.tobytes()))
        array = found.value()
        assert array.flags.aligned
        array += 1
        np.testing.assert_array_equal(array, y + 1)
        assert found.request_id == "me"


def retry_after_s(status, after):
    error = refusal(Answer(status, {"Retry-After": after}, b""))
    assert isinstance(error, ServerRefused)
    return error.retry_after_s


def test_server_that_says_at_once_is_not_asked_again_without_a_pause():
    assert retry_after_s(503, "0") == 0.05


@pytest.mark.parametrize("after", ["", "soon", "-1", "1.5", "Wed, 21 Oct 2026 07:28:00 GMT", "²"])
def test_refusal_that_does_not_say_when_is_tried_again_after_a_second(after):
    assert retry_after_s(429, after) == 1.0
    assert retry_after_s(400, "1") is None


def test_errors_have_status_code_and_the_requests_id():
    body = json.dumps({"error": "too late", "code": "deadline_passed"}).encode()
    late = refusal(Answer(504, {"X-Request-Id": "me"}, body))
    assert isinstance(late, DeadlinePassed)
    assert isinstance(late, TimeoutError)
    assert isinstance(late, ClientError)
    assert (late.status, late.code, late.request_id) == (504, "deadline_passed", "me")
    proxys = refusal(Answer(504, {}, b"<html>Gateway Time-out"))
    assert isinstance(proxys, ServerRefused)
    assert (proxys.status, proxys.code) == (504, "")
    assert "is this a foldserve server?" in str(proxys)
    moved = refusal(Answer(307, {"Location": "https://elsewhere/"}, b""))
    assert "https://elsewhere/ is named instead; give the server's own URL" in str(moved)


def test_readiness_is_yes_no_or_an_error():
    assert read_ready(Answer(200, {}, b""))
    assert not read_ready(Answer(503, {}, b""))
    with pytest.raises(ServerRefused):
        read_ready(Answer(404, {}, b""))
    with pytest.raises(NotFoldserve):
        read_json(Answer(200, {}, b"<html>"))
