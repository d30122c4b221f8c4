"""NVIDIA's own client over gRPC, against a real server with two API servers: every call of it that is served."""

import os
import queue
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as tritonclient
import tritonclient.http as tritonclient_http
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from tests.e2e.server_process import START_LIMIT_S, ServerProcess, serving
from tests.service.repositories import WEIGHT, save_exported, save_linear, save_lookup

pytestmark = pytest.mark.e2e

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
LARGE_ROWS = 500_000
"""8 MB in, 6 MB out."""
MANY = 200


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    for version in ("1", "2"):
        (folder / "linear" / version).mkdir(parents=True)
        save_exported(folder / "linear" / version, version=version)
    config = "version_policy: all\nqueue: {max_rows_per_request: 600000, max_rows: 2000000}\n"
    (folder / "linear" / "config.yaml").write_text(config)
    save_lookup(folder / "lookup" / "1" / "model.onnx")
    save_linear(folder / "mlp" / "1" / "model.onnx", np.ones((10, 5), np.float32))
    (folder / "narrow" / "1").mkdir(parents=True)
    save_exported(folder / "narrow" / "1", name="narrow")
    (folder / "narrow" / "config.yaml").write_text("max_queue_delay_ms: 1500\nqueue: {max_rows: 1}\n")
    (folder / "slow" / "1").mkdir(parents=True)
    save_exported(folder / "slow" / "1", name="slow")
    # Its batches leave 20 s after the first row: what waits there is asked for no more before that.
    (folder / "slow" / "config.yaml").write_text("max_batch_size: 8\nmax_queue_delay_ms: 20000\n")
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


def connected(server: ServerProcess) -> Any:
    """On a connection of its own, which the system gives to either API server."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    return tritonclient.InferenceServerClient(server.grpc, channel_args=options)


def given(array: np.ndarray, name: str = "x") -> Any:
    made = tritonclient.InferInput(name, list(array.shape), "FP32")
    made.set_data_from_numpy(array)
    return made


def refused(call: Callable[[], object]) -> tuple[str, str, dict[str, str]]:
    """Status, text and trailing metadata of a call that fails."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    error = caught.value.__context__  # what the client makes its own of
    assert isinstance(error, grpc.RpcError)
    trailing = dict(error.trailing_metadata())
    return caught.value.status(), caught.value.message(), trailing


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


def test_numbers_are_not_swapped_with_those_of_http_while_a_worker_dies(server: ServerProcess) -> None:
    wrong: list[object] = []
    answered = [0, 0]

    def ask(which: int, api: Any, client: Any) -> None:
        try:
            for number in range(MANY):
                rows = np.full((1 + number % 3, 4), 1000 * which + number, np.float32)
                x = api.InferInput("x", list(rows.shape), "FP32")
                x.set_data_from_numpy(rows)
                np.testing.assert_allclose(
                    client.infer("linear", [x]).as_numpy("y"), rows @ WEIGHT, rtol=1e-5
                )
                answered[which] += 1
        except BaseException as error:
            wrong.append(error)
            raise

    url = server.url.removeprefix("http://")
    http = tritonclient_http.InferenceServerClient(
        url, connection_timeout=START_LIMIT_S, network_timeout=START_LIMIT_S
    )
    with connected(server) as client, http:
        asking = [
            threading.Thread(target=ask, args=(0, tritonclient, client)),
            threading.Thread(target=ask, args=(1, tritonclient_http, http)),
        ]
        for thread in asking:
            thread.start()
        server.until(lambda: min(answered) > MANY // 4 or wrong)
        os.kill(server.workers()[0], signal.SIGKILL)
        for thread in asking:
            thread.join(START_LIMIT_S)
    assert (answered, wrong) == ([MANY, MANY], [])


def into(future: Future[Any]) -> Callable[[Any, Any], None]:
    return lambda result, error: future.set_exception(error) if error else future.set_result(result)


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


def test_new_connections_are_served_after_an_api_server_was_killed(server: ServerProcess) -> None:
    victim = server.api_servers()[0]
    os.kill(victim, signal.SIGKILL)
    server.until(lambda: len(server.api_servers()) == 2 and victim not in server.api_servers())
    server.wait_until("/v2/health/ready", 200)
    for _ in range(8):
        with connected(server) as client:
            result = client.infer("linear", [given(ROWS)], client_timeout=START_LIMIT_S)
            np.testing.assert_allclose(result.as_numpy("y"), ROWS @ WEIGHT, rtol=1e-6)


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


def test_deadline_of_the_client_ends_the_request_on_both_sides(client: Any, server: ServerProcess) -> None:
    labels = {"model": "slow", "version": "1", "protocol": "grpc"}
    status, _, _ = refused(lambda: client.infer("slow", [given(ROWS)], client_timeout=0.3))
    assert status == "StatusCode.DEADLINE_EXCEEDED"

    def ended() -> float:
        return sum(server.metric("foldserve_requests_total", **labels, code=code) for code in ("499", "504"))

    server.until(lambda: ended() == 1)


def test_full_queue_says_when_to_come_again(client: Any, server: ServerProcess) -> None:
    answered: Future[Any] = Future()
    client.async_infer("narrow", [given(ROWS[:1])], into(answered))
    server.until(lambda: server.metric("foldserve_inflight_requests", model="narrow", version="1") == 1)
    status, _, trailing = refused(lambda: client.infer("narrow", [given(ROWS[:1])]))
    assert (status, trailing["code"]) == ("StatusCode.RESOURCE_EXHAUSTED", "queue_full")
    assert int(trailing["retry-after"]) >= 1
    assert answered.result(START_LIMIT_S).as_numpy("y").shape == (1, 3)


def test_timeout_parameter_of_the_schedule_policy_is_kept(client: Any) -> None:
    status, text, trailing = refused(lambda: client.infer("slow", [given(ROWS)], timeout=100_000))
    assert (status, trailing["code"]) == ("StatusCode.DEADLINE_EXCEEDED", "deadline_passed")
    assert "time" in text


def test_cancelled_request_gives_its_place_back(client: Any, server: ServerProcess) -> None:
    labels = {"model": "slow", "version": "1"}
    gone = server.metric("foldserve_requests_total", **labels, protocol="grpc", code="499")
    answered: Future[Any] = Future()
    call = client.async_infer("slow", [given(ROWS)], into(answered))
    server.until(lambda: server.metric("foldserve_inflight_requests", **labels) == 1)
    call.cancel()
    with pytest.raises(InferenceServerException, match="ancelled"):
        answered.result(START_LIMIT_S)
    server.until(
        lambda: server.metric("foldserve_requests_total", **labels, protocol="grpc", code="499") == gone + 1
    )
    server.until(lambda: server.metric("foldserve_inflight_requests", **labels) == 0)


def test_cancelled_stream_gives_back_what_it_asked_for(client: Any, server: ServerProcess) -> None:
    labels = {"model": "slow", "version": "1"}
    client.start_stream(lambda result, error: None)
    for _ in range(100):  # more than are read ahead
        client.async_stream_infer("slow", [given(ROWS[:1])])
    server.until(lambda: server.metric("foldserve_inflight_requests", **labels) > 0)
    client.stop_stream(cancel_requests=True)
    server.until(lambda: server.metric("foldserve_inflight_requests", **labels) == 0)
    assert "Traceback" not in server.output


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
        lambda: client.get_system_shared_memory_status(),
        lambda: client.get_trace_settings(),
    ):
        status, text, trailing = refused(call)
        assert (status, trailing["code"]) == ("StatusCode.UNIMPLEMENTED", "not_implemented")
        assert "ModelInfer" in text


def test_compressed_messages_are_refused_and_what_follows_is_served(client: Any) -> None:
    compressed = refused(lambda: client.infer("linear", [given(ROWS)], compression_algorithm="gzip"))
    assert compressed[0] == "StatusCode.UNIMPLEMENTED"
    client.infer("linear", [given(ROWS)])


def test_standard_health_service_answers(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"") == b"\x08\x01"  # status: SERVING
        with pytest.raises(grpc.RpcError) as caught:
            check(b"\x0a\x04none")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_example_of_the_page_runs(server: ServerProcess) -> None:
    section = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text().partition("\n## gRPC\n")[2]
    (example,) = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    example = example.replace("localhost:8001", server.grpc)
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("(2, 5) first\n", 0), done.stderr
    assert "foldserve serve repository --grpc-port 8001" in section


def test_changed_bytes_are_answered_or_refused_by_every_call_and_no_fault_of_the_server(
    server: ServerProcess,
) -> None:
    request = service_pb2.ModelInferRequest(model_name="linear", raw_input_contents=[ROWS.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=[3, 4])
    whole, chance = request.SerializeToString(), random.Random(5)
    calls = [
        method.name for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    ]
    allowed = {
        *(grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT),
        *(grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED),
    }
    with grpc.insecure_channel(server.grpc) as channel:
        for number in range(20 * len(calls)):
            message = bytearray(whole)
            for _ in range(chance.randrange(1, 5)):
                message[chance.randrange(len(message))] = chance.randrange(256)
            path = f"/inference.GRPCInferenceService/{calls[number % len(calls)]}"
            found = grpc.StatusCode.OK
            try:
                list(channel.stream_stream(path)(iter([bytes(message)])))
            except grpc.RpcError as error:
                found = error.code()
            assert found in allowed, (path, bytes(message))
    assert "Traceback" not in server.output


def test_grpc_is_off_unless_asked_for_and_then_costs_nothing(repository: Path, tmp_path: Path) -> None:
    with serving(repository, tmp_path / "output") as running:
        running.wait_until("/v2/health/ready", 200)
        for pid in running.api_servers():
            assert "cygrpc" not in Path(f"/proc/{pid}/maps").read_text()


def test_port_in_use_is_told_at_once(repository: Path, server: ServerProcess, tmp_path: Path) -> None:
    port = server.grpc.rpartition(":")[2]
    with serving(repository, tmp_path / "output", "--grpc-port", port) as second:
        assert second.process.wait(START_LIMIT_S) == 2
        assert f"port {port} for gRPC" in second.output
        assert "--grpc-port" in second.output


def test_what_was_taken_is_answered_while_the_server_ends_and_streams_are_told(tmp_path: Path) -> None:
    (tmp_path / "models" / "held" / "1").mkdir(parents=True)
    save_exported(tmp_path / "models" / "held" / "1", name="held")
    (tmp_path / "models" / "held" / "config.yaml").write_text("max_batch_size: 8\nmax_queue_delay_ms: 1500\n")
    with serving(tmp_path / "models", tmp_path / "output", grpc=True) as running:
        running.wait_until("/v2/health/ready", 200)
        with connected(running) as client:
            came: queue.Queue[tuple[Any, Any]] = queue.Queue()
            client.start_stream(lambda result, error: came.put((result, error)))
            client.async_stream_infer("held", [given(ROWS)])
            answered: Future[Any] = Future()
            client.async_infer("held", [given(ROWS)], into(answered))
            running.until(
                lambda: running.metric("foldserve_inflight_requests", model="held", version="1") == 2
            )
            running.process.send_signal(signal.SIGTERM)
            np.testing.assert_allclose(answered.result(START_LIMIT_S).as_numpy("y"), ROWS @ WEIGHT, rtol=1e-6)
            result, error = came.get(timeout=START_LIMIT_S)
            assert error is None
            assert result.as_numpy("y").shape == (3, 3)
            _, error = came.get(timeout=START_LIMIT_S)
            assert error.status() == "StatusCode.UNAVAILABLE"
            assert running.process.wait(START_LIMIT_S) == 0
