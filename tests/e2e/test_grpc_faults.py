"""gRPC when something goes: clients, processes, the server itself; and when it is off."""

import os
import queue
import random
import signal
import threading
from collections.abc import Iterator
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

from tests.e2e.grpc_calls import ROWS, connected, given, into, refused, save_repository
from tests.e2e.server_process import START_LIMIT_S, ServerProcess, serving
from tests.service.repositories import WEIGHT, save_exported

pytestmark = pytest.mark.e2e

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


def test_new_connections_are_served_after_an_api_server_was_killed(server: ServerProcess) -> None:
    victim = server.api_servers()[0]
    os.kill(victim, signal.SIGKILL)
    server.until(lambda: len(server.api_servers()) == 2 and victim not in server.api_servers())
    server.wait_until("/v2/health/ready", 200)
    for _ in range(8):
        with connected(server) as client:
            result = client.infer("linear", [given(ROWS)], client_timeout=START_LIMIT_S)
            np.testing.assert_allclose(result.as_numpy("y"), ROWS @ WEIGHT, rtol=1e-6)


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


def test_deadline_of_the_client_ends_the_request_on_both_sides(client: Any, server: ServerProcess) -> None:
    labels = {"model": "linear", "version": "2", "protocol": "grpc"}

    def ended() -> float:
        return sum(server.metric("foldserve_requests_total", **labels, code=code) for code in ("499", "504"))

    before = ended()
    with server.workers_stopped():
        status, _, _ = refused(lambda: client.infer("linear", [given(ROWS)], client_timeout=0.3))
    assert status == "StatusCode.DEADLINE_EXCEEDED"
    server.until(lambda: ended() == before + 1)


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
