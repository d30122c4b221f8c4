"""Requests of several priority levels to a real server, over every protocol: who is answered before whom."""

import asyncio
import http.client
import json
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc.aio as tritonclient
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tritonclient.grpc import InferInput
from tritonclient.utils import InferenceServerException

from tests.e2e.server_process import START_LIMIT_S, ServerProcess, serving
from tests.service.repositories import save_linear, save_onnx

WIDTH = 1024
DEPTH = 24
"""Products of WIDTH x WIDTH for each row: a batch of four takes some 10 ms."""
BACKLOG = 60
CONFIG = "max_batch_size: 4\nbatch_buckets: [1, 4]\nqueue: {priority_levels: 3, default_priority_level: 2}\n"
ROW = np.ones((1, 4), np.float32)


def save_heavy(path: Path) -> None:
    """y = x, after much work: x FP32 [-1, 4], y FP32 [-1, 4]."""
    wide = np.zeros((4, WIDTH), np.float32)
    wide[:, :4] = np.eye(4)
    steps = [helper.make_node("MatMul", [f"h{at}", "square"], [f"h{at + 1}"]) for at in range(DEPTH)]
    save_onnx(
        path,
        [
            helper.make_node("MatMul", ["x", "wide"], ["h0"]),
            *steps,
            helper.make_node("MatMul", [f"h{DEPTH}", "narrow"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])],
        {"wide": wide, "square": np.eye(WIDTH, dtype=np.float32), "narrow": wide.T.copy()},
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("priorities")
    save_heavy(folder / "repository" / "heavy" / "1" / "model.onnx")
    (folder / "repository" / "heavy" / "config.yaml").write_text(CONFIG)
    save_linear(folder / "repository" / "plain" / "1" / "model.onnx")
    with serving(folder / "repository", folder / "output", "--api-servers", "2", grpc=True) as running:
        running.wait_until("/v2/health/ready", 200)
        yield running


# -- one request of each protocol; 0 = without a word of priority

Ask = Callable[[ServerProcess, httpx.AsyncClient, int], Awaitable[None]]


def headed(priority: int) -> dict[str, str]:
    return {"X-Priority": str(priority)} if priority else {}


def expect(answer: httpx.Response) -> None:
    assert answer.status_code == 200, answer.text


async def raw(server: ServerProcess, client: httpx.AsyncClient, priority: int) -> None:
    headers = {"Content-Type": "application/octet-stream", **headed(priority)}
    answer = await client.post("/predict/heavy", content=ROW.tobytes(), headers=headers)
    assert (answer.status_code, answer.content) == (200, ROW.tobytes()), answer.text


async def predict_json(server: ServerProcess, client: httpx.AsyncClient, priority: int) -> None:
    expect(await client.post("/predict/heavy", json={"inputs": ROW.tolist()}, headers=headed(priority)))


async def through_asgi(server: ServerProcess, client: httpx.AsyncClient, priority: int) -> None:
    path = "/predict/heavy?output=y"
    expect(await client.post(path, json={"inputs": ROW.tolist()}, headers=headed(priority)))


async def kserve_v1(server: ServerProcess, client: httpx.AsyncClient, priority: int) -> None:
    body = {"instances": ROW.tolist()}
    expect(await client.post("/v1/models/heavy:predict", json=body, headers=headed(priority)))


def oip(priority: int, **tensor: Any) -> dict[str, Any]:
    said = {"parameters": {"priority": priority}} if priority else {}
    return {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", **tensor}], **said}


async def oip_json(server: ServerProcess, client: httpx.AsyncClient, priority: int) -> None:
    expect(await client.post("/v2/models/heavy/infer", json=oip(priority, data=[1, 1, 1, 1])))


async def oip_binary(server: ServerProcess, client: httpx.AsyncClient, priority: int) -> None:
    text = json.dumps(oip(priority, parameters={"binary_data_size": ROW.nbytes})).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    expect(await client.post("/v2/models/heavy/infer", content=text + ROW.tobytes(), headers=headers))


async def oip_grpc(server: ServerProcess, client: httpx.AsyncClient, priority: int) -> None:
    channel = [("grpc.use_local_subchannel_pool", 1)]
    async with tritonclient.InferenceServerClient(server.grpc, channel_args=channel) as triton:
        tensor = InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(ROW)
        result = await triton.infer("heavy", [tensor], priority=priority)
        np.testing.assert_array_equal(result.as_numpy("y"), ROW)


PROTOCOLS = (raw, predict_json, through_asgi, kserve_v1, oip_json, oip_binary, oip_grpc)


def new_client(server: ServerProcess) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=server.url, timeout=START_LIMIT_S, limits=limits, verify=False)


async def until_queued(server: ServerProcess, rows: int) -> None:
    """Wait until so many rows wait."""

    def waiting() -> float:
        return server.metric("foldserve_queue_rows", model="heavy", version="1")

    async with asyncio.timeout(START_LIMIT_S):
        while await asyncio.to_thread(waiting) < rows:
            await asyncio.sleep(0.02)  # between two looks


@pytest.mark.parametrize("ask", PROTOCOLS)
def test_higher_levels_are_answered_before_a_backlog_of_bulk(server: ServerProcess, ask: Ask) -> None:
    ended: list[int] = []

    async def one(client: httpx.AsyncClient, priority: int) -> None:
        await ask(server, client, priority)
        ended.append(priority)

    async def run() -> None:
        async with new_client(server) as client:
            with server.workers_stopped():
                asked = [asyncio.create_task(one(client, 3)) for _ in range(BACKLOG)]
                await until_queued(server, BACKLOG)
                asked += [asyncio.create_task(one(client, priority)) for priority in (0, 0, 1)]
                await until_queued(server, BACKLOG + 3)
            await asyncio.gather(*asked)

    asyncio.run(run())
    assert len(ended) == BACKLOG + 3
    # The three are one batch, with one row of bulk where it is padded. Answers of two API servers come in any order
    # within a few batches.
    assert all(ended.index(priority) < BACKLOG / 2 for priority in (0, 1))
    assert ended[-BACKLOG // 2 :] == [3] * (BACKLOG // 2)


def test_bulk_rides_in_the_padding_of_others(server: ServerProcess) -> None:
    def batches() -> tuple[float, float]:
        labels = {"model": "heavy", "version": "1"}
        padding = server.metric("foldserve_padding_rows_total", **labels)
        return server.metric("foldserve_batch_rows_count", **labels), padding

    async def run() -> None:
        async with new_client(server) as client:
            with server.workers_stopped():
                asked = [asyncio.create_task(raw(server, client, priority)) for priority in (3, 3, 3, 1, 2)]
                await until_queued(server, 5)
            await asyncio.gather(*asked)

    before = batches()
    asyncio.run(run())
    # Two of the higher levels and two of bulk, then the third; without riding it were two with 2 + 1 rows of padding.
    assert (batches()[0] - before[0], batches()[1] - before[1]) == (2, 0)


def test_death_of_the_worker_loses_no_request_of_any_level(server: ServerProcess) -> None:
    ended: list[int] = []

    async def one(client: httpx.AsyncClient, priority: int) -> None:
        await raw(server, client, priority)
        ended.append(priority)

    async def run() -> None:
        async with new_client(server) as client:
            with server.workers_stopped():
                asked = [asyncio.create_task(one(client, 1 + at % 3)) for at in range(BACKLOG)]
                await until_queued(server, BACKLOG)
                for pid in server.workers():
                    os.kill(pid, signal.SIGKILL)
            await asyncio.gather(*asked)

    asyncio.run(run())
    assert sorted(ended) == sorted(1 + at % 3 for at in range(BACKLOG))


@pytest.mark.parametrize("path", ["/predict/heavy", "/predict/heavy?output=y", "/v1/models/heavy:predict"])
@pytest.mark.parametrize("given", ["4", "99999999999999999999", "-1", "high", "1.0", "1, 2", ""])
def test_header_out_of_range_is_refused_with_the_mend(server: ServerProcess, path: str, given: str) -> None:
    body = {"instances" if "v1" in path else "inputs": ROW.tolist()}
    answer = server.post(path, json=body, headers={"X-Priority": given})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert answer.json()["error"].startswith(f"X-Priority is {given if given == '4' else repr(given)}")
    assert server.post(path, json=body, headers={"X-Priority": "3"}).status_code == 200


@pytest.mark.parametrize("given", [4, -1, 2**63, "1", True, 1.0, [1]])
def test_parameter_out_of_range_is_refused_with_the_mend(server: ServerProcess, given: Any) -> None:
    document = {**oip(0, data=[1, 1, 1, 1]), "parameters": {"priority": given}}
    for _ in range(3):  # what was refused is not kept
        answer = server.post("/v2/models/heavy/infer", json=document)
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
        assert "parameter 'priority' of the request is" in answer.json()["error"]


def test_refusal_over_grpc_is_an_invalid_argument(server: ServerProcess) -> None:
    async def run() -> None:
        async with new_client(server) as client:
            await oip_grpc(server, client, 4)

    with pytest.raises(InferenceServerException, match="priority levels 1 to 3"):
        asyncio.run(run())


def test_model_without_levels_takes_any(server: ServerProcess) -> None:
    def status(priority: str) -> int:
        body = {"inputs": [[1, 2, 3, 4]]}
        return server.post("/predict/plain", json=body, headers={"X-Priority": priority}).status_code

    assert [status(priority) for priority in ("0", "1", "2", "no level")] == [200, 200, 200, 400]


def test_levels_are_shown(server: ServerProcess) -> None:
    heavy, plain = server.get("/info").json()["models"]
    shown = [
        (of["versions"][0]["priority_levels"], of["versions"][0]["default_priority_level"])
        for of in (heavy, plain)
    ]
    assert shown == [(3, 2), (1, 1)]
    config = server.get("/v2/models/heavy/config").json()["dynamic_batching"]
    assert (config["priority_levels"], config["default_priority_level"]) == (3, 2)
    assert "priority_levels" not in server.get("/v2/models/plain/config").json()["dynamic_batching"]


@given(header=st.binary(max_size=24).filter(lambda value: not set(value) & set(b"\r\n\0")))
@settings(max_examples=60, deadline=None)
def test_no_header_is_a_fault_of_the_server(server: ServerProcess, header: bytes) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=START_LIMIT_S)
    body = b'{"inputs": [[1, 2, 3, 4]]}'
    connection.putrequest("POST", "/predict/plain")
    for name, value in (
        ("Content-Type", b"application/json"),
        ("Content-Length", b"26"),
        ("X-Priority", header),
    ):
        connection.putheader(name, value)
    connection.endheaders(body)
    assert connection.getresponse().status in (200, 400)
    connection.close()
