"""Everything that answers beside /predict, and what every answer has."""

import asyncio
import json
import re
from typing import Any

import pytest

from foldserve.service.errors import ConfigError
from tests.service.support import DOUBLE, app_of, call, call_async, models, one_model, post, served


def test_health_of_a_ready_server():
    app = app_of()
    assert call(app, "GET", "/v2/health/ready").json() == {"live": True, "ready": True}
    assert call(app, "GET", "/health").json() == {"live": True, "ready": True}
    assert call(app, "GET", "/v2/health/live").json() == {"live": True}


@pytest.mark.parametrize("path", ["/health", "/v2/health/ready"])
def test_a_server_that_is_not_ready_says_what_it_waits_for(path):
    behind = models()
    behind.is_ready = False
    behind.served["pair"] = served("pair", ("1", DOUBLE), ready=False)
    reply = call(app_of(behind), "GET", path)
    assert reply.error() == (503, "not_ready")
    assert "waiting for pair" in reply.json()["error"]


@pytest.mark.parametrize("path", ["/health", "/v2/health/ready"])
def test_a_draining_server_is_not_ready_but_live(path):
    behind = models()
    behind.is_ready, behind.is_draining = False, True
    app = app_of(behind)
    assert call(app, "GET", path).error() == (503, "draining")
    assert call(app, "GET", "/v2/health/live").status == 200


@pytest.mark.parametrize("path", ["/nothing", "/predict/a/b", "/v3/models/double/infer", "/predict/"])
def test_a_path_that_is_not_there_is_404_in_the_one_shape(path):
    assert call(app_of(), "POST", path).error() == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [("GET", "/predict", "POST"), ("DELETE", "/predict/double", "POST"), ("POST", "/health", "GET, HEAD")],
)
def test_a_wrong_method_is_405_in_the_one_shape(method, path, allow):
    reply = call(app_of(), method, path)
    assert reply.error() == (405, "method_not_allowed")
    assert reply.headers["allow"] == allow


@pytest.mark.parametrize("path", ["/health", "/info", "/nothing", "/predict", "/docs", "/metrics"])
def test_every_answer_has_a_request_id(path):
    app = app_of()
    assert call(app, "GET", path, headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert len(call(app, "GET", path).headers["x-request-id"]) == 32


def test_a_request_id_cannot_break_out_of_its_header():
    made = call(app_of(), "GET", "/health", headers={"x-request-id": "a\r\nset-cookie: b"}).headers[
        "x-request-id"
    ]
    assert "\r" not in made
    assert len(made) == 32


@pytest.mark.parametrize("path", ["/health", "/info", "/nothing", "/docs", "/openapi.json"])
def test_content_length_is_the_bodys(path):
    reply = call(app_of(), "GET", path)
    assert int(reply.headers["content-length"]) == len(reply.body)


def test_metrics_are_given_by_accept():
    reply = call(app_of(), "GET", "/metrics", headers={"accept": "application/openmetrics-text"})
    assert reply.headers["content-type"] == "text/plain; version=0.0.4"
    assert reply.body == b"# accept application/openmetrics-text\n"
    assert call(app_of(), "GET", "/metrics").body == b"# accept \n"


def test_info_tells_models_signatures_and_limits():
    said = call(app_of(), "GET", "/info").json()
    assert said["name"] == "foldserve"
    assert said["compiled"] is False
    assert said["ready"] is True
    assert said["default_model"] == "double"
    limits = {"max_body_bytes": 2**20, "max_json_bytes": 2**20, "request_timeout_ms": 30_000}
    assert said["limits"] == limits
    assert [model["name"] for model in said["models"]] == ["double", "pair", "picture", "sequence"]
    double = said["models"][0]
    assert double["default_version"] == "2"
    assert [version["version"] for version in double["versions"]] == ["1", "2"]
    assert double["versions"][0]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    assert double["versions"][0]["manifest"] == {"opset": 20}
    assert double["versions"][0]["workers"] == [
        {
            "device": "cuda:0",
            "ready": True,
            "batch_buckets": [8, 32],
            "batch_ceiling_rows": 8,
            "notes": ["plain runs: no graph can be captured"],
        },
        {
            "device": "cuda:1",
            "ready": False,
            "batch_buckets": [8, 32],
            "batch_ceiling_rows": 32,
            "notes": [],
        },
    ]


def test_info_names_the_only_model_as_the_default():
    assert call(app_of(one_model(), default_model=None), "GET", "/info").json()["default_model"] == "double"
    assert call(app_of(default_model=None), "GET", "/info").json()["default_model"] is None


def test_openapi_describes_every_route():
    app = app_of()
    said = call(app, "GET", "/openapi.json").json()
    described = {(method.upper(), path) for path, methods in said["paths"].items() for method in methods}
    assert described >= {(route.method, route.path) for route in app.routes()}
    known = said["components"]["parameters"]
    for path, methods in said["paths"].items():
        for operation in methods.values():
            entries = [
                known[one["$ref"].split("/")[-1]] if "$ref" in one else one for one in operation["parameters"]
            ]
            in_path = {entry["name"] for entry in entries if entry["in"] == "path"}
            assert in_path == set(re.findall(r"\{(\w+)\}", path))


def test_openapi_has_no_reference_into_nothing():
    text = call(app_of(), "GET", "/openapi.json").body.decode()
    said = json.loads(text)
    for reference in {part.split('"')[1] for part in text.split('"$ref":')[1:]}:
        found = said
        for key in reference.removeprefix("#/").split("/"):
            found = found[key]
        assert found


def test_the_lifespan_protocol_is_spoken():
    sent = []

    async def main():
        messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

        async def receive():
            return messages.pop(0)

        async def send(message):
            sent.append(message["type"])

        await app_of()({"type": "lifespan"}, receive, send)

    asyncio.run(main())
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_a_websocket_is_closed():
    sent = []

    async def send(message):
        sent.append(message["type"])

    asyncio.run(app_of()({"type": "websocket"}, None, send))
    assert sent == ["websocket.close"]


def test_a_fault_of_a_page_is_500_in_the_one_shape(caplog):
    behind = models()
    fault: Any = lambda: 1 / 0  # noqa: E731
    behind.models = fault
    assert call(app_of(behind), "GET", "/info").error() == (500, "internal")
    assert "ZeroDivisionError" in caplog.text


def test_inference_and_what_asks_for_nothing_that_there_is_are_counted():
    app = app_of()
    for path in ("/health", "/info", "/docs", "/metrics", "/v2/health/live"):
        call(app, "GET", path)
    assert app.metrics.finished == []
    post(app, "/predict", {"inputs": [[1, 2, 3]]})
    for method, path in (
        ("GET", "/nothing"),
        ("POST", "/v3/models/double/infer"),
        ("GET", "/predict"),
        ("PUT", "/info"),
    ):
        call(app, method, path)
    assert [(one["status"], one["model"]) for one in app.metrics.finished] == [
        (200, "double"), (404, ""), (404, ""), (405, ""), (405, "")
    ]  # fmt: skip


def test_cancelling_a_request_gives_it_up_and_frees_its_place():
    behind = models()
    behind.held = True
    served_app = app_of(behind)

    async def main():
        dispatcher = served_app.app().inference.dispatcher
        body = json.dumps({"inputs": [[1, 2, 3]]}).encode()
        task = asyncio.create_task(
            call_async(served_app, "POST", "/predict/double", body, {"content-type": "application/json"})
        )
        while not dispatcher.in_flight:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        (request,) = dispatcher.in_flight.values()
        assert request.cancelled

    asyncio.run(main())
    assert [one["status"] for one in served_app.metrics.finished] == [499]


def test_config_error_is_no_service_error():
    assert not hasattr(ConfigError("x"), "status")


@pytest.mark.parametrize(
    ("lines", "refused"),
    [
        ([("content-encoding", "gzip"), ("content-encoding", "identity")], (415, "unsupported_media_type")),
        ([("content-type", "application/x-npy")], (415, "unsupported_media_type")),
        ([("x-timeout-ms", "5"), ("x-timeout-ms", "60000")], (400, "bad_request")),
    ],
)
def test_of_two_lines_that_contradict_each_other_none_is_believed(lines, refused):
    headers = [("content-type", "application/json"), *lines]
    reply = call(app_of(), "POST", "/predict/double", b'{"inputs": [[1, 2, 3]]}', headers)
    assert reply.error() == refused


def test_header_that_is_said_twice_alike_is_said_once():
    headers = [("content-type", "application/json")] * 2 + [("x-timeout-ms", "60000")] * 2
    assert call(app_of(), "POST", "/predict/double", b'{"inputs": [[1, 2, 3]]}', headers).status == 200


def test_response_that_cannot_be_sent_is_counted_once_and_not_tried_again():
    app = app_of()
    sent = []

    async def main():
        messages = [{"type": "http.request", "body": b'{"inputs": [[1, 2, 3]]}', "more_body": False}]

        async def receive():
            return messages.pop() if messages else await asyncio.Event().wait()

        async def send(message):
            sent.append(message["type"])
            raise RuntimeError("the server in front is broken")

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/predict/double",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        with pytest.raises(RuntimeError, match="in front is broken"):
            await app(scope, receive, send)

    asyncio.run(main())
    assert sent == ["http.response.start"]
    assert [one["status"] for one in app.metrics.finished] == [200]
