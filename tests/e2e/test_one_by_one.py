"""Models that count no rows, `max_batch_size: 0`, on a real server: each client gets its own, in the model's shapes."""

import io
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from foldserve.service.commands.predict import connect, predict_files
from tests.e2e.server_process import START_LIMIT_S, ServerProcess, serving
from tests.service.repositories import WEIGHT, save_exported
from tests.service.uncounted import (
    images,
    places,
    save_double,
    save_fixed,
    save_nonzero,
    save_scalars,
    save_scripted_nonzero,
    save_slow,
)

pytestmark = pytest.mark.e2e

RAW = {"content-type": "application/octet-stream"}
NPY = {"content-type": "application/x-npy"}
KINDS = ("json", "raw", "npy")
CLIENTS = 6


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("repository")
    save_nonzero(repository / "nonzero")
    save_scripted_nonzero(repository / "scripted")
    save_fixed(repository / "fixed")
    save_scalars(repository / "scalars")
    save_double(repository / "double")
    save_slow(repository / "slow")
    (repository / "linear" / "1").mkdir(parents=True)
    save_exported(repository / "linear" / "1")
    (repository / "linear" / "config.yaml").write_text("max_batch_size: 0\n")
    output = tmp_path_factory.mktemp("server") / "output"
    with serving(repository, output, "--api-servers", "2", "--request-timeout-ms", "0") as running:
        running.wait_until("/v2/health/ready", 200)
        yield running


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def ask(client: httpx.Client, kind: str, model: str, array: np.ndarray) -> np.ndarray:
    """The first output for a model's only input."""
    path = f"/predict/{model}"
    if kind == "json":
        answer = client.post(path, json={"inputs": array.tolist()})
        assert answer.status_code == 200, answer.text
        return np.array(next(iter(answer.json()["outputs"].values())))
    if model == "scripted":
        path += "?output=found"
    if kind == "npy":
        answer = client.post(path, content=npy(array), headers=NPY)
        assert answer.status_code == 200, answer.text
        return np.asarray(np.load(io.BytesIO(answer.content), allow_pickle=False))
    shape = ",".join(map(str, array.shape)) or "[]"
    answer = client.post(path, content=array.tobytes(), headers={**RAW, "x-tensor-shape": shape})
    assert answer.status_code == 200, answer.text
    given = answer.headers["x-tensor-shape"]
    sizes = () if given == "[]" else tuple(map(int, given.split(",")))
    dtype = {"INT64": np.int64, "FP32": np.float32}[answer.headers["x-tensor-datatype"]]
    return np.frombuffer(answer.content, dtype).reshape(sizes)


@pytest.mark.parametrize("model", ["nonzero", "scripted"])
def test_clients_at_once_get_their_own_detections_none_one_and_many_in_every_type(
    server: ServerProcess, model: str
) -> None:
    pictures = images(30)
    together = threading.Barrier(CLIENTS)

    def client_of(number: int) -> int:
        kind, right = KINDS[number % 3], 0
        with httpx.Client(base_url=server.url, timeout=START_LIMIT_S, verify=False) as client:
            together.wait(START_LIMIT_S)
            for at in np.random.default_rng(number).permutation(len(pictures) * 3) % len(pictures):
                want = places(pictures[int(at)])
                found = ask(client, kind, model, pictures[int(at)])
                # JSON cannot tell [0, 2] from [0].
                np.testing.assert_array_equal(found.reshape(want.shape) if not want.size else found, want)
                assert kind == "json" or found.shape == want.shape
                right += 1
        return right

    with ThreadPoolExecutor(CLIENTS) as pool:
        assert sum(pool.map(client_of, range(CLIENTS))) == CLIENTS * 90
    ran = server.metric("foldserve_batch_rows_count", model=model, version="1")
    assert ran == server.metric("foldserve_batch_rows_sum", model=model, version="1") > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["nonzero", "scripted"])
def test_large_pictures_with_many_detections_and_none_go_through_too(
    server: ServerProcess, model: str, kind: str
) -> None:
    full, empty = np.ones((300, 401), np.float32), np.zeros((900, 1000), np.float32)
    with httpx.Client(base_url=server.url, timeout=START_LIMIT_S, verify=False) as client:
        np.testing.assert_array_equal(ask(client, kind, model, full), places(full))
        assert ask(client, kind, model, empty).size == 0
        np.testing.assert_array_equal(ask(client, kind, model, full[:2, :3]), places(full[:2, :3]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fixed_dim_0_is_sent_as_it_is_and_no_other_size_of_it_is_taken(
    server: ServerProcess, kind: str
) -> None:
    with httpx.Client(base_url=server.url, timeout=START_LIMIT_S, verify=False) as client:
        y = ask(client, kind, "fixed", np.arange(4, dtype="f4").reshape(1, 4))
    np.testing.assert_array_equal(y, [[6, 6, 6]])
    for wrong in (np.ones((2, 4), "f4"), np.ones(4, "f4"), np.ones((1, 1, 4), "f4")):
        bodies = {
            "json": {"json": {"inputs": wrong.tolist()}},
            "raw": {
                "content": wrong.tobytes(),
                "headers": {**RAW, "x-tensor-shape": ",".join(map(str, wrong.shape))},
            },
            "npy": {"content": npy(wrong), "headers": NPY},
        }
        answer = server.post("/predict/fixed", **bodies[kind])
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_tensor")
        assert "[1, 4]" in answer.json()["error"]


def test_a_raw_body_is_one_request_s_bytes_and_no_multiple_of_them(server: ServerProcess) -> None:
    row = np.arange(4, dtype="f4").tobytes()
    assert server.post("/predict/fixed", content=row, headers=RAW).status_code == 200
    for body in (row * 2, row[:8], row + b"\0"):
        answer = server.post("/predict/fixed", content=body, headers=RAW)
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_tensor")
        assert f"the body has {len(body)} bytes; expected 16" in answer.json()["error"]


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_without_dims_are_numbers(server: ServerProcess, kind: str) -> None:
    with httpx.Client(base_url=server.url, timeout=START_LIMIT_S, verify=False) as client:
        y = ask(client, kind, "double", np.array(3.5, np.float32))
    assert (y.shape, float(y)) == ((), 7.0)


@pytest.mark.parametrize(
    ("scale", "says"),
    [
        (True, "has true at the top; expected a number"),
        (None, "has null at the top"),
        ("2", "has the string '2' at the top"),
        ([2], "has shape [1] with 1 dims; expected [] with 0"),
        ({"a": 1}, "has an object at the top"),
        (1e39, "out of the range of FP32"),
    ],
)
def test_what_is_no_number_is_refused_where_a_tensor_has_no_dims(
    server: ServerProcess, scale: object, says: str
) -> None:
    good = server.post("/predict/scalars", json={"inputs": {"x": [1, 2, 3], "scale": 2}})
    assert good.json()["outputs"] == {"total": 12.0}
    answer = server.post("/predict/scalars", json={"inputs": {"x": [1, 2, 3], "scale": scale}})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_tensor")
    assert says in answer.json()["error"]


def test_foldserve_predict_sends_arrays_without_dims(server: ServerProcess, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(3, np.float32))
    np.save(tmp_path / "scale.npy", np.float32(2))
    for model, files, shown in (
        ("double", [f"{tmp_path}/scale.npy"], "y float32 []\n    4."),
        ("scalars", [f"x={tmp_path}/x.npy", f"scale={tmp_path}/scale.npy"], "total float32 []\n    6."),
    ):
        out = io.StringIO()
        with connect(server.url, START_LIMIT_S * 1000) as client:
            assert predict_files(client, model, files, None, None, out) == 0
        assert shown in out.getvalue()


def test_an_export_is_run_a_request_at_a_time_with_all_its_rows(server: ServerProcess) -> None:
    x = np.arange(400, dtype="f4").reshape(100, 4)
    for kind in KINDS:
        with httpx.Client(base_url=server.url, timeout=START_LIMIT_S, verify=False) as client:
            np.testing.assert_allclose(ask(client, kind, "linear", x), x @ WEIGHT)


def test_info_and_the_document_show_the_model_s_own_shapes(server: ServerProcess) -> None:
    versions = {model["name"]: model["versions"][0] for model in server.get("/info").json()["models"]}
    assert {name: version["max_batch_size"] for name, version in versions.items()} == dict.fromkeys(
        versions, 0
    )
    shapes = {
        name: [tensor["shape"] for tensor in (*version["inputs"], *version["outputs"])]
        for name, version in versions.items()
    }
    assert shapes["fixed"] == [[1, 4], [1, 3]]
    assert shapes["scripted"] == [[-1, -1], [-1, 2], []]
    assert shapes["double"] == [[], []]
    said = server.get("/openapi.json").json()["paths"]["/predict/double"]["post"]
    assert said["requestBody"]["content"]["application/json"]["example"] == {"inputs": 0.0}
    assert list(said["x-example-shapes"].values()) == [[]]


def test_a_worker_killed_in_a_run_costs_no_request_and_swaps_none(server: ServerProcess) -> None:
    pictures, over = images(12), threading.Event()

    def client_of(number: int) -> int:
        right = 0
        with httpx.Client(base_url=server.url, timeout=START_LIMIT_S, verify=False) as client:
            while not over.is_set():
                image = pictures[(number + right) % len(pictures)]
                body = {"inputs": {"image": image.tolist(), "steps": 5000}}
                answer = client.post("/predict/slow", json=body)
                assert answer.status_code == 200, answer.text
                assert answer.json()["outputs"]["found"] == places(image).tolist()
                right += 1
        return right

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client_of, number) for number in range(CLIENTS)]
        try:
            for _ in range(10):
                (worker,) = server.workers()
                ran = server.metric("foldserve_batch_rows_count", model="slow", version="1")
                server.until(
                    lambda ran=ran: (
                        server.metric("foldserve_batch_rows_count", model="slow", version="1") > ran + 5
                        or any(client.done() for client in clients)
                    )
                )
                os.kill(worker, signal.SIGKILL)
                server.until(
                    lambda worker=worker: len(server.workers()) == 1 and worker not in server.workers()
                )
                server.wait_until("/v2/health/ready", 200)
                if server.metric("foldserve_retried_total", model="slow", version="1"):
                    break
        finally:
            over.set()
        assert sum(client.result(START_LIMIT_S) for client in clients) > 0
    assert server.metric("foldserve_retried_total", model="slow", version="1") > 0


def test_what_a_refused_model_s_problem_advises_serves_it(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for save in (save_nonzero, save_fixed, save_scalars):
        folder = repository / save.__name__
        save(folder)
        (folder / "config.yaml").unlink()
    (repository / "linear" / "1").mkdir(parents=True)
    save_exported(repository / "linear" / "1")
    with serving(repository, tmp_path / "before") as server:
        server.until(lambda: "NOT READY" in server.output)
        info = server.get("/info").json()
        told = [
            *info["broken"],
            *(model["versions"][0]["manifest"].get("problem", "") for model in info["models"]),
        ]
        assert sum("set `max_batch_size: 0` in config.yaml" in str(problem) for problem in told) == 3, told
        assert server.post("/predict/save_nonzero", json={"inputs": [[1]]}).status_code == 503
    for save in (save_nonzero, save_fixed, save_scalars):
        (repository / save.__name__ / "config.yaml").write_text("max_batch_size: 0\n")
    with serving(repository, tmp_path / "after") as server:
        server.wait_until("/v2/health/ready", 200)
        answer = server.post("/predict/save_nonzero", json={"inputs": [[0, 1]]})
        assert answer.json()["outputs"] == {"found": [[0, 1]]}
