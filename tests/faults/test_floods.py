"""Half-sent bodies in number: memory stays within what the settings say, and others are served meanwhile."""

import asyncio
import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.server_process import ServerProcess, serving
from tests.faults.support import (
    GATED,
    LIMIT_S,
    Caller,
    client_ports,
    expected,
    make_repository,
    open_gate,
    until,
    use_faulty_backend,
)

pytestmark = pytest.mark.e2e

MIB = 2**20
RAW = "application/octet-stream"
BODY_BYTES = 8 * MIB
SENT_BYTES = 4 * MIB
RECEIVE_MIB = 32


def resident_bytes(pid: int) -> int:
    """Shared pages in full: the arena is what this is about."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))


async def half_send(caller: Caller, kind: str) -> None:
    """Announce a large body, and send half of it."""
    await caller.open()
    head = f"POST /predict/linear HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\n"
    length = "transfer-encoding: chunked" if kind == "application/x-npy" else f"content-length: {BODY_BYTES}"
    caller.writer.write(f"{head}{length}\r\n\r\n".encode())
    part = b" " * SENT_BYTES
    caller.writer.write(b"%x\r\n%b\r\n" % (len(part), part) if kind == "application/x-npy" else part)


@pytest.mark.parametrize("kind", ["application/octet-stream", "application/json", "application/x-npy"])
def test_half_sent_bodies_are_bounded_others_are_served_and_their_room_comes_back(
    tmp_path: Path, kind: str
) -> None:
    async def run() -> None:
        (pid,) = server.api_servers()
        before = resident_bytes(pid)
        flood = [Caller(server.url) for _ in range(40)]
        for caller in flood:
            await half_send(caller, kind)
        statuses = []
        other = Caller(server.url)
        await other.open()
        for number in range(50):
            row = [float(number), 1.0, 2.0, 3.0]
            status, _, answer = await other.ask(row)
            assert (status, answer["outputs"]) == (200, {"y": [expected(row)]})
            # What is refused or late costs a connection's own buffers besides: 64 KiB or so each.
            assert resident_bytes(pid) - before < (RECEIVE_MIB + 24) * MIB
        for caller in flood:
            statuses.append((await asyncio.wait_for(caller.receive(), LIMIT_S))[0])
            caller.close()
        assert set(statuses) == {429, 504}
        # Everything is free again: a body of that size is received and answered.
        await until(
            lambda: server.metric("foldserve_inflight_requests", model="linear", version="1") == 0, ""
        )
        big = b"\0" * BODY_BYTES
        other.writer.write(
            "POST /predict/linear HTTP/1.1\r\nhost: x\r\ncontent-type: application/octet-stream\r\n"
            f"content-length: {len(big)}\r\n\r\n".encode()
            + big
        )
        assert (await asyncio.wait_for(other.receive(), LIMIT_S))[0] == 200
        other.close()

    options = ("--receive-bytes", f"{RECEIVE_MIB}MiB", "--request-timeout-ms", "8000")
    config = (
        "max_batch_size: 65536\nqueue: {max_rows: 1000000}\n"  # few runs for a body of half a million rows
    )
    repository = make_repository(tmp_path / "repository", config)
    with serving(repository, tmp_path / "output", *options) as server:
        server.wait_until("/v2/health/ready", 200)
        asyncio.run(run())
        assert server.end(signal.SIGTERM) == 0


async def connected(server: ServerProcess, count: int, message: bytes) -> list[Caller]:
    """So many connections, on each of which this was sent."""
    callers = [Caller(server.url) for _ in range(count)]
    for caller in callers:
        await caller.open()
        caller.writer.write(message)
    return callers


def head_of(nbytes: int, kind: str = "application/octet-stream", *more: str) -> bytes:
    lines = ["POST /predict/linear HTTP/1.1", "host: x", f"content-type: {kind}", f"content-length: {nbytes}"]
    return "\r\n".join([*lines, *more, "", ""]).encode()


@pytest.mark.parametrize("sent", [0, 1, 60_000], ids=["heads", "a byte each", "60 KB each"])
@pytest.mark.parametrize("way", [(), ("content-encoding: identity",)], ids=["short", "long"])
def test_large_bodies_that_never_come_shut_nobody_out(
    tmp_path: Path, sent: int, way: tuple[str, ...]
) -> None:
    async def run() -> None:
        (pid,) = server.api_servers()
        before = resident_bytes(pid)
        flood = [
            *await connected(server, 150, head_of(60 * MIB, "application/octet-stream", *way) + b"\0" * sent),
            # Each of these is lent a place of the arena, where there is one.
            *await connected(server, 150, head_of(3 * MIB, "application/octet-stream", *way) + b"\0" * sent),
        ]
        other = Caller(server.url)
        await other.open()
        body = b"\0" * (16 * 40_000)  # comes in parts
        for _ in range(20):
            other.writer.write(head_of(len(body)) + body)
            status, _, answer = await asyncio.wait_for(other.receive(), LIMIT_S)
            assert (status, len(answer)) == (200, 12 * 40_000)
        assert resident_bytes(pid) - before < (RECEIVE_MIB + 40) * MIB
        for caller in flood:
            caller.close()
        other.close()

    config = "max_batch_size: 65536\nqueue: {max_rows: 1000000}\n"
    options = ("--arena-bytes", "256MiB")
    repository = make_repository(tmp_path / "repository", config)
    with serving(repository, tmp_path / "output", *options) as server:
        server.wait_until("/v2/health/ready", 200)
        asyncio.run(run())
        assert server.end(signal.SIGTERM) == 0


def test_a_pipeline_behind_a_slow_request_takes_hardly_more_than_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "backend"
    use_faulty_backend(folder, monkeypatch)

    async def run() -> None:
        (pid,) = server.api_servers()
        before = resident_bytes(pid)
        slow = json.dumps({"inputs": [[GATED, 0.0, 0.0, 0.0]]}).encode()
        pipeline = b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n" * 9000
        flood = await connected(server, 40, head_of(len(slow), "application/json") + slow + pipeline)
        # Until the server has taken what it takes.
        await until(
            lambda: len(server.api_servers()) == 1 and server.get("/v2/health/live").status_code == 200, ""
        )
        assert resident_bytes(pid) - before < 2 * 40 * len(pipeline) + 16 * MIB
        for caller in flood[3:]:
            caller.writer.transport.abort()
        open_gate(folder)
        for caller in flood[:3]:
            statuses = [(await asyncio.wait_for(caller.receive(), LIMIT_S))[0] for _ in range(9001)]
            assert statuses == [200, *[404] * 9000]
            caller.close()

    repository = make_repository(tmp_path / "repository")
    with serving(repository, tmp_path / "output") as server:
        server.wait_until("/v2/health/ready", 200)
        asyncio.run(run())
        assert server.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("accept", "rows", "connections", "each", "most_mib"),
    [
        ("application/json", 5_000, 40, 40, 64),
        ("application/json", 200_000, 8, 1, 192),
        ("application/octet-stream", 1_000_000, 5, 1, 256),
    ],
    ids=["many JSON", "large JSON", "raw"],
)
def test_answers_that_nobody_takes_are_bounded_and_their_connections_ended_within_seconds(
    tmp_path: Path, accept: str, rows: int, connections: int, each: int, most_mib: int
) -> None:
    async def run() -> None:
        (pid,) = server.api_servers()
        before = resident_bytes(pid)
        body = np.random.default_rng(0).normal(size=(rows, 4)).astype("<f4").tobytes()
        flood = []
        for _ in range(connections):
            caller = Caller(server.url)
            await caller.open()
            caller.writer.transport.pause_reading()  # type: ignore[attr-defined]
            caller.writer.write((head_of(len(body), RAW, f"accept: {accept}") + body) * each)
            flood.append(caller)
        asked_s = time.monotonic()
        ports = {caller.own_port for caller in flood}
        other, most = Caller(server.url), 0
        await other.open()
        while client_ports(pid) & ports:
            assert time.monotonic() - asked_s < 60.0  # a connection without a request is kept for longer
            status, _, answer = await other.ask([1.0, 2.0, 3.0, 4.0])
            assert (status, answer["outputs"]) == (200, {"y": [expected([1.0, 2.0, 3.0, 4.0])]})
            most = max(most, resident_bytes(pid) - before)
            await asyncio.sleep(0.05)  # between two looks
        assert most < most_mib * MIB
        # What a worker was running when its client was ended is free when the run is over.
        await asyncio.to_thread(
            server.until,
            lambda: server.metric("foldserve_inflight_requests", model="linear", version="1") == 0,
        )
        for caller in flood:
            caller.close()
        other.close()

    config = "max_batch_size: 65536\nqueue: {max_rows: 10000000}\n"
    options = ("--arena-bytes", "512MiB", "--receive-bytes", "128MiB", "--max-body-bytes", "20MiB")
    repository = make_repository(tmp_path / "repository", config)
    with serving(repository, tmp_path / "output", *options) as server:
        server.wait_until("/v2/health/ready", 200)
        asyncio.run(run())
        assert server.end(signal.SIGTERM) == 0


def test_bodies_of_requests_that_wait_are_not_kept_beside_the_arena(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "backend"
    use_faulty_backend(folder, monkeypatch)

    async def run() -> None:
        (pid,) = server.api_servers()
        caller = Caller(server.url)
        await caller.open()
        caller.send([GATED, 0.0, 0.0, 0.0])
        before = resident_bytes(pid)
        # One row each, and much white space around it.
        body = b'{"inputs": [[1, 2, 3, 4]]}'.ljust(100_000)
        waiting: list[Caller] = []
        message = head_of(len(body), "application/json", "content-encoding: identity") + body
        for count in range(20, 420, 20):  # not all at once, so that what is read in one turn shows little
            waiting += await connected(server, 20, message)
            await until(
                lambda count=count: (
                    server.metric("foldserve_inflight_requests", model="linear", version="1") == count + 1
                ),
                "waiting",
            )
        assert resident_bytes(pid) - before < 20 * MIB
        open_gate(folder)
        for one in waiting:
            assert (await asyncio.wait_for(one.receive(), LIMIT_S))[0] == 200
            one.close()
        caller.close()

    repository = make_repository(tmp_path / "repository")
    with serving(repository, tmp_path / "output") as server:
        server.wait_until("/v2/health/ready", 200)
        asyncio.run(run())
        assert server.end(signal.SIGTERM) == 0
