"""What any API server says of all processes: exact, also after a worker was killed."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.server_process import START_LIMIT_S, ServerProcess, serving
from tests.service.repositories import TABLE, save_linear, save_lookup

pytestmark = pytest.mark.e2e

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]

WINDOW_MS = 5000
"""A worker holds the first requests of a batch for so long: time to kill it while it has them."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("repository")
    save_linear(repository / "linear" / "1" / "model.onnx")
    save_lookup(repository / "lookup" / "1" / "model.onnx")
    (repository / "lookup" / "config.yaml").write_text(f"max_queue_delay_ms: {WINDOW_MS}\n")
    with serving(repository, repository.parent / "output", "--api-servers", "2") as running:
        running.wait_until("/v2/health/ready", 200)
        yield running


@pytest.fixture(scope="module")
def clients(server: ServerProcess) -> Iterator[list[httpx.Client]]:
    """A connection to each API server; it is known by the beginning of the ids that it makes."""
    found: dict[str, httpx.Client] = {}
    others = []
    while len(found) < 2:
        client = httpx.Client(base_url=server.url, timeout=START_LIMIT_S)
        answer = client.post("/predict/linear", json={"inputs": [[1, 2, 3, 4]]})
        others.append(client)
        found.setdefault(answer.headers["x-request-id"][:20], client)
        assert len(others) < 300, "one API server takes every connection"
    yield list(found.values())
    for client in others:
        client.close()


def samples(client: httpx.Client) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
    }


def value(of: Samples, name: str, **labels: str) -> float:
    return of.get((name, tuple(sorted(labels.items()))), 0.0)


def counted(of: Samples) -> Samples:
    """Without what changes while one looks, or at a scrape itself."""
    return {key: number for key, number in of.items() if not key[0].startswith("process_")}


LOOKUP = {"model": "lookup", "version": "1"}


def test_both_api_servers_say_the_same_and_it_is_what_was_sent(clients: list[httpx.Client]) -> None:
    before = samples(clients[0])
    for i in range(30):
        answer = clients[i % 2].post("/predict/linear", json={"inputs": [[0, 0, 0, 0]] * (1 + i % 3)})
        assert answer.status_code == 200
    assert clients[1].post("/predict/linear", json={"inputs": [[1]]}).status_code == 400

    def grown(name: str, **labels: str) -> float:
        labels |= {"model": "linear", "version": "1"}
        return value(first, name, **labels) - value(before, name, **labels)

    until_s = time.monotonic() + START_LIMIT_S
    while True:
        first, second = (samples(client) for client in clients)
        # The last of them are counted when their answers are out already.
        counts = (
            grown("foldserve_batch_rows_sum"),
            grown("foldserve_requests_total", protocol="json", code="400"),
        )
        if counts == (60, 1) and counted(first) == counted(second):
            break
        assert time.monotonic() < until_s, (counts, counted(first), counted(second))

    assert grown("foldserve_requests_total", protocol="json", code="200") == 30
    assert grown("foldserve_requests_total", protocol="json", code="400") == 1
    assert grown("foldserve_request_rows_sum") == 60
    assert grown("foldserve_batch_rows_sum") == 60
    assert grown("foldserve_stage_duration_seconds_count", stage="run") == 30
    assert grown("foldserve_request_duration_seconds_bucket", le="+Inf") == 31


def test_killed_worker_is_counted_exactly_by_both_api_servers(
    server: ServerProcess, clients: list[httpx.Client]
) -> None:
    count = 8

    def ask(i: int) -> httpx.Response:
        return server.post("/predict/lookup", json={"inputs": [[i, i + 1]]})

    before = samples(clients[0])
    with ThreadPoolExecutor(count) as pool:
        answers = [pool.submit(ask, i) for i in range(count)]
        while True:  # until the worker has all of them and waits for more
            seen = samples(clients[1])
            waiting = value(seen, "foldserve_queue_rows", **LOOKUP)
            if value(seen, "foldserve_inflight_requests", **LOOKUP) == count and not waiting:
                break
            assert not all(answer.done() for answer in answers), "the window was over too soon"
        (worker,) = server.workers()
        os.kill(worker, signal.SIGKILL)
        for i, answer in enumerate(answers):
            np.testing.assert_array_equal(answer.result().json()["outputs"]["y"], [TABLE[[i, i + 1]]])
    server.wait_until("/v2/health/ready", 200)
    for now in (samples(client) for client in clients):
        assert value(now, "foldserve_worker_restarts_total", device="cpu") == 1
        assert value(now, "foldserve_retried_total", **LOOKUP) == count
        assert value(now, "foldserve_retried_total", model="linear", version="1") == 0
        assert value(now, "foldserve_model_ready", **LOOKUP) == 1
        assert value(now, "foldserve_model_ready", model="linear", version="1") == 1
        assert value(now, "foldserve_queue_rows", **LOOKUP) == 0
        assert value(now, "foldserve_inflight_requests", **LOOKUP) == 0
        answered = {"protocol": "json", "code": "200", **LOOKUP}
        assert value(now, "foldserve_requests_total", **answered) == count
        assert value(now, "foldserve_request_duration_seconds_count", **LOOKUP) == count
        # Of the batch that died with its worker nothing is counted, and nothing that was before is lost.
        assert value(now, "foldserve_batch_rows_sum", **LOOKUP) == count
        fallen = [
            key
            for key, number in counted(before).items()
            if key[0].endswith(("_total", "_count", "_sum", "_bucket")) and now.get(key, 0.0) < number
        ]
        assert fallen == []
