import asyncio
import json

import pytest

from tests.service.support import RAW, app_of, call, call_async, post


@pytest.fixture
def lines(capfd):
    def read():
        return [json.loads(line) for line in capfd.readouterr().out.splitlines()]

    return read


def test_a_request_is_one_line_with_what_it_was(lines):
    post(app_of(access_log=True), "/predict/double", {"inputs": [[1, 2, 3]]}, X_Request_Id="id-1")
    (line,) = lines()
    assert line.pop("ms") > 0
    assert line == {
        "request_id": "id-1",
        "method": "POST",
        "path": "/predict/double",
        "route": "/predict/{model}",
        "protocol": "json",
        "model": "double",
        "version": "2",
        "key": "",
        "status": 200,
        "code": "",
        "rows": 1,
        "batch_rows": 1,
        "body_bytes": 23,
    }


def test_an_error_is_logged_with_its_code(lines):
    app = app_of(access_log=True)
    call(app, "POST", "/predict/double", b"x", RAW)
    call(app, "GET", "/nothing")
    bad, missing = lines()
    assert (bad["status"], bad["code"], bad["body_bytes"]) == (400, "bad_tensor", 1)
    assert (missing["status"], missing["code"], missing["route"]) == (404, "not_found", "")


def test_a_client_that_left_is_logged_as_499(lines):
    asyncio.run(call_async(app_of(access_log=True), "POST", "/predict/double", [b"x"], RAW, then_gone=True))
    (line,) = lines()
    assert line["status"] == 499


@pytest.mark.parametrize("path", ['/a"}\n{"x": "', "/\u2028", "/" + "x" * 5000])
def test_what_a_client_sends_cannot_make_a_second_line(lines, path):
    call(app_of(access_log=True), "GET", path)
    (line,) = lines()
    assert len(line["path"]) <= 500


def test_nothing_is_logged_unless_asked_for(lines):
    post(app_of(), "/predict/double", {"inputs": [[1, 2, 3]]})
    assert lines() == []
