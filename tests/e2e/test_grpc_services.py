"""What gRPC's own tools and clients ask for, against a real server: reflection, health that is watched, compressed
messages, pings."""

import gzip
import signal
import socket
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from tritonclient.grpc import service_pb2

from foldserve.service.frontend.grpc.health import MOST_WATCHING
from foldserve.service.frontend.grpc.streams import MOST_AWAITED
from foldserve.service.protocols.oip.messages import HEALTH, INFERENCE, REFLECTIONS, SERVICES, methods
from tests.e2e.grpc_calls import connected, given, refused, save_repository
from tests.e2e.server_process import START_LIMIT_S, ServerProcess, serving
from tests.service.repositories import WEIGHT

pytestmark = pytest.mark.e2e

WATCH = f"/{HEALTH}/Watch"
INFER = f"/{INFERENCE}/ModelInfer"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"
BOMB_BYTES = 2**30
GROWTH_BYTES = 300 * 2**20
"""Of a process while it refuses a gigabyte: twice the bound of a body, which is 64 MiB, and room."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
PING = b"\0\0\x08\x06\0\0\0\0\0" + b"12345678"
GOAWAY_FLOOD = b"too_many_pings"
ENDED = threading.Event()
"""Set when a client's stream is over."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    save_repository(folder)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    output = tmp_path_factory.mktemp("server") / "output"
    with serving(repository, output, grpc=True) as running:
        running.wait_until("/v2/health/ready", 200)
        yield running


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[Any]:
    with grpc.insecure_channel(server.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as made:
        yield made


def reflect(channel: Any, service: str, *questions: dict[str, Any]) -> list[Any]:
    request, response = methods(service)["ServerReflectionInfo"]
    call = channel.stream_stream(
        f"/{service}/ServerReflectionInfo",
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )
    return list(call(iter([request(**question) for question in questions])))


@pytest.mark.parametrize("version", REFLECTIONS)
def test_reflection_lists_and_describes_what_is_served(channel: Any, version: str) -> None:
    (listed,) = reflect(channel, version, {"list_services": ""})
    assert [one.name for one in listed.list_services_response.service] == list(SERVICES)
    pool = descriptor_pool.DescriptorPool()
    for answer in reflect(channel, version, *({"file_containing_symbol": name} for name in SERVICES)):
        (file,) = answer.file_descriptor_response.file_descriptor_proto
        pool.Add(FileDescriptorProto.FromString(file))
    assert (
        pool.FindMethodByName(f"{INFERENCE}.ModelInfer").input_type.fields_by_name["model_name"].number == 1
    )
    for name in SERVICES:
        for method in pool.FindServiceByName(name).methods:
            (described,) = reflect(channel, version, {"file_containing_symbol": method.full_name})
            (file,) = described.file_descriptor_response.file_descriptor_proto
            assert FileDescriptorProto.FromString(file).name == method.containing_service.file.name
            # Whatever is described is served.
            assert status_of(channel, f"/{name}/{method.name}") is not grpc.StatusCode.UNIMPLEMENTED


def status_of(channel: Any, path: str) -> Any:
    """Of a call with an empty message, when it ends or its first answer comes."""
    call = channel.stream_stream(path)(iter([b""]))
    try:
        next(call, None)
    except grpc.RpcError as error:
        return error.code()
    call.cancel()
    return grpc.StatusCode.OK


def test_questions_of_reflection_that_cannot_be_answered_are_told_within_the_stream(channel: Any) -> None:
    nothing, symbol, file, extension, numbers, unknown, last = reflect(
        channel,
        REFLECTIONS[0],
        {},
        {"file_containing_symbol": "no.Such"},
        {"file_by_filename": "../etc/passwd"},
        {"file_containing_extension": {"containing_type": "inference.ModelInferRequest"}},
        {"all_extension_numbers_of_type": "inference.ModelInferRequest"},
        {"all_extension_numbers_of_type": "no.Such"},
        {"file_by_filename": "health.proto", "host": "h"},
    )
    assert nothing.error_response.error_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    for answer in (symbol, file, extension, unknown):
        assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
        assert "list_services" in answer.error_response.error_message
    assert numbers.all_extension_numbers_response.base_type_name == "inference.ModelInferRequest"
    assert (last.valid_host, last.original_request.host) == ("h", "h")
    assert last.file_descriptor_response.file_descriptor_proto
    with pytest.raises(grpc.RpcError) as caught:
        reflect(channel, REFLECTIONS[0], {"file_by_filename": "x" * 70_000})
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_watched_health_is_told_at_once_and_an_unknown_service_is_no_error(channel: Any) -> None:
    for named, expected in ((b"", SERVING), (b"\x0a\x04none", SERVICE_UNKNOWN)):
        call = channel.unary_stream(WATCH)(named)
        assert next(call) == expected
        call.cancel()


def test_clients_that_watch_are_bounded_and_give_their_places_back(channel: Any) -> None:
    calls = [channel.unary_stream(WATCH)(b"") for _ in range(MOST_WATCHING)]
    assert {next(call) for call in calls} == {SERVING}
    with pytest.raises(grpc.RpcError) as caught:
        next(channel.unary_stream(WATCH)(b""))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in calls:
        call.cancel()
    again = channel.unary_stream(WATCH)(b"", wait_for_ready=True)
    assert next(again) == SERVING
    again.cancel()


@pytest.mark.parametrize("path", [f"/{INFERENCE}/ServerLive", WATCH])
def test_calls_without_their_message_are_bounded_and_the_oldest_give_way(channel: Any, path: str) -> None:
    def silent() -> Iterator[bytes]:
        ENDED.wait(START_LIMIT_S)
        yield from ()

    first = [channel.stream_stream(path)(silent()) for _ in range(MOST_AWAITED)]
    later = [channel.stream_stream(path)(silent()) for _ in range(MOST_AWAITED)]
    try:
        for call in first:
            assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "send it with the call" in call.details()
        assert channel.unary_unary(f"/{INFERENCE}/ServerLive")(b"") == SERVING
    finally:
        for call in later:
            call.cancel()


def test_change_of_health_is_pushed_and_streams_end_with_the_server(repository: Path, tmp_path: Path) -> None:
    with serving(repository, tmp_path / "output", "--drain-grace", "2", grpc=True) as running:
        running.wait_until("/v2/health/live", 200)
        running.until(lambda: "grpc" in running.output)
        with grpc.insecure_channel(running.grpc) as channel, ThreadPoolExecutor(1) as reads:
            watched = channel.unary_stream(WATCH)(b"", wait_for_ready=True)
            told = [next(watched)]
            if told == [NOT_SERVING]:  # while it loads
                told = [next(watched)]
            assert told == [SERVING]
            request = methods(REFLECTIONS[0])["ServerReflectionInfo"][0]
            reflection = channel.stream_stream(f"/{REFLECTIONS[0]}/ServerReflectionInfo")(_asks(request))
            assert next(reflection)
            open_stream = reads.submit(next, reflection)
            running.process.send_signal(signal.SIGTERM)
            assert next(watched) == NOT_SERVING
            for ends in (lambda: next(watched), open_stream.result):
                with pytest.raises(grpc.RpcError) as caught:
                    ends()
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            ENDED.set()
        assert running.process.wait(START_LIMIT_S) == 0
        assert "Traceback" not in running.output


def _asks(request: Any) -> Iterator[bytes]:
    """One question, of a client that might ask another."""
    yield request(list_services="").SerializeToString()
    ENDED.wait(START_LIMIT_S)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("rows", [3, 200_000], ids=["small", "large"])
def test_client_may_compress_its_messages(server: ServerProcess, algorithm: str, rows: int) -> None:
    values = np.random.default_rng(0).integers(0, 9, (rows, 4)).astype(np.float32)
    with connected(server) as client:
        result = client.infer("linear", [given(values)], request_id="an id", compression_algorithm=algorithm)
        np.testing.assert_allclose(result.as_numpy("y"), values @ WEIGHT, rtol=1e-5)
        assert result.get_response().id == "an id"


def test_other_calls_may_be_compressed_too(channel: Any) -> None:
    ready = channel.unary_unary(f"/{INFERENCE}/ModelReady")
    asked = service_pb2.ModelReadyRequest(name="linear").SerializeToString()
    assert ready(asked, compression=grpc.Compression.Gzip) == b"\x08\x01"


def test_what_a_message_becomes_is_bounded_and_so_is_the_memory_for_it(
    channel: Any, server: ServerProcess
) -> None:
    before = {pid: peak_bytes(pid) for pid in server.processes()}
    head = service_pb2.ModelInferRequest(model_name="linear").SerializeToString()
    text = head + b"\x3a\xff\xff\xff\xff\x03"  # raw contents of a gigabyte
    for compress in (zlib.compressobj(9), zlib.compressobj(9, wbits=31)):
        bomb = compress.compress(text)
        for _ in range(BOMB_BYTES // 2**22):
            bomb += compress.compress(bytes(2**22))
        bomb += compress.flush()
        assert len(bomb) < 2**21
        for path in (INFER, f"/{INFERENCE}/ModelReady", WATCH):
            with pytest.raises(grpc.RpcError) as caught:
                list(channel.stream_stream(path)(iter([bomb])))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, path
            assert "inflated" in caught.value.details()
    for pid in server.processes():
        assert peak_bytes(pid) - before.get(pid, 0) < GROWTH_BYTES


def peak_bytes(pid: int) -> int:
    (line,) = (
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize(
    "message",
    [
        b"\x1f\x8b" + bytes(30),
        gzip.compress(b"\xff" * 100),
        gzip.compress(bytes(100))[:-9],
        gzip.compress(service_pb2.ModelInferRequest(id="x" * 300_000).SerializeToString()),
        gzip.compress(b"\x0a\xff\xff\xff\x7f" + b"m" * 300_000),
        zlib.compress(b"\x0a\x06linear")[:-2],
        gzip.compress(np.random.default_rng(0).bytes(300_000)),
    ],
    ids=["no gzip", "no message", "not whole", "no model", "a long name", "no end", "noise"],
)
def test_compressed_nonsense_is_the_clients_fault(
    channel: Any, server: ServerProcess, message: bytes
) -> None:
    for path in (INFER, f"/{INFERENCE}/ModelReady", f"/{INFERENCE}/ModelConfig"):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(path)(message)
        assert caught.value.code() in (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        )
    assert "Traceback" not in server.output


def test_answers_are_not_compressed_even_for_clients_that_take_it(server: ServerProcess) -> None:
    with connected(server) as client:
        rows = np.zeros((100_000, 4), np.float32)
        result = client.infer("linear", [given(rows)], compression_algorithm="gzip")
        assert len(result.get_response().raw_output_contents[0]) == 100_000 * 3 * 4
        status, _, _ = refused(
            lambda: client.infer("linear", [given(rows[:, :2])], compression_algorithm="gzip")
        )
        assert status == "StatusCode.INVALID_ARGUMENT"


def test_client_that_floods_with_pings_is_sent_away_and_others_are_served(server: ServerProcess) -> None:
    host, _, port = server.grpc.partition(":")
    came = b""
    with socket.create_connection((host, int(port)), START_LIMIT_S) as flood:
        flood.sendall(PREFACE + PING * 100)
        while GOAWAY_FLOOD not in came and (data := flood.recv(65_536)):
            came += data
    assert GOAWAY_FLOOD in came
    with connected(server) as client:
        assert client.is_server_live()
