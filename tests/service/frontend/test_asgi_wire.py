"""The frontend behind uvicorn on the loopback: what only real bytes on a real connection show."""

import http.client
import io
import json
import logging
import socket
import threading

import numpy as np
import pytest

from foldserve.service.frontend import asgi_channel
from tests.service.support import CountingMetrics, app_of, models, running

GOOD = b'{"inputs": [[1, 2, 3]]}'
ANSWER = {"model": "double", "version": "2", "outputs": {"y": [[3.0, 6.0, 9.0]]}}
LIMIT = 1000


@pytest.fixture(scope="module")
def app():
    return app_of(max_body_bytes=LIMIT, request_timeout_ms=10_000)


@pytest.fixture(scope="module")
def port(app):
    with running(app) as port:
        yield port


@pytest.fixture
def connection(port):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as made:
        yield made


def head(*lines, path="/predict/double"):
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode()


def read_reply(connection):
    """Status, headers and body of the next answer on the connection."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    body = response.read()
    return response.status, response.headers, body


JSON = "Content-Type: application/json"


def test_one_request(connection):
    connection.sendall(head(JSON, f"Content-Length: {len(GOOD)}") + GOOD)
    status, headers, body = read_reply(connection)
    assert status == 200
    assert json.loads(body) == ANSWER
    assert "Server-Timing" in headers
    assert headers["Content-Type"] == "application/json"


def test_a_connection_is_kept_over_good_and_bad_requests(connection):
    bad = b'{"inputs": [[1, 2]]}'
    for body, status in ((GOOD, 200), (bad, 400), (GOOD, 200)):
        connection.sendall(head(JSON, f"Content-Length: {len(body)}") + body)
        assert read_reply(connection)[0] == status


def test_requests_sent_together_are_answered_in_order(connection):
    request = [
        head(JSON, f"Content-Length: {len(GOOD)}", f"X-Request-Id: {number}") + GOOD for number in range(5)
    ]
    connection.sendall(b"".join(request))
    reader = connection.makefile("rb")
    for number in range(5):
        assert reader.readline().startswith(b"HTTP/1.1 200")
        headers = http.client.parse_headers(reader)
        assert headers["X-Request-Id"] == str(number)
        assert json.loads(reader.read(int(headers["Content-Length"]))) == ANSWER


def test_a_chunked_body_is_read(connection):
    chunks = [GOOD[start : start + 5] for start in range(0, len(GOOD), 5)]
    connection.sendall(head(JSON, "Transfer-Encoding: chunked"))
    for chunk in chunks:
        connection.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
    connection.sendall(b"0\r\n\r\n")
    assert json.loads(read_reply(connection)[2]) == ANSWER


def test_a_client_may_ask_before_it_sends(connection):
    connection.sendall(head(JSON, f"Content-Length: {len(GOOD)}", "Expect: 100-continue"))
    assert connection.recv(100).startswith(b"HTTP/1.1 100")
    connection.sendall(GOOD)
    assert read_reply(connection)[0] == 200


def test_a_client_that_asks_for_too_much_is_told_before_it_sends(connection, monkeypatch):
    # it sends nothing more, so there is nothing to wait for before closing
    monkeypatch.setattr(asgi_channel, "_LINGER_S", 60.0)
    connection.sendall(head(JSON, f"Content-Length: {LIMIT + 1}", "Expect: 100-continue"))
    status, headers, body = read_reply(connection)
    assert status == 413
    assert headers["Connection"] == "close"
    assert json.loads(body)["code"] == "too_large"
    assert connection.recv(1) == b""


def test_a_declared_length_beyond_the_limit_is_answered_before_the_body_comes(connection):
    connection.sendall(head(JSON, "Content-Length: 1000000000"))
    status, headers, body = read_reply(connection)
    assert status == 413
    assert json.loads(body)["code"] == "too_large"
    assert headers["Connection"] == "close"


def test_an_endless_chunked_body_is_answered_when_it_passes_the_limit(connection):
    connection.sendall(head(JSON, "Transfer-Encoding: chunked"))
    for _ in range(3):
        connection.sendall(b"190\r\n" + bytes(400) + b"\r\n")
    # the body has not ended, and never will
    assert read_reply(connection)[0] == 413


def test_a_client_that_sends_all_of_a_large_body_first_still_reads_the_413(connection, monkeypatch):
    monkeypatch.setattr(asgi_channel, "_LINGER_S", 60.0)
    body = bytes(4 * 2**20)  # more than the buffers of both ends hold
    connection.sendall(head(JSON, f"Content-Length: {len(body)}"))
    connection.sendall(body)
    status, _, answer = read_reply(connection)
    assert (status, json.loads(answer)["code"]) == (413, "too_large")
    assert connection.recv(1) == b""


def test_a_refusal_of_the_head_comes_before_the_body(connection):
    connection.sendall(head(JSON, "Content-Length: 500", path="/predict/nobody"))
    assert read_reply(connection)[0] == 404


def test_after_a_refusal_of_the_head_the_connection_goes_on(connection):
    connection.sendall(head("Content-Type: text/plain", f"Content-Length: {len(GOOD)}"))
    assert read_reply(connection)[0] == 415
    connection.sendall(GOOD + head(JSON, f"Content-Length: {len(GOOD)}") + GOOD)
    assert read_reply(connection)[0] == 200


def test_a_body_that_stops_half_way_ends_with_the_time_of_the_request(connection):
    connection.sendall(head(JSON, "Content-Length: 500", "X-Timeout-Ms: 50") + b'{"inputs"')
    status, _, body = read_reply(connection)
    assert (status, json.loads(body)["code"]) == (504, "deadline_passed")


def metrics_that_tell():
    """Metrics, and the event that comes with the first request they count as finished."""
    metrics = CountingMetrics()
    finished = threading.Event()
    record = metrics.request_finished

    def record_and_tell(*arguments, **named):
        record(*arguments, **named)
        finished.set()

    metrics.request_finished = record_and_tell
    return metrics, finished


@pytest.mark.parametrize("wait_for_head", [True, False])
def test_a_client_that_leaves_half_way_is_forgotten_without_a_traceback(app, port, caplog, wait_for_head):
    metrics, gone = metrics_that_tell()
    other = app_of(metrics=metrics, max_body_bytes=LIMIT)
    with caplog.at_level(logging.WARNING), running(other) as other_port:
        with socket.create_connection(("127.0.0.1", other_port), timeout=10) as client:
            expect = ["Expect: 100-continue"] if wait_for_head else []
            client.sendall(head(JSON, "Content-Length: 500", *expect))
            if wait_for_head:
                assert client.recv(100).startswith(b"HTTP/1.1 100")
            client.sendall(b'{"inputs"')
        assert gone.wait(timeout=10)
    assert metrics.finished[0]["status"] == 499
    assert caplog.text == ""


def test_a_client_that_leaves_before_its_answer_does_no_harm(caplog):
    behind = models()
    behind.held = True
    metrics, gone = metrics_that_tell()
    with caplog.at_level(logging.WARNING), running(app_of(behind, metrics)) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(head(JSON, f"Content-Length: {len(GOOD)}") + GOOD)
            assert behind.arrived.wait(timeout=10)
        assert gone.wait(timeout=10)
        behind.held = False
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(head(JSON, f"Content-Length: {len(GOOD)}") + GOOD)
            assert read_reply(client)[0] == 200
    assert caplog.text == ""
    assert [entry["status"] for entry in metrics.finished] == [499, 200]


def test_head_has_the_headers_and_no_body(port):
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    client.request("HEAD", "/info")
    response = client.getresponse()
    assert response.status == 200
    assert int(response.headers["Content-Length"]) > 100
    assert response.read() == b""
    client.close()


@pytest.mark.parametrize(
    ("path", "model"),
    [("/predict/%64ouble", 200), ("/predict/a%2Fb", 404), ("/predict/%00", 404), ("/predict/%ff", 404)],
)
def test_escapes_in_the_path_are_read(connection, path, model):
    connection.sendall(head(JSON, f"Content-Length: {len(GOOD)}", path=path) + GOOD)
    status, _, body = read_reply(connection)
    assert status == model
    assert status == 200 or json.loads(body).keys() == {"error", "code"}


def test_a_large_answer_comes_whole():
    rows = np.arange(300_000, dtype="f4").reshape(-1, 3)
    file = io.BytesIO()
    np.save(file, rows)
    with running(app_of(max_body_bytes=2**22)) as port:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        client.request("POST", "/predict/double", file.getvalue(), {"Content-Type": "application/x-npy"})
        response = client.getresponse()
        np.testing.assert_array_equal(np.load(io.BytesIO(response.read())), rows * 3)
        client.close()


def test_many_connections_get_their_own_answers(port):
    wrong = []

    def ask(number):
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        for step in range(20):
            value = number * 1000 + step
            client.request(
                "POST",
                "/predict/double",
                json.dumps({"inputs": [[value, 0, 0]]}),
                {"Content-Type": "application/json"},
            )
            said = json.loads(client.getresponse().read())
            if said["outputs"]["y"] != [[3.0 * value, 0.0, 0.0]]:
                wrong.append((value, said))
        client.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert wrong == []


def test_idle_connections_do_not_hold_up_the_end(port):
    with (
        running(app_of()) as other_port,
        socket.create_connection(("127.0.0.1", other_port), timeout=10) as client,
    ):
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_reply(client)[0] == 200
