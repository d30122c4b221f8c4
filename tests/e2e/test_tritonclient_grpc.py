"""NVIDIA's own client over gRPC, against a real server with two API servers: every call of it that is served."""

import queue
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as tritonclient
from tritonclient.grpc import service_pb2

from tests.e2e.grpc_calls import ROWS, connected, given, into, refused, save_repository
from tests.e2e.server_process import START_LIMIT_S, ServerProcess, serving
from tests.service.repositories import WEIGHT

pytestmark = pytest.mark.e2e

LARGE_ROWS = 500_000
"""8 MB in, 6 MB out."""
MANY = 200


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    save_repository(folder)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    output = tmp_path_factory.mktemp("server") / "output"
    with serving(repository, output, "--api-servers", "2", grpc=True) as running:
        running.wait_until("/v2/health/ready", 200)
        yield running


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Any]:
    with connected(server) as made:
        yield made


def test_the_client_finds_the_server_and_its_models(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("linear")
    assert client.is_model_ready("linear", "1")
    assert client.get_server_metadata(as_json=True)["name"] == "foldserve"
    assert client.get_model_metadata("linear", as_json=True) == {
        "name": "linear",
        "versions": ["1", "2"],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": ["-1", "3"]}],
    }
    config = client.get_model_config("linear", "1").config
    assert (config.name, config.max_batch_size, list(config.input[0].dims)) == ("linear", 8, [4])
    assert config.version_policy.specific.versions == [1, 2]
    index = client.get_model_repository_index()
    assert {(one.name, one.version, one.state) for one in index.models} == {
        *(("linear", version, "READY") for version in "12"),
        *((name, "1", "READY") for name in ("lookup", "mlp", "narrow", "slow")),
    }  # fmt: skip
    assert refused(lambda: client.is_model_ready("none"))[0] == "StatusCode.NOT_FOUND"


@pytest.mark.parametrize("version", ["", "1"])
def test_numbers_names_and_id_come_back(client: Any, version: str) -> None:
    wanted = [tritonclient.InferRequestedOutput("y")]
    result = client.infer("linear", [given(ROWS)], version, outputs=wanted, request_id="an id")
    np.testing.assert_allclose(result.as_numpy("y"), ROWS @ WEIGHT, rtol=1e-6)  # float32 sums of four
    answer = result.get_response()
    assert (answer.model_name, answer.model_version, answer.id) == ("linear", version or "2", "an id")


def test_classes_come_with_their_labels(client: Any) -> None:
    wanted = [tritonclient.InferRequestedOutput("y", class_count=1)]
    result = client.infer("linear", [given(ROWS)], outputs=wanted)
    best = (ROWS @ WEIGHT).argmax(axis=1)
    assert [int(text.split(b":")[1]) for text in result.as_numpy("y").reshape(-1)] == best.tolist()


def test_large_tensors_go_both_ways_through_the_codec_process(client: Any) -> None:
    rows = np.random.default_rng(0).random((LARGE_ROWS, 4), np.float32)
    result = client.infer("linear", [given(rows)], client_timeout=START_LIMIT_S)
    np.testing.assert_allclose(result.as_numpy("y"), rows @ WEIGHT, rtol=1e-5)
    typed = service_pb2.ModelInferRequest(model_name="linear")
    one = typed.inputs.add(name="x", datatype="FP32", shape=[30_000, 4])
    one.contents.fp32_contents.extend(rows[:30_000].reshape(-1).tolist())
    answer = client._client_stub.ModelInfer(typed)
    found = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(answer.outputs[0].shape)
    np.testing.assert_allclose(found, rows[:30_000] @ WEIGHT, rtol=1e-5)


def test_many_at_once_on_several_connections_get_each_their_own(server: ServerProcess) -> None:
    with connected(server) as first, connected(server) as second, connected(server) as third:
        waiting: list[tuple[np.ndarray, Future[Any]]] = []
        for number in range(MANY):
            rows = np.full((1 + number % 3, 4), number, np.float32)
            answered: Future[Any] = Future()
            waiting.append((rows, answered))
            asked = (first, second, third)[number % 3]
            asked.async_infer("linear", [given(rows)], into(answered))
        for rows, answered in waiting:
            np.testing.assert_allclose(answered.result(START_LIMIT_S).as_numpy("y"), rows @ WEIGHT, rtol=1e-5)


def test_stream_answers_in_order_and_tells_errors_between(client: Any) -> None:
    came: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: came.put((result, error)))
    for number in range(MANY):
        width = 5 if number == 7 else 4  # which the model does not take
        rows = np.full((1, width), number, np.float32)
        client.async_stream_infer("linear", [given(rows)], request_id=str(number))
    for number in range(MANY):
        result, error = came.get(timeout=START_LIMIT_S)
        if number == 7:
            assert "shape [1, 5]" in error.message()
            continue
        assert error is None
        assert result.get_response().id == str(number)
        expected = np.full((1, 4), number, np.float32) @ WEIGHT
        np.testing.assert_allclose(result.as_numpy("y"), expected, rtol=1e-5)
    client.stop_stream()


def test_statistics_count_what_was_answered_and_metrics_call_it_grpc(
    client: Any, server: ServerProcess
) -> None:
    def counted() -> tuple[int, int]:
        (stats,) = client.get_inference_statistics("linear", "1").model_stats
        return stats.inference_stats.success.count, stats.inference_count

    before = counted()
    labels = {"model": "linear", "version": "1", "protocol": "grpc", "code": "200"}
    in_metrics = server.metric("foldserve_requests_total", **labels)
    for _ in range(3):
        client.infer("linear", [given(ROWS)], "1")
    server.until(lambda: counted() == (before[0] + 3, before[1] + 9))
    assert server.metric("foldserve_requests_total", **labels) == in_metrics + 3


def test_full_queue_says_when_to_come_again(client: Any, server: ServerProcess) -> None:
    answered: Future[Any] = Future()
    client.async_infer("narrow", [given(ROWS[:1])], into(answered))
    server.until(lambda: server.metric("foldserve_inflight_requests", model="narrow", version="1") == 1)
    status, _, trailing = refused(lambda: client.infer("narrow", [given(ROWS[:1])]))
    assert (status, trailing["code"]) == ("StatusCode.RESOURCE_EXHAUSTED", "queue_full")
    assert int(trailing["retry-after"]) >= 1
    assert answered.result(START_LIMIT_S).as_numpy("y").shape == (1, 3)


def test_timeout_parameter_of_the_schedule_policy_is_kept(client: Any, server: ServerProcess) -> None:
    with server.workers_stopped():
        status, text, trailing = refused(lambda: client.infer("linear", [given(ROWS)], timeout=100_000))
    assert (status, trailing["code"]) == ("StatusCode.DEADLINE_EXCEEDED", "deadline_passed")
    assert "time" in text


@pytest.mark.parametrize(
    ("timeout", "status", "code"),
    [("100", "DEADLINE_EXCEEDED", "deadline_passed"), ("soon", "INVALID_ARGUMENT", "bad_request")],
)
def test_time_can_be_given_as_metadata(
    client: Any, server: ServerProcess, timeout: str, status: str, code: str
) -> None:
    headers = {"x-timeout-ms": timeout}
    with server.workers_stopped():
        found, _, trailing = refused(lambda: client.infer("linear", [given(ROWS)], headers=headers))
    assert (found, trailing["code"]) == (f"StatusCode.{status}", code)


@pytest.mark.parametrize(
    ("model", "version", "rows", "status", "code", "text"),
    [
        ("none", "", ROWS, "NOT_FOUND", "unknown_model", "linear"),
        ("linear", "9", ROWS, "NOT_FOUND", "unknown_version", "1, 2"),
        ("linear", "", ROWS[:, :2], "INVALID_ARGUMENT", "bad_tensor", "[3, 2]"),
        ("linear", "", np.zeros((600_001, 4), np.float32), "RESOURCE_EXHAUSTED", "too_large", "600001"),
    ],
)
def test_refusal_has_its_status_text_and_code(
    client: Any, model: str, version: str, rows: np.ndarray, status: str, code: str, text: str
) -> None:
    found, message, trailing = refused(lambda: client.infer(model, [given(rows)], version))
    assert (found, trailing["code"]) == (f"StatusCode.{status}", code)
    assert text in message


def test_message_beyond_the_limit_is_refused(client: Any) -> None:
    rows = np.zeros((64 * 2**20 // 16 + 1, 4), np.float32)
    assert refused(lambda: client.infer("linear", [given(rows)]))[0] == "StatusCode.RESOURCE_EXHAUSTED"


def test_calls_that_are_not_served_say_what_is(client: Any) -> None:
    for call in (
        lambda: client.load_model("linear"),
        lambda: client.register_cuda_shared_memory("region", b"", 0, 64),
        lambda: client.get_trace_settings(),
    ):
        status, text, trailing = refused(call)
        assert (status, trailing["code"]) == ("StatusCode.UNIMPLEMENTED", "not_implemented")
        assert "ModelInfer" in text


def test_standard_health_service_answers(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"") == b"\x08\x01"  # status: SERVING
        with pytest.raises(grpc.RpcError) as caught:
            check(b"\x0a\x04none")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_example_of_the_page_runs(server: ServerProcess) -> None:
    page = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text()
    section = page.partition("\n## gRPC\n")[2].partition("\n## ")[0]
    (example,) = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    example = example.replace("localhost:8001", server.grpc)
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("(2, 5) first\n", 0), done.stderr
    assert "foldserve serve repository --grpc-port 8001" in section
