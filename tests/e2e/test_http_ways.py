"""HTTP/1.1 on a real server's sockets: the fast path and the ASGI path answer alike, whatever comes.

The fast path is frontend/http1/; a header that only the ASGI path knows (`Content-Encoding`) sends the same call there.
"""

import io
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import requests

from tests.e2e.server_process import START_LIMIT_S, ServerProcess, serving
from tests.service.repositories import WEIGHT, save_exported, save_lookup

pytestmark = pytest.mark.e2e

ROW = [1.0, 2.0, 3.0, 4.0]
JSON = "application/json"
RAW = "application/octet-stream"
NPY = "application/x-npy"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("repository")
    (folder / "linear" / "1").mkdir(parents=True)
    save_exported(folder / "linear" / "1")
    save_lookup(folder / "lookup" / "1" / "model.onnx")
    with serving(
        folder, tmp_path_factory.mktemp("server") / "output", "--max-body-bytes", "100000"
    ) as running:
        running.wait_until("/v2/health/ready", 200)
        yield running


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def as_npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def answered(row: list[float]) -> list[float]:
    return (np.float32(row) @ WEIGHT).tolist()


def call(body: bytes, kind: str = JSON, *headers: str, path: str = "/predict/linear") -> bytes:
    """One request as it goes over the wire."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: test",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Wire:
    """One connection, read answer by answer."""

    def __init__(self, server: ServerProcess) -> None:
        port = int(server.url.rpartition(":")[2])
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=START_LIMIT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = b""

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, headers by lower-case name, body."""
        while (end := self._data.find(b"\r\n\r\n")) < 0:
            self._read()
        head, self._data = self._data[:end].decode("latin-1"), self._data[end + 4 :]
        status, *lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        while len(self._data) < length:
            self._read()
        body, self._data = self._data[:length], self._data[length:]
        return int(status.split()[1]), headers, body

    def closed(self) -> bool:
        """Whether the server ends the connection without another byte."""
        return not self._data and self.socket.recv(1) == b""

    def _read(self) -> None:
        chunk = self.socket.recv(65536)
        assert chunk, f"the connection ended inside an answer: {self._data!r}"
        self._data += chunk


def outputs(body: bytes) -> list[list[float]]:
    return json.loads(body)["outputs"]["y"]


# The two ways ------------------------------------------------------------------------------------------

GOOD = as_json({"inputs": [ROW]})
BODIES = {
    "one row": (JSON, GOOD, 200),
    "three rows": (JSON, as_json({"inputs": [ROW, ROW, [0, -1, 0.5, 1e-3]]}), 200),
    "more rows than a batch": (JSON, as_json({"inputs": [ROW] * 21}), 200),
    "a named input": (JSON, as_json({"inputs": {"x": [ROW]}}), 200),
    "npy": (NPY, as_npy(np.float32([ROW, ROW])), 200),
    "npy in Fortran order": (NPY, as_npy(np.asfortranarray(np.float32([ROW, ROW]))), 200),
    "raw": (RAW, np.float32([ROW, ROW]).tobytes(), 200),
    "raw that is no whole row": (RAW, bytes(17), 400),
    "broken JSON": (JSON, b'{"inputs": [[1,2', 400),
    "NaN": (JSON, b'{"inputs": [[1,2,3,NaN]]}', 400),
    "a number beyond float32": (JSON, b'{"inputs": [[1,2,3,1e39]]}', 400),
    "ragged lists": (JSON, as_json({"inputs": [ROW, ROW[:3]]}), 400),
    "a string": (JSON, as_json({"inputs": [[1, 2, 3, "4"]]}), 400),
    "a boolean": (JSON, as_json({"inputs": [[1, 2, 3, True]]}), 400),
    "null": (JSON, as_json({"inputs": [[1, 2, 3, None]]}), 400),
    "too few dims": (JSON, as_json({"inputs": ROW}), 400),
    "a wrong dim": (JSON, as_json({"inputs": [[1, 2, 3]]}), 400),
    "no rows": (JSON, as_json({"inputs": []}), 400),
    "no inputs": (JSON, b"{}", 400),
    "an unknown key": (JSON, as_json({"inputs": [ROW], "more": 1}), 400),
    "inputs twice": (JSON, b'{"inputs": [[1,2,3,4]], "inputs": [[1,2,3,4]]}', 400),
    "npy of doubles": (NPY, as_npy(np.array([ROW])), 400),
    "a cut npy": (NPY, as_npy(np.float32([ROW]))[:-1], 400),
}


@pytest.mark.parametrize("name", BODIES)
def test_both_ways_answer_alike(server: ServerProcess, name: str) -> None:
    kind, body, status = BODIES[name]
    with Wire(server) as wire:
        wire.send(call(body, kind))
        short = wire.answer()
        wire.send(call(body, kind, "Content-Encoding: identity"))
        long = wire.answer()
    assert short[0] == long[0] == status
    assert short[2] == long[2]
    ours = ("content-type", "x-tensor-name", "x-tensor-datatype", "x-tensor-shape", "retry-after")
    assert {key: short[1].get(key) for key in ours} == {key: long[1].get(key) for key in ours}
    for headers in (short[1], long[1]):
        assert len(headers["x-request-id"]) == 32
        assert headers["date"]

    def stages(timing: str) -> list[str]:
        return [part.split(";")[0] for part in timing.split(", ") if part]

    assert stages(short[1].get("server-timing", "")) == stages(long[1].get("server-timing", ""))


@pytest.mark.parametrize("way", [[], ["Content-Encoding: identity"]])
@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("X-Timeout-Ms: 10000", 200),
        ("X-Timeout-Ms: soon", 400),
        ("X-Timeout-Ms: 0", 400),
        ("Accept: text/html", 406),
    ],
)
def test_headers_mean_the_same_on_both_ways(
    server: ServerProcess, way: list[str], header: str, status: int
) -> None:
    with Wire(server) as wire:
        wire.send(call(GOOD, JSON, header, *way))
        assert wire.answer()[0] == status


@pytest.mark.parametrize("way", [[], ["Content-Encoding: identity"]])
def test_a_request_id_is_echoed(server: ServerProcess, way: list[str]) -> None:
    with Wire(server) as wire:
        wire.send(call(GOOD, JSON, "X-Request-Id: mine-7", *way))
        assert wire.answer()[1]["x-request-id"] == "mine-7"


# Messages and connections ------------------------------------------------------------------------------


def test_a_request_cut_anywhere_gets_its_answer(server: ServerProcess) -> None:
    message = call(GOOD)
    with Wire(server) as wire:
        for at in range(1, len(message)):
            wire.send(message[:at])
            wire.send(message[at:])
            status, _, body = wire.answer()
            assert (status, outputs(body)) == (200, [answered(ROW)]), at


def test_a_head_seen_before_still_gets_the_answer_of_its_own_body(server: ServerProcess) -> None:
    with Wire(server) as wire:
        for number in range(10, 60):
            wire.send(call(as_json({"inputs": [[number, 0, 0, 1]]})))
            assert outputs(wire.answer()[2]) == [answered([number, 0, 0, 1])]


def test_pipelined_requests_of_both_ways_are_answered_in_order(server: ServerProcess) -> None:
    live = b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n"
    rows = [[float(i), 1.0, 0.0, 0.0] for i in range(6)]
    short = [call(as_json({"inputs": [row]})) for row in rows]
    with Wire(server) as wire:
        wire.send(
            short[0] + live + short[1] + call(b"{", JSON) + short[2] + short[3] + live + short[4] + short[5]
        )
        got = [wire.answer() for _ in range(9)]
    assert [status for status, _, _ in got] == [200, 200, 200, 400, 200, 200, 200, 200, 200]
    answers = [outputs(body)[0] for status, _, body in got if b"outputs" in body]
    assert answers == [answered(row) for row in rows]


def test_a_body_that_looks_like_a_request_is_a_body(server: ServerProcess) -> None:
    with Wire(server) as wire:
        wire.send(call(call(GOOD)))
        assert wire.answer()[0] == 400
        wire.send(call(GOOD))
        assert wire.answer()[0] == 200


def test_a_client_that_wants_the_connection_closed_gets_it_closed(server: ServerProcess) -> None:
    with Wire(server) as wire:
        wire.send(call(GOOD, JSON, "Connection: close"))
        status, headers, _ = wire.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert wire.closed()


def test_http_1_0_is_answered_and_closed(server: ServerProcess) -> None:
    with Wire(server) as wire:
        wire.send(call(GOOD).replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert wire.answer()[0] == 200
        assert wire.closed()


ENDED = {
    "short": (call(GOOD), 200),
    "long": (call(GOOD, JSON, "Content-Encoding: identity"), 200),
    "raw": (call(np.float32([ROW]).tobytes(), RAW), 200),
    "offer": (
        call(GOOD, JSON, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAE"),
        200,
    ),
    "old": (call(GOOD, JSON, "Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"), 200),
    "bad": (call(b"{"), 400),
    "no such model": (call(GOOD, path="/predict/other"), 404),
    **{
        path: (f"GET {path} HTTP/1.1\r\nHost: t\r\n\r\n".encode(), 200)
        for path in ("/health", "/v2/health/live", "/info", "/metrics", "/docs")
    },
}


@pytest.mark.parametrize("name", ENDED)
@pytest.mark.parametrize("times", [1, 3])
def test_a_client_that_ends_its_side_gets_its_answers_and_then_the_end(
    server: ServerProcess, name: str, times: int
) -> None:
    message, status = ENDED[name]
    with Wire(server) as wire:
        wire.send(message * times)
        wire.socket.shutdown(socket.SHUT_WR)
        assert [wire.answer()[0] for _ in range(times)] == [status] * times
        assert wire.closed()


@pytest.mark.parametrize("way", [[], ["Content-Encoding: identity"]])
@pytest.mark.parametrize("cut", [1, len(GOOD) + 10])
def test_a_client_that_ends_its_side_inside_a_request_gets_the_end(
    server: ServerProcess, way: list[str], cut: int
) -> None:
    with Wire(server) as wire:
        wire.send(call(GOOD, JSON, *way) + call(GOOD, JSON, *way)[:-cut])
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.answer()[0] == 200
        assert wire.closed()


@pytest.mark.parametrize(
    ("target", "status"),
    [("CONNECT x:443", 400), ("GET http://x", 400), ("POST http:///", 400), ("GET http://[::1", 400)],
)
@pytest.mark.parametrize("before", [b"", call(GOOD), call(GOOD, JSON, "Content-Encoding: identity")])
def test_an_odd_target_is_answered_in_its_turn(
    server: ServerProcess, target: str, status: int, before: bytes
) -> None:
    with Wire(server) as wire:
        wire.send(before + f"{target} HTTP/1.1\r\nHost: t\r\n\r\n".encode())
        if before:
            assert outputs(wire.answer()[2]) == [answered(ROW)]
        found, headers, body = wire.answer()
        assert (found, json.loads(body)["code"], headers["connection"]) == (status, "bad_request", "close")
        assert len(headers["x-request-id"]) == 32
        assert wire.closed()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_that_offers_http_2_gets_its_answer(server: ServerProcess) -> None:
    command = ["curl", "-s", "--http2", "-H", f"Content-Type: {JSON}", "-d", GOOD.decode()]
    done = subprocess.run([*command, f"{server.url}/predict/linear"], capture_output=True, check=True)
    assert outputs(done.stdout) == [answered(ROW)]


def test_a_client_that_waits_for_100_continue_gets_it(server: ServerProcess) -> None:
    message = call(GOOD, JSON, "Expect: 100-continue")
    with Wire(server) as wire:
        wire.send(message[: -len(GOOD)])
        assert wire.answer()[0] == 100
        wire.send(GOOD)
        assert outputs(wire.answer()[2]) == [answered(ROW)]


def test_a_chunked_body_is_read(server: ServerProcess) -> None:
    head = f"POST /predict/linear HTTP/1.1\r\nHost: t\r\nContent-Type: {JSON}\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (GOOD[:5], GOOD[5:]))
    with Wire(server) as wire:
        wire.send(head.encode() + chunks + b"0\r\n\r\n")
        assert outputs(wire.answer()[2]) == [answered(ROW)]


@pytest.mark.parametrize(
    "broken",
    [
        b"NOT HTTP\r\n\r\n",
        b"POST /predict/linear HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /predict/linear HTTP/1.1\r\nHost: t\r\nContent-Length: -1\r\n\r\n",
        b"POST /predict/linear HTTP/1.1\r\nHost : t\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_what_is_not_http_is_answered_400_in_the_one_shape_and_closed(
    server: ServerProcess, broken: bytes
) -> None:
    with Wire(server) as wire:
        wire.send(broken)
        status, _, body = wire.answer()
        assert (status, json.loads(body)["code"]) == (400, "bad_request")
        assert wire.closed()


def test_length_and_chunks_together_never_smuggle_a_second_request(server: ServerProcess) -> None:
    smuggled = call(GOOD)
    head = (
        "POST /predict/linear HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with Wire(server) as wire:
        wire.send(head.encode() + b"0\r\n\r\n" + smuggled)
        status, _, _ = wire.answer()
        assert status >= 400
        # RFC 9112, 6.3: such a message ought to be refused, and the connection closed after it.
        assert wire.closed() or wire.answer()[0] in (200, 400)


def test_a_body_over_the_limit_is_refused_before_it_is_sent(server: ServerProcess) -> None:
    message = call(b"", JSON).replace(b"Content-Length: 0", b"Content-Length: 100001")
    with Wire(server) as wire:
        wire.send(message)
        status, _, body = wire.answer()
        assert (status, json.loads(body)["code"]) == (413, "too_large")


def test_a_client_that_leaves_is_counted_once_as_499(server: ServerProcess) -> None:
    labels = {"model": "linear", "version": "1", "protocol": "json", "code": "499"}
    before = server.metric("foldserve_requests_total", **labels)
    with Wire(server) as wire:
        wire.send(call(GOOD)[:-1])
    for _ in range(200):  # each scrape is a turn of the server's loop; one of the first sees the end
        if server.metric("foldserve_requests_total", **labels) > before:
            break
    assert server.metric("foldserve_requests_total", **labels) == before + 1
    assert server.metric("foldserve_inflight_requests", model="linear", version="1") == 0


# Clients -----------------------------------------------------------------------------------------------


def test_curl_gets_the_answer(server: ServerProcess) -> None:
    command = [
        "curl",
        "-s",
        "-d",
        GOOD.decode(),
        "-H",
        f"content-type: {JSON}",
        f"{server.url}/predict/linear",
    ]
    assert outputs(subprocess.run(command, capture_output=True, check=True).stdout) == [answered(ROW)]


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_nodes_fetch_gets_the_answer(server: ServerProcess) -> None:
    script = (
        f"fetch('{server.url}/predict/linear', {{method: 'POST', headers: {{'content-type': '{JSON}'}}, "
        f"body: '{GOOD.decode()}'}}).then(r => r.text()).then(t => console.log(t))"
    )
    done = subprocess.run(["node", "-e", script], capture_output=True, check=True)
    assert outputs(done.stdout) == [answered(ROW)]


def test_requests_keeps_one_connection_for_many_calls(server: ServerProcess) -> None:
    # Head and body come in two packets, unlike httpx's.
    with requests.Session() as session:
        for number in range(20):
            answer = session.post(f"{server.url}/predict/linear", json={"inputs": [[number, 0, 0, 0]]})
            assert answer.json()["outputs"]["y"] == [answered([number, 0, 0, 0])]
        body = np.float32([ROW] * 2000).tobytes()
        raw = session.post(f"{server.url}/predict/linear", body, headers={"Content-Type": RAW})
        expected = np.float32([ROW] * 2000) @ WEIGHT
        assert raw.content == expected.tobytes()


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_wrk_gets_nothing_but_200(server: ServerProcess, tmp_path: Path) -> None:
    script = tmp_path / "post.lua"
    script.write_text(
        f"wrk.method = 'POST'\nwrk.body = '{GOOD.decode()}'\nwrk.headers['Content-Type'] = '{JSON}'\n"
        "function done(summary, latency, requests)\n"
        "  local e = summary.errors\n"
        "  print('WRONG', e.connect + e.read + e.write + e.status + e.timeout, 'OF', summary.requests)\n"
        "end\n"
    )
    command = [
        "wrk",
        "-t1",
        "-c16",
        "-d1s",
        "--timeout",
        "30s",
        "-s",
        str(script),
        f"{server.url}/predict/linear",
    ]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    _, wrong, _, total = next(line for line in done.stdout.splitlines() if line.startswith("WRONG")).split()
    assert int(wrong) == 0
    assert int(total) > 0


def test_httpx_keeps_one_connection_for_many_calls(server: ServerProcess) -> None:
    with httpx.Client() as client:
        for number in range(20):
            answer = client.post(f"{server.url}/predict/linear", json={"inputs": [[number, 0, 0, 0]]})
            assert answer.json()["outputs"]["y"] == [answered([number, 0, 0, 0])]
