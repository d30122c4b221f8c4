"""The torture itself: it sees wrong and swapped answers, deaths and stalls, and blames no server for a slow machine."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.e2e.server_process import alive, free_port, serving
from tests.torture import models
from tests.torture.asking import Clients
from tests.torture.counts import STALL_LIMIT_MS, Counts
from tests.torture.family import Family
from tests.torture.models import JSON, Request, Wanted
from tests.torture.stalls import Prober
from tests.torture.wire import Answer

BLOCKED_S = 0.6
_SERVER = f"""
import signal, socket, sys, time
signal.signal(signal.SIGUSR1, lambda *_: (time.sleep({BLOCKED_S}), print("blocked", flush=True)))
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
connection, _ = listener.accept()
while connection.recv(4096):
    connection.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\nok")
"""


def answer_to(request: Request, request_id: str, status: int = 200, **changes: object) -> Answer:
    assert request.y is not None
    body = {"outputs": {"y": request.y.tolist()}, **changes}
    return Answer(status, {"content-type": JSON, "x-request-id": request_id}, json.dumps(body).encode())


def asked(clients: Clients, number: int) -> Request:
    request = models.good("linear", number, Random(number))
    assert request.y is not None
    clients.recent.remember(request.y, f"torture-{number}")
    return request


def test_right_wrong_and_swapped_answers_are_told_apart() -> None:
    counts = Counts("test")
    clients = Clients(0, counts, 1)
    mine, other = asked(clients, 1), asked(clients, 2)
    assert mine.y is not None
    clients.judge(mine, "torture-1", answer_to(mine, "torture-1"))
    assert (counts.verified, counts.broken_bounds()) == (1, [])
    clients.judge(mine, "torture-1", answer_to(other, "torture-1"))
    clients.judge(mine, "torture-1", answer_to(mine, "torture-2"))
    assert (counts.verified, counts.wrong, counts.swapped) == (1, 0, 2)
    off = dataclasses.replace(mine, y=mine.y + mine.y.dtype.type(0.125))
    clients.judge(mine, "torture-1", answer_to(off, "torture-1"))
    clients.judge(
        dataclasses.replace(mine, wanted=Wanted.REFUSED, y=None), "torture-1", answer_to(mine, "torture-1")
    )
    assert (counts.verified, counts.wrong, counts.swapped) == (1, 2, 2)


@pytest.mark.parametrize(
    ("status", "code", "wanted", "counted"),
    [
        (400, "bad_tensor", Wanted.REFUSED, "right_refusals"),
        (400, "bad_tensor", Wanted.RIGHT, "refused"),
        (500, "model_failed", Wanted.FAILED, "right_refusals"),
        (500, "model_failed", Wanted.RIGHT, "input_5xx"),
        (500, "internal", Wanted.REFUSED, "input_5xx"),
        (500, "model_crashed", Wanted.RIGHT, "crashed"),
        (504, "deadline_passed", Wanted.RIGHT_OR_LATE, "deadlines"),
        (504, "deadline_passed", Wanted.RIGHT, "expired"),
        (429, "queue_full", Wanted.RIGHT, "turned_away"),
        (503, "not_ready", Wanted.RIGHT, "unready"),
    ],
)
def test_refusals_are_counted_by_what_the_request_had_to_get(
    status: int, code: str, wanted: Wanted, counted: str
) -> None:
    counts = Counts("test")
    request = dataclasses.replace(models.good("linear", 1, Random(1)), wanted=wanted)
    Clients(0, counts, 1).judge(request, "me", answer_to(request, "me", status, code=code))
    assert getattr(counts, counted) == 1
    assert bool(counts.broken_bounds()) == (counted not in ("right_refusals", "deadlines"))


@pytest.fixture
def blocking() -> Iterator[tuple[int, "subprocess.Popen[bytes]"]]:
    """A server of one connection, whose loop a SIGUSR1 blocks, and which then says so: its port and process."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", _SERVER, str(port)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"listening\n"
    yield port, process
    process.kill()
    process.communicate()


def test_stall_of_the_server_is_seen_and_a_stopped_prober_blames_nobody(
    blocking: tuple[int, "subprocess.Popen[bytes]"],
) -> None:
    port, process = blocking
    with Prober(port, [process.pid]) as prober:
        os.kill(prober.pid, signal.SIGSTOP)
        time.sleep(BLOCKED_S)  # how long the machine "has no core" for the prober
        os.kill(prober.pid, signal.SIGCONT)
    assert prober["control_ms"] >= 0.9e3 * BLOCKED_S
    assert prober["stall_ms"] < 0.9e3 * BLOCKED_S


def test_blocked_loop_is_a_stall(blocking: tuple[int, "subprocess.Popen[bytes]"]) -> None:
    port, process = blocking
    assert process.stdout is not None
    with Prober(port, [process.pid]) as prober:
        os.kill(process.pid, signal.SIGUSR1)
        assert process.stdout.readline() == b"blocked\n"
    assert prober["seen_ms"] >= 0.9e3 * BLOCKED_S
    assert prober["stall_ms"] >= STALL_LIMIT_MS
    counts = Counts("test")
    prober.put_into(counts)
    assert len(counts.broken_bounds()) == 1


@pytest.mark.e2e
def test_deaths_are_counted_unless_they_were_caused(tmp_path: Path) -> None:
    repository = models.make_repository(tmp_path / "repository", ("linear",))
    with serving(repository, tmp_path / "output", "--workers-per-device", "2") as server:
        server.wait_until("/v2/health/ready", 200)
        server.until(lambda: len(server.workers()) == 2)
        counts = Counts("test")
        with Family(server, counts) as family:
            first, second = server.workers()
            family.kill(first)
            server.until(lambda: first not in server.workers() and len(server.workers()) == 2)
            family.look()
            assert (counts.kills, counts.uncaused_deaths) == (1, 0)
            os.kill(second, signal.SIGKILL)
            server.until(lambda: not alive([second]))
            family.look()
            assert counts.uncaused_deaths == 1
