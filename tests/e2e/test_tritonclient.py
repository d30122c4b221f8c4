"""NVIDIA's own client against a real server: every call of it that is served, and what it makes of refusals."""

import gzip
import json
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import requests
import tritonclient.http as tritonclient

from tests.e2e.server_process import START_LIMIT_S, ServerProcess, serving
from tests.service.repositories import WEIGHT, save_exported, save_lookup

pytestmark = [
    pytest.mark.e2e,
    # Its HTTP library's, not ours: sockets that are open when the garbage collector finds them.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
LARGE_ROWS = 100_000
JSON_BYTES = 2**22


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("repository")
    for version in ("1", "2"):
        (folder / "linear" / version).mkdir(parents=True)
        save_exported(folder / "linear" / version, version=version)
    (folder / "linear" / "config.yaml").write_text(
        "version_policy: all\nqueue: {max_rows_per_request: 200000}\n"
    )
    save_lookup(folder / "lookup" / "1" / "model.onnx")
    output = tmp_path_factory.mktemp("server") / "output"
    with serving(folder, output, "--api-servers", "2", "--max-json-bytes", str(JSON_BYTES)) as running:
        running.wait_until("/v2/health/ready", 200)
        yield running


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Any]:
    url = server.url.removeprefix("http://")
    with tritonclient.InferenceServerClient(
        url, connection_timeout=START_LIMIT_S, network_timeout=START_LIMIT_S
    ) as made:
        yield made


def given(array: np.ndarray, *, binary: bool = True, name: str = "x") -> Any:
    made = tritonclient.InferInput(name, list(array.shape), "FP32")
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def test_the_client_finds_the_server_and_its_models(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("linear")
    assert client.is_model_ready("linear", "1")
    assert not client.is_model_ready("none")
    assert client.get_server_metadata()["name"] == "foldserve"
    metadata = client.get_model_metadata("linear")
    assert metadata == {
        "name": "linear",
        "versions": ["1", "2"],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    }
    config = client.get_model_config("linear", "1")
    assert (config["max_batch_size"], config["input"][0]["dims"]) == (8, [4])
    index = client.get_model_repository_index()
    assert {(one["name"], one["version"], one["state"]) for one in index} == {
        ("linear", "1", "READY"), ("linear", "2", "READY"), ("lookup", "1", "READY")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("binary_in", "binary_out", "version"), list(product((True, False), (True, False, None), ("", "1")))
)
def test_it_reads_the_answers_that_it_asked_for(
    client: Any, binary_in: bool, binary_out: bool | None, version: str
) -> None:
    outputs = None if binary_out is None else [tritonclient.InferRequestedOutput("y", binary_data=binary_out)]
    result = client.infer(
        "linear",
        [given(ROWS, binary=binary_in)],
        model_version=version,
        outputs=outputs,
        request_id="find me",
        priority=1,
        timeout=5_000_000,
    )
    # float32 sums of four terms on either side
    np.testing.assert_allclose(result.as_numpy("y"), ROWS @ WEIGHT, rtol=1e-5)
    response = result.get_response()
    assert (response["id"], response["model_version"]) == ("find me", version or "2")


def test_it_reads_classes(client: Any) -> None:
    asked = [tritonclient.InferRequestedOutput("y", class_count=2)]
    found = client.infer("linear", [given(ROWS)], outputs=asked).as_numpy("y")
    places = np.argsort(-(ROWS @ WEIGHT), axis=1)[:, :2]
    assert [[int(one.split(b":")[1]) for one in row] for row in found] == places.tolist()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
def test_it_may_compress_its_bodies(client: Any, algorithm: str, binary: bool) -> None:
    result = client.infer(
        "linear",
        [given(ROWS, binary=binary)],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    np.testing.assert_allclose(result.as_numpy("y"), ROWS @ WEIGHT, rtol=1e-5)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
def test_large_bodies_and_answers_come_whole(client: Any, binary: bool) -> None:
    rows = (
        LARGE_ROWS if binary else LARGE_ROWS // 10
    )  # beyond what is parsed, and rendered, on the event loop
    array = np.random.default_rng(0).standard_normal((rows, 4)).astype(np.float32)
    asked = [tritonclient.InferRequestedOutput("y", binary_data=binary)]
    result = client.infer("linear", [given(array, binary=binary)], outputs=asked, request_id="large")
    np.testing.assert_allclose(result.as_numpy("y"), array @ WEIGHT, rtol=1e-3, atol=1e-4)
    assert result.get_response()["id"] == "large"


def test_many_requests_at_once_get_their_own_answers(server: ServerProcess) -> None:
    url = server.url.removeprefix("http://")
    with tritonclient.InferenceServerClient(url, concurrency=8) as many:
        asked = [(i, many.async_infer("linear", [given(ROWS + i)], request_id=str(i))) for i in range(64)]
        for i, pending in asked:
            result = pending.get_result()
            assert result.get_response()["id"] == str(i)
            np.testing.assert_allclose(result.as_numpy("y"), (ROWS + i) @ WEIGHT, rtol=1e-5)


def test_statistics_count_each_request_once_over_all_processes(client: Any) -> None:
    def count(version: str) -> tuple[int, int, int]:
        (stats,) = client.get_inference_statistics("linear", version)["model_stats"]
        return (
            stats["inference_stats"]["success"]["count"],
            stats["inference_count"],
            stats["execution_count"],
        )

    before = count("1")
    for _ in range(5):
        client.infer("linear", [given(ROWS)], model_version="1")
    requests_, rows, runs = count("1")
    assert (requests_ - before[0], rows - before[1]) == (5, 15)
    assert 1 <= runs - before[2] <= 5
    every = client.get_inference_statistics()["model_stats"]
    assert {(one["name"], one["version"]) for one in every} == {
        ("linear", "1"),
        ("linear", "2"),
        ("lookup", "1"),
    }
    (stats,) = client.get_inference_statistics("linear", "1")["model_stats"]
    for stage in ("queue", "compute_input", "compute_infer", "compute_output", "success"):
        assert stats["inference_stats"][stage]["ns"] > 0


def test_it_is_told_what_is_wrong(client: Any) -> None:
    for bad, pattern in (
        ([given(np.zeros((1, 5), np.float32))], "dim 1 is 5; expected 4"),
        ([given(ROWS, name="z")], "no input 'z'"),
    ):
        with pytest.raises(tritonclient.InferenceServerException, match=pattern):
            client.infer("linear", bad)
    with pytest.raises(tritonclient.InferenceServerException, match="not served"):
        client.infer("none", [given(ROWS)])
    with pytest.raises(tritonclient.InferenceServerException, match="no version '9'"):
        client.infer("linear", [given(ROWS)], model_version="9")
    shared = tritonclient.InferInput("x", [1, 4], "FP32")
    shared.set_shared_memory("region", 16)
    with pytest.raises(tritonclient.InferenceServerException, match="shared memory"):
        client.infer("linear", [shared])


def test_a_bomb_is_refused_and_nobody_else_notices(client: Any, server: ServerProcess) -> None:
    bomb = gzip.compress(b" " * (JSON_BYTES * 8))
    url = f"{server.url}/v2/models/linear/infer"
    for _ in range(3):
        answer = requests.post(url, bomb, headers={"Content-Encoding": "gzip"}, timeout=START_LIMIT_S)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        np.testing.assert_allclose(
            client.infer("linear", [given(ROWS)]).as_numpy("y"), ROWS @ WEIGHT, rtol=1e-5
        )


def test_compressed_bodies_are_read_by_predict_too(server: ServerProcess) -> None:
    body = gzip.compress(json.dumps({"inputs": ROWS.tolist()}).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = requests.post(f"{server.url}/predict/linear", body, headers=headers, timeout=START_LIMIT_S)
    np.testing.assert_allclose(answer.json()["outputs"]["y"], ROWS @ WEIGHT, rtol=1e-5)
