"""Shared memory of clients, with NVIDIA's own client and helpers over REST and gRPC, against two API servers."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

from tests.e2e.grpc_calls import ROWS, into, save_repository
from tests.e2e.server_process import START_LIMIT_S, ServerProcess, serving
from tests.service.repositories import WEIGHT

pytestmark = [
    pytest.mark.e2e,
    # Of the HTTP library of the client: sockets that are open when the garbage collector finds them.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

EXPECTED = ROWS @ WEIGHT
REGISTER = "/v2/systemsharedmemory/region/{}/register"
LARGE_ROWS = 300_000
"""4.8 MB: more than is copied on an event loop."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    save_repository(folder)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    output = tmp_path_factory.mktemp("server") / "output"
    options = ("--api-servers", "2", "--client-shared-memory")
    with serving(repository, output, *options, grpc=True) as running:
        running.wait_until("/v2/health/ready", 200)
        yield running


@pytest.fixture(autouse=True)
def no_regions(server: ServerProcess) -> Iterator[None]:
    yield
    assert server.post("/v2/systemsharedmemory/unregister").status_code == 200
    assert "Traceback" not in server.output


@pytest.fixture(params=["REST", "gRPC"])
def api(request: Any) -> Any:
    return over_http if request.param == "REST" else over_grpc


@contextlib.contextmanager
def connected(api: Any, server: ServerProcess) -> Iterator[Any]:
    if api is over_http:
        url = server.url.removeprefix("http://")
        made = api.InferenceServerClient(url, connection_timeout=START_LIMIT_S, network_timeout=START_LIMIT_S)
    else:
        made = api.InferenceServerClient(server.grpc, channel_args=[("grpc.use_local_subchannel_pool", 1)])
    with made:
        yield made


@pytest.fixture
def client(api: Any, server: ServerProcess) -> Iterator[Any]:
    with connected(api, server) as made:
        yield made


@contextlib.contextmanager
def an_object(nbytes: int) -> Iterator[tuple[str, Any]]:
    """The key and the handle of an object."""
    key = f"/test-{uuid.uuid4().hex}"
    handle = shm.create_shared_memory_region("region", key, nbytes)
    try:
        yield key, handle
    finally:
        shm.destroy_shared_memory_region(handle)


def placed(api: Any, rows: int, region: str = "region", nbytes: int | None = None, offset: int = 0) -> Any:
    made = api.InferInput("x", [rows, 4], "FP32")
    made.set_shared_memory(region, rows * 16 if nbytes is None else nbytes, offset)
    return made


def wanted(api: Any, nbytes: int, offset: int = 0, region: str = "region") -> Any:
    made = api.InferRequestedOutput("y")
    made.set_shared_memory(region, nbytes, offset)
    return made


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(InferenceServerException) as caught:
        call()
    status = caught.value.status()
    assert status in ("400", "413", "StatusCode.INVALID_ARGUMENT", "StatusCode.RESOURCE_EXHAUSTED"), (
        caught.value
    )
    return caught.value.message()


def test_tensors_go_both_ways_in_one_region_and_every_api_server_knows_it(
    client: Any, api: Any, server: ServerProcess
) -> None:
    with an_object(4096) as (key, handle):
        client.register_system_shared_memory("region", key, 4096)
        for number in range(6):
            rows = ROWS + number
            shm.set_shared_memory_region(handle, [rows])
            with connected(api, server) as another:
                result = another.infer(
                    "linear", [placed(api, 3)], outputs=[wanted(api, 36, 1000)], request_id="an id"
                )
            output = result.get_output("y")
            shape = output["shape"] if api is over_http else list(output.shape)
            assert shape == [3, 3]
            found = shm.get_contents_as_numpy(handle, np.float32, shape, 1000)
            np.testing.assert_allclose(found, rows @ WEIGHT, rtol=1e-5)
        told = client.get_system_shared_memory_status()
        if api is over_http:
            assert told == [{"name": "region", "key": key, "offset": 0, "byte_size": 4096}]
        else:
            (region,) = told.regions.values()
            assert (region.name, region.key, region.byte_size) == ("region", key, 4096)


def test_inputs_and_outputs_may_be_where_they_are_or_in_the_message(client: Any, api: Any) -> None:
    with an_object(4096) as (key, handle):
        client.register_system_shared_memory("region", key, 2048, offset=1024)
        shm.set_shared_memory_region(handle, [ROWS], offset=1024 + 16)
        inside = api.InferInput("x", [3, 4], "FP32")
        inside.set_data_from_numpy(ROWS)
        for given in (placed(api, 3, offset=16), inside):
            result = client.infer("linear", [given])
            np.testing.assert_allclose(result.as_numpy("y"), EXPECTED, rtol=1e-5)
            client.infer("linear", [given], outputs=[wanted(api, 36, 100)])
            found = shm.get_contents_as_numpy(handle, np.float32, [3, 3], 1024 + 100)
            np.testing.assert_allclose(found, EXPECTED, rtol=1e-5)


def test_large_tensors_are_copied_beside_the_event_loop(client: Any, api: Any) -> None:
    rows = np.random.default_rng(0).random((LARGE_ROWS, 4), np.float32)
    with an_object(LARGE_ROWS * 28) as (key, handle):
        client.register_system_shared_memory("region", key, LARGE_ROWS * 28)
        shm.set_shared_memory_region(handle, [rows])
        client.infer(
            "linear",
            [placed(api, LARGE_ROWS)],
            outputs=[wanted(api, LARGE_ROWS * 12, LARGE_ROWS * 16)],
        )
        found = shm.get_contents_as_numpy(handle, np.float32, [LARGE_ROWS, 3], LARGE_ROWS * 16)
        np.testing.assert_allclose(found, rows @ WEIGHT, rtol=1e-5)


@pytest.mark.parametrize(
    ("key", "offset", "nbytes", "says"),
    [
        ("/../etc/passwd", 0, 1, "no name"),
        ("/../../proc/self/mem", 0, 1, "no name"),
        ("/.", 0, 1, "no name"),
        ("", 0, 1, "no name"),
        ("/sem.mp-1", 0, 1, "no name"),
        ("/no-such-object", 0, 1, "no such object"),
        (None, 0, 4097, "which has 4096"),
        (None, 4096, 1, "which has 4096"),
        (None, 2**62, 2**62, "which has 4096"),
        (None, 0, 0, "a size from 1"),
    ],
)
def test_what_cannot_be_registered_says_why(
    client: Any, key: str | None, offset: int, nbytes: int, says: str
) -> None:
    with an_object(4096) as (made, _):
        assert says in refused(
            lambda: client.register_system_shared_memory(
                "region", made if key is None else key, nbytes, offset=offset
            )
        )
    assert (
        not client.get_system_shared_memory_status() or not client.get_system_shared_memory_status().regions
    )


def test_cuda_has_no_regions_and_to_unregister_them_all_first_is_no_error(client: Any) -> None:
    """As NVIDIA's examples and perf_analyzer begin."""
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    client.unregister_cuda_shared_memory("region")
    told = client.get_cuda_shared_memory_status()
    assert not (told if isinstance(told, list) else told.regions)
    assert "not registered" in refused(lambda: client.get_cuda_shared_memory_status("region"))


def test_name_is_registered_once_until_it_is_unregistered(client: Any) -> None:
    with an_object(64) as (key, _):
        client.register_system_shared_memory("region", key, 64)
        assert "registered already" in refused(
            lambda: client.register_system_shared_memory("region", key, 32)
        )
        client.unregister_system_shared_memory("region")
        client.unregister_system_shared_memory("region")
        client.register_system_shared_memory("region", key, 32)
        assert "not registered" in refused(lambda: client.get_system_shared_memory_status("other"))


@pytest.mark.parametrize(
    ("nbytes", "offset", "region", "says"),
    [
        (48, 4096 - 47, "region", "which has 4096"),
        (48, 2**62, "region", "which has 4096"),
        (47, 0, "region", "takes 48"),
        (4096, 0, "region", "takes 48"),
        (48, 0, "other", "not registered"),
    ],
)
def test_input_that_is_not_there_is_refused(
    client: Any, api: Any, nbytes: int, offset: int, region: str, says: str
) -> None:
    with an_object(4096) as (key, _):
        client.register_system_shared_memory("region", key, 4096)
        asked = placed(api, 3, region, nbytes, offset)
        assert says in refused(lambda: client.infer("linear", [asked]))


def test_output_that_has_no_room_is_an_error_for_that_request_alone(client: Any, api: Any) -> None:
    with an_object(4096) as (key, handle):
        client.register_system_shared_memory("region", key, 4096)
        shm.set_shared_memory_region(handle, [ROWS, np.full(1000, 7, np.uint8)])
        assert "has 36 bytes" in refused(
            lambda: client.infer("linear", [placed(api, 3)], outputs=[wanted(api, 35, 48)])
        )
        assert "which has 4096" in refused(
            lambda: client.infer("linear", [placed(api, 3)], outputs=[wanted(api, 36, 4090)])
        )
        assert (shm.get_contents_as_numpy(handle, np.uint8, [1000], 48) == 7).all()
        client.infer("linear", [placed(api, 3)], outputs=[wanted(api, 36, 48)])


def test_object_that_was_made_shorter_or_removed_is_an_error_and_no_crash(
    client: Any, api: Any, server: ServerProcess
) -> None:
    before = server.processes()
    with an_object(4096) as (key, _):
        client.register_system_shared_memory("region", key, 4096)
        os.truncate(f"/dev/shm{key}", 20)
        assert "has 20 bytes" in refused(lambda: client.infer("linear", [placed(api, 3)]))
        inside = api.InferInput("x", [3, 4], "FP32")
        inside.set_data_from_numpy(ROWS)
        assert "has 20 bytes" in refused(lambda: client.infer("linear", [inside], outputs=[wanted(api, 36)]))
        assert os.stat(f"/dev/shm{key}").st_size == 20
        os.truncate(f"/dev/shm{key}", 4096)
    assert "no such object" in refused(lambda: client.infer("linear", [placed(api, 3)]))
    assert set(before) <= set(server.processes())


def test_object_whose_size_changes_all_the_time_kills_nothing(server: ServerProcess) -> None:
    before, ended = server.processes(), threading.Event()
    with an_object(LARGE_ROWS * 16) as (key, _), connected(over_grpc, server) as client:
        client.register_system_shared_memory("region", key, LARGE_ROWS * 16)

        def change() -> None:
            while not ended.is_set():
                os.truncate(f"/dev/shm{key}", 0)
                os.truncate(f"/dev/shm{key}", LARGE_ROWS * 16)

        changes = threading.Thread(target=change)
        changes.start()
        try:
            for number in range(20):
                rows = LARGE_ROWS if number % 2 else 1000
                with contextlib.suppress(InferenceServerException):
                    client.infer("linear", [placed(over_grpc, rows)], outputs=[wanted(over_grpc, rows * 12)])
        finally:
            ended.set()
            changes.join()
    assert set(before) <= set(server.processes())


def test_region_unregistered_while_a_request_uses_it_gets_nothing_written(server: ServerProcess) -> None:
    with an_object(4096) as (key, handle), connected(over_grpc, server) as client:
        shm.set_shared_memory_region(handle, [ROWS, np.full(100, 7, np.uint8)])
        for again in (False, True):
            client.register_system_shared_memory("region", key, 4096)
            answered: Future[Any] = Future()
            labels = {"model": "linear", "version": "2"}
            with server.workers_stopped():
                outputs = [wanted(over_grpc, 12, 48)]
                client.async_infer("linear", [placed(over_grpc, 1)], into(answered), outputs=outputs)
                server.until(
                    lambda labels=labels: server.metric("foldserve_inflight_requests", **labels) == 1
                )
                client.unregister_system_shared_memory("region")
                if again:
                    client.register_system_shared_memory("region", key, 4096)
            with pytest.raises(InferenceServerException, match="unregister it when the requests"):
                answered.result(START_LIMIT_S)
            client.unregister_system_shared_memory("region")
        assert (shm.get_contents_as_numpy(handle, np.uint8, [100], 48) == 7).all()


def test_number_of_regions_is_bounded(server: ServerProcess) -> None:
    with an_object(64) as (key, _):
        body = json.dumps({"key": key, "byte_size": 64})
        with connected(over_grpc, server) as client:
            for number in range(1024):
                client.register_system_shared_memory(f"region {number}", key, 64)
        answer = server.post(REGISTER.format("more"), content=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
        assert "1024" in answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        *("", "[]", "{}", '{"key": 1, "byte_size": 1}', '{"key": "/a"}', '{"key": "/a", "byte_size": "1"}'),
        *('{"key": "/a", "byte_size": 1.5}', '{"key": "/a", "byte_size": true}', "{" * 5000),
        *('{"key": "/a", "byte_size": -1}', '{"key": "/a", "byte_size": 18446744073709551615}'),
        *('{"key": "/a", "byte_size": 1, "offset": -1}', '{"key": "\\ud800", "byte_size": 1}'),
    ],
)
def test_body_of_register_that_is_wrong_says_what_is_expected(server: ServerProcess, body: str) -> None:
    answer = server.post(REGISTER.format("region"), content=body)
    assert (answer.status_code, set(answer.json())) == (400, {"error", "code"})


@pytest.mark.parametrize(
    "parameters",
    [
        {"shared_memory_region": "region"},
        {"shared_memory_byte_size": 48},
        {"shared_memory_offset": 0},
        {"shared_memory_region": 1, "shared_memory_byte_size": 48},
        {"shared_memory_region": "region", "shared_memory_byte_size": "48"},
        {"shared_memory_region": "region", "shared_memory_byte_size": -48},
        {"shared_memory_region": "region", "shared_memory_byte_size": 48, "shared_memory_offset": -1},
        {"shared_memory_region": "region", "shared_memory_byte_size": 48, "shared_memory_offset": 2**63 - 1},
        {"shared_memory_region": "region", "shared_memory_byte_size": 48, "binary_data_size": 48},
        {"shared_memory_region": "region", "shared_memory_byte_size": True},
    ],
)
def test_parameters_that_are_wrong_are_the_clients_fault(
    server: ServerProcess, parameters: dict[str, Any]
) -> None:
    with an_object(4096) as (key, _):
        register = server.post(REGISTER.format("region"), json={"key": key, "byte_size": 4096})
        assert register.status_code == 200
        tensor = {"name": "x", "shape": [3, 4], "datatype": "FP32"}
        good = {**tensor, "data": ROWS.tolist()}
        both = {**good, "parameters": {"shared_memory_region": "region", "shared_memory_byte_size": 48}}
        for document in (
            {"inputs": [{**tensor, "parameters": parameters}]},
            {"inputs": [good], "outputs": [{"name": "y", "parameters": {**parameters, "classification": 1}}]},
            {"inputs": [both]},
        ):
            answer = server.post("/v2/models/linear/infer", json=document)
            assert (answer.status_code, set(answer.json())) == (400, {"error", "code"}), document


def test_off_unless_asked_for_and_what_needs_it_names_the_setting(repository: Path, tmp_path: Path) -> None:
    with serving(repository, tmp_path / "output", grpc=True) as running:
        running.wait_until("/v2/health/ready", 200)
        with an_object(4096) as (key, _):
            for api in (over_http, over_grpc):
                with connected(api, running) as client:
                    for call in (
                        lambda: client.register_system_shared_memory("region", key, 64),
                        client.unregister_system_shared_memory,
                        client.get_system_shared_memory_status,
                        lambda: client.infer("linear", [placed(api, 3)]),  # noqa: B023
                    ):
                        assert "--client-shared-memory" in refused(call)
        assert "system_shared_memory" not in running.get("/v2").json()["extensions"]


def test_extension_is_told_where_it_is_on(server: ServerProcess) -> None:
    assert "system_shared_memory" in server.get("/v2").json()["extensions"]


def test_example_of_the_page_runs(server: ServerProcess) -> None:
    page = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text()
    (example,) = re.findall(
        r"^```python\n(.*?)^```",
        page.partition("\n## Shared memory of clients\n")[2].partition("\n## ")[0],
        re.M | re.S,
    )
    example = example.replace("localhost:8000", server.url.removeprefix("http://"))
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("(2, 5)\n", 0), done.stderr
