"""Keys on a real server with two API servers: every scope on every kind of call of every protocol, and their limits."""

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from foldserve.service.access.key_file import digest_of
from tests.e2e.grpc_calls import connected, given, refused, save_repository
from tests.e2e.server_process import START_LIMIT_S, ServerProcess, serving

pytestmark = pytest.mark.e2e

KEYS = {
    name: f"the-key-of-{name}-0123456789"
    for name in ("inferring", "measuring", "controlling", "all", "only-mlp")
}
SCOPES: dict[str, list[str]] = {
    "inferring": ["infer"],
    "measuring": ["metrics"],
    "controlling": ["control"],
    "all": ["infer", "control", "metrics"],
    "only-mlp": ["infer"],
}
ROW = np.arange(10, dtype=np.float32).reshape(1, 10)
JSON = {"content-type": "application/json"}
INFER = {"inputs": [{"name": "x", "shape": [1, 10], "datatype": "FP32", "data": ROW.reshape(-1).tolist()}]}
CALLS: dict[str, tuple[str, str, Any, dict[str, str]]] = {
    "fast path": ("POST", "/predict/mlp", json.dumps({"inputs": ROW.tolist()}), JSON),
    "fast path, OIP": ("POST", "/v2/models/mlp/infer", json.dumps(INFER), JSON),
    "ASGI path": ("POST", "/predict/mlp?output=y", json.dumps({"inputs": ROW.tolist()}), JSON),
    "KServe v1": ("POST", "/v1/models/mlp:predict", json.dumps({"instances": ROW.tolist()}), JSON),
    "metadata": ("GET", "/v2/models/mlp", None, {}),
    "info": ("GET", "/info", None, {}),
    "page": ("GET", "/docs", None, {}),
    "page's script": ("GET", "/docs/page.js", None, {}),
    "document": ("GET", "/openapi.json", None, {}),
    "index": ("POST", "/v2/repository/index", None, {}),
    "TorchServe": ("PUT", "/predictions/mlp", json.dumps(ROW.tolist()), {}),
    "TorchServe's list": ("GET", "/models", None, {}),
    "regions": ("GET", "/v2/systemsharedmemory/status", None, {}),
    "unregister": ("POST", "/v2/systemsharedmemory/unregister", None, {}),
    "metrics": ("GET", "/metrics", None, {}),
    "health": ("GET", "/health", None, {}),
    "live": ("GET", "/v2/health/live", None, {}),
    "ready": ("GET", "/v2/health/ready", None, {}),
    "ping": ("GET", "/ping", None, {}),
}
OPEN = {"page", "page's script", "health", "live", "ready", "ping"}
OTHER_SCOPES = {"metrics": "metrics", "unregister": "control"}


def written(**more: Any) -> str:
    """The keys file. more: of each key, and further keys."""
    entries = [
        {"name": name, "sha256": digest_of(key.encode()).hex(), "scopes": SCOPES[name]}
        for name, key in KEYS.items()
    ]
    entries[-1]["models"] = ["mlp"]
    for name, limits in more.items():
        entries.append({"name": name, "key": key_of(name), **limits})
    return json.dumps(entries)


def key_of(name: str) -> str:
    return KEYS.get(name) or f"the-key-of-{name}-0123456789"


LIMITED = {
    "hundred": {"rows_per_s": 100},
    "a-share": {"queue_share": 0.25},
}


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    file.write_text(written(**LIMITED))
    return file


@pytest.fixture(scope="module")
def server(keys_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository, output = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("server") / "output"
    save_repository(repository)
    options = ("--api-servers", "2", "--keys", str(keys_file), "--access-log", "--client-shared-memory")
    with serving(repository, output, *options, grpc=True) as running:
        running.headers = {"x-api-key": KEYS["all"]}
        running.wait_until("/v2/health/ready", 200)
        yield running
        for key in KEYS.values():
            assert key not in running.output


def sent(server: ServerProcess, call: str, headers: dict[str, str]) -> httpx.Response:
    method, path, body, own = CALLS[call]
    return httpx.request(
        method,
        server.url + path,
        content=body,
        headers={**own, **headers},
        timeout=START_LIMIT_S,
        verify=False,
    )


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", [*SCOPES, None])
def test_each_scope_opens_its_calls_and_no_others(server: ServerProcess, call: str, name: str | None) -> None:
    needed = OTHER_SCOPES.get(call, "infer")
    for headers in ({"authorization": f"Bearer {KEYS[name]}"}, {"x-api-key": KEYS[name]}) if name else ({},):
        answer = sent(server, call, headers)
        if call in OPEN or (name and needed in SCOPES[name]):
            assert answer.status_code == 200, answer.text
        elif name is None:
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        else:
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
            assert needed in answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/predict/linear"),
        ("POST", "/v2/models/linear/infer"),
        ("POST", "/v1/models/linear:predict"),
        ("POST", "/predict/linear?top=1"),
        ("GET", "/v2/models/linear"),
        ("GET", "/v2/models/linear/config"),
        ("GET", "/v2/models/linear/versions/1/stats"),
        ("GET", "/v1/models/linear"),
    ],
)
def test_key_is_for_its_models_alone(server: ServerProcess, method: str, path: str) -> None:
    def status(name: str) -> int:
        answer = httpx.request(
            method,
            server.url + path,
            content=json.dumps({"inputs": [[0, 0, 0, 0]]}) if method == "POST" else None,
            headers={**JSON, "x-api-key": KEYS[name]},
            verify=False,
        )
        return answer.status_code

    assert status("only-mlp") == 403
    assert status("inferring") in (200, 400)


@pytest.mark.parametrize("path", ["/nothing", "/predict/mlp/nothing", "/v2/repository/models/mlp/load"])
def test_who_has_no_key_is_not_told_what_there_is(server: ServerProcess, path: str) -> None:
    assert httpx.get(server.url + path, verify=False).status_code == 401
    assert server.get(path).status_code == 404
    assert httpx.delete(server.url + "/info", verify=False).status_code == 401


@pytest.mark.parametrize("name", [*SCOPES, None])
def test_calls_of_grpc_need_what_those_of_rest_need(server: ServerProcess, name: str | None) -> None:
    headers = {"authorization": f"Bearer {KEYS[name]}"} if name else None
    allowed = name is not None and "infer" in SCOPES[name]
    wanted = "StatusCode.PERMISSION_DENIED" if name else "StatusCode.UNAUTHENTICATED"
    code = "forbidden" if name else "unauthorized"
    with connected(server) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        calls = [
            lambda: client.infer("mlp", [given(ROW)], headers=headers),
            lambda: client.get_model_metadata("mlp", headers=headers),
            lambda: client.is_model_ready("mlp", headers=headers),
            lambda: client.get_inference_statistics(headers=headers),
            lambda: client.get_model_repository_index(headers=headers),
        ]
        for call in calls:
            if allowed:
                call()
            else:
                status, _, trailing = refused(call)
                assert (status, trailing["code"]) == (wanted, code)
        if name == "only-mlp":
            for call in (
                lambda: client.infer("linear", [given(ROW[:, :4])], headers=headers),
                lambda: client.get_model_config("linear", headers=headers),
            ):
                assert refused(call)[0] == "StatusCode.PERMISSION_DENIED"
    with grpc.insecure_channel(server.grpc) as channel:
        assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"") == b"\x08\x01"


def test_stream_of_grpc_needs_a_key_too(server: ServerProcess) -> None:
    with connected(server) as client:
        for headers in ({"x-api-key": KEYS["inferring"]}, None):
            came: list[Any] = []
            done = threading.Event()

            def on(result: Any, error: Any, came: list[Any] = came, done: threading.Event = done) -> None:
                came.append(error if error is not None else result.as_numpy("y").shape)
                done.set()

            client.start_stream(on, headers=headers)
            # What is refused may have ended before the first request is given to it.
            with contextlib.suppress(InferenceServerException):
                client.async_stream_infer("mlp", [given(ROW)])
            assert done.wait(START_LIMIT_S)
            client.stop_stream()
            assert came[0] == (1, 5) if headers else "no key" in came[0].message()


def test_clients_of_triton_send_keys(server: ServerProcess) -> None:
    made = triton_http.InferInput("x", [1, 10], "FP32")
    made.set_data_from_numpy(ROW)
    with triton_http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        answer = client.infer("mlp", [made], headers={"Authorization": f"Bearer {KEYS['inferring']}"})
        assert answer.as_numpy("y").shape == (1, 5)
        with pytest.raises(Exception, match="has no key"):
            client.infer("mlp", [made])


def test_access_log_and_metrics_name_the_key_and_never_show_it(server: ServerProcess) -> None:
    for call, headers in itertools.product(
        ("fast path", "ASGI path", "metadata"), ({"x-api-key": KEYS["inferring"]}, {})
    ):
        sent(server, call, {**headers, "x-request-id": f"{call}, {bool(headers)}"})
    lines: dict[str, dict[str, Any]] = {}

    def all_came() -> bool:
        for line in server.output.splitlines():
            if line.startswith('{"request_id":"') and ", " in line[:60]:
                lines.update({json.loads(line)["request_id"]: json.loads(line)})
        return len(lines) == 6

    server.until(all_came)
    assert {(identity.split(", ")[1], line["key"], line["status"]) for identity, line in lines.items()} == {
        ("True", "inferring", 200),
        ("False", "", 401),
    }
    assert server.metric("foldserve_rejected_total", reason="unauthorized", model="", version="") > 0


def test_rows_per_second_are_those_of_both_api_servers_together(server: ServerProcess) -> None:
    headers = {**JSON, "x-api-key": key_of("hundred")}
    body = json.dumps({"inputs": ROW.tolist()})
    seconds = 1.0

    def ask(_: int) -> list[tuple[int, str]]:
        with httpx.Client(verify=False, timeout=START_LIMIT_S) as client:
            found = []
            while time.monotonic() < until_s:
                answer = client.post(f"{server.url}/predict/mlp", content=body, headers=headers)
                found.append((answer.status_code, answer.headers.get("retry-after", "")))
            return found

    began_s = time.monotonic()
    until_s = began_s + seconds
    with ThreadPoolExecutor(8) as pool:
        answers = [answer for found in pool.map(ask, range(8)) for answer in found]
    took_s = time.monotonic() - began_s
    admitted = answers.count((200, ""))
    assert set(answers) <= {(200, ""), (429, "1")}
    # The bucket holds a second's. What two API servers admit in the same microsecond may go uncounted: hardly one.
    assert admitted <= 100 * (took_s + 1) + 3
    if (
        len(answers) > 600
    ):  # clients that ask for three times as much, whatever else the machine does, get all of theirs
        assert admitted >= 100 * seconds
    assert (
        sent(server, "fast path", {"x-api-key": KEYS["inferring"]}).status_code == 200
    )  # nobody else is held up


def test_retry_after_is_when_so_many_rows_may_be_asked_for(server: ServerProcess) -> None:
    def ask(rows: int) -> httpx.Response:
        body = json.dumps({"inputs": np.repeat(ROW, rows, axis=0).tolist()})
        headers = {**JSON, "x-api-key": key_of("hundred")}
        return httpx.post(f"{server.url}/predict/mlp", content=body, headers=headers, verify=False)

    server.until(lambda: ask(500).status_code == 200)  # more than the bucket holds: when it is full
    answer = ask(1)
    assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
    assert answer.headers["retry-after"] in ("3", "4", "5")  # 500 rows less the bucket's 100, at 100 a second
    assert "'hundred' may ask for 100 rows per second" in answer.json()["error"]


def test_share_of_the_queue_is_a_callers_over_both_api_servers(server: ServerProcess) -> None:
    """A quarter of a queue of 1,024 rows is 256."""
    rows = np.repeat(ROW, 32, axis=0).tolist()

    def ask(name: str) -> httpx.Response:
        headers = {**JSON, "x-api-key": key_of(name), "x-timeout-ms": "60000"}
        return httpx.post(
            f"{server.url}/predict/mlp",
            content=json.dumps({"inputs": rows}),
            headers=headers,
            verify=False,
            timeout=START_LIMIT_S,
        )

    with ThreadPoolExecutor(16) as pool, server.workers_stopped():
        waiting = [pool.submit(ask, "a-share") for _ in range(12)]
        server.until(lambda: sum(one.done() for one in waiting) == 4)
        server.until(lambda: server.metric("foldserve_inflight_requests", model="mlp", version="1") == 8)
        refused_ones = [one.result() for one in waiting if one.done()]
        assert {one.status_code for one in refused_ones} == {429}
        assert {one.json()["code"] for one in refused_ones} == {"queue_full"}
        assert "'a-share' has 256 rows waiting" in refused_ones[0].json()["error"]
        other = pool.submit(ask, "inferring")
        server.until(lambda: server.metric("foldserve_inflight_requests", model="mlp", version="1") == 9)
    assert other.result(START_LIMIT_S).status_code == 200
    assert [one.result().status_code for one in waiting].count(200) == 8


@pytest.fixture(scope="module")
def pages(keys_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that pages of one origin may ask, with a key."""
    repository, output = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("server") / "output"
    save_repository(repository)
    origins = "https://app.example,http://localhost:3000"
    options = ("--api-servers", "1", "--keys", str(keys_file), "--cors-origins", origins)
    with serving(repository, output, *options) as running:
        running.headers = {"x-api-key": KEYS["all"]}
        running.wait_until("/v2/health/ready", 200)
        yield running


@pytest.mark.parametrize("path", ["/predict/mlp", "/v2/models/mlp/infer", "/nothing", "/metrics"])
@pytest.mark.parametrize("origin", ["https://app.example", "https://evil.example"])
def test_browser_that_asks_first_is_answered_without_a_key(
    pages: ServerProcess, origin: str, path: str
) -> None:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    answer = httpx.options(pages.url + path, headers=headers, verify=False)
    assert (answer.status_code, answer.content) == (200, b"")
    allowed = origin == "https://app.example"
    assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
    assert ("PUT" in answer.headers.get("access-control-allow-methods", "")) == allowed
    assert ("authorization" in answer.headers.get("access-control-allow-headers", "").lower()) == allowed
    assert answer.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("call", ["fast path", "fast path, OIP", "ASGI path", "metadata", "live"])
def test_answers_and_refusals_say_which_page_may_read_them(pages: ServerProcess, call: str) -> None:
    for key in ({"x-api-key": KEYS["inferring"]}, {}):
        answer = sent(pages, call, {"origin": "https://app.example", **key})
        assert answer.status_code == (200 if key or call in OPEN else 401)
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "retry-after" in answer.headers["access-control-expose-headers"].lower()
        other = sent(pages, call, {"origin": "https://evil.example", **key})
        assert "access-control-allow-origin" not in other.headers
        assert other.headers["vary"] == "Origin"


def test_without_the_setting_nothing_is_said_of_origins(server: ServerProcess) -> None:
    answer = sent(server, "fast path", {"origin": "https://app.example", "x-api-key": KEYS["inferring"]})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert httpx.options(f"{server.url}/predict/mlp", headers=server.headers, verify=False).status_code == 405


def test_very_many_keys_and_huge_headers_cost_no_memory_and_disturb_nobody(server: ServerProcess) -> None:
    def memory() -> int:
        pages_of = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in server.api_servers()]
        return sum(pages_of) * 4096

    body = json.dumps({"inputs": ROW.tolist()})

    def flood(first: int) -> set[int]:
        found = set()
        client = HTTPConnection("127.0.0.1", server.port, timeout=START_LIMIT_S)  # of those here the cheapest
        for number in range(1000):
            headers = {**JSON, "x-api-key": f"guess-{first + number}-" + "x" * 1500}
            client.request("POST", "/predict/mlp", body, headers)
            answer = client.getresponse()
            answer.read()
            found.add(answer.status)
        client.close()
        return found

    flood(0)
    before = memory()
    with ThreadPoolExecutor(4) as pool:
        floods = [pool.submit(flood, 10_000 * one) for one in range(1, 5)]
        while not all(one.done() for one in floods):
            assert sent(server, "fast path", {"x-api-key": KEYS["inferring"]}).status_code == 200
    assert {status for one in floods for status in one.result()} == {401}
    assert memory() - before < 4 * 2**20  # the keys alone are 6 MB
    huge = sent(server, "fast path", {"authorization": "Bearer " + "x" * 60_000})
    assert huge.status_code == 401
    too_large = sent(server, "fast path", {"x-api-key": "x" * 600_000})
    assert too_large.status_code == 400
    assert "xxxx" not in huge.text + too_large.text
