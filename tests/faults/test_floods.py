"""Half-sent bodies in number: memory stays within what the settings say, and others are served meanwhile."""

import asyncio
import signal
from pathlib import Path

import pytest

from tests.e2e.server_process import serving
from tests.faults.support import LIMIT_S, Caller, expected, make_repository, until

pytestmark = pytest.mark.e2e

MIB = 2**20
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
