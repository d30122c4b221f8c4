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
from typing import Any

import numpy as np
import pytest

from tests.e2e.server_process import alive, free_port, serving
from tests.torture import models
from tests.torture.asking import Clients
from tests.torture.counts import STALL_LIMIT_MS, Counts
from tests.torture.family import Family
from tests.torture.links.seam import Ports
from tests.torture.protocols.oip import OIP
from tests.torture.protocols.predict import write_json
from tests.torture.protocols.seam import JSON, Protocol, Request, Wanted
from tests.torture.protocols.table import PROTOCOLS
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


NOWHERE = Ports(0, 0)


def answer_to(request: Request, request_id: str, status: int = 200, **changes: object) -> Answer:
    y = request.asked.y
    assert y is not None
    body = {"outputs": {"y": y.tolist()}, **changes}
    return Answer(status, {"content-type": JSON, "x-request-id": request_id}, json.dumps(body).encode())


def asked(number: int, wanted: Wanted = Wanted.RIGHT) -> Request:
    return write_json(models.asked("linear", number, Random(number), wanted=wanted), Random(number))


def of(request: Request, **changes: Any) -> Request:
    return dataclasses.replace(request, asked=dataclasses.replace(request.asked, **changes))


def test_right_wrong_and_swapped_answers_are_told_apart() -> None:
    counts = Counts("test")
    clients = Clients(NOWHERE, counts, 1)
    mine, other = asked(1), asked(2)
    for request in (mine, other):
        assert request.asked.y is not None
        clients.recent.remember(request.asked.y, request.asked.request_id)
    clients.judge(mine, answer_to(mine, "torture-1"))
    assert (counts.verified, counts.broken_bounds()) == (1, [])
    clients.judge(mine, answer_to(other, "torture-1"))
    clients.judge(mine, answer_to(mine, "torture-2"))
    assert (counts.verified, counts.wrong, counts.swapped) == (1, 0, 2)
    assert mine.asked.y is not None
    clients.judge(mine, answer_to(of(mine, y=mine.asked.y + np.float32(0.125)), "torture-1"))
    clients.judge(of(mine, wanted=Wanted.REFUSED, y=None), answer_to(mine, "torture-1"))
    assert (counts.verified, counts.wrong, counts.swapped) == (1, 2, 2)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_no_two_requests_of_a_protocol_are_alike_and_a_spoilt_one_is_another(protocol: Protocol) -> None:
    chosen = Random(1)
    for model in models.MODELS:
        questions = [models.asked(model, number, chosen, 1) for number in range(1000, 1004)]
        written = [protocol.write(one, chosen) for one in questions if protocol.takes(one)]
        assert len({one.body for one in written}) == len(written)
        answers = [one.asked.y for one in written]
        assert len({y.tobytes() for y in answers if y is not None}) == len(written)
        for one in written:
            rows = models.asked(model, 1000, chosen, 2)
            spoilt = protocol.spoil(rows if protocol.takes(rows) else one.asked, chosen)
            assert (spoilt.asked.wanted, spoilt.asked.y) == (Wanted.REFUSED, None)


def test_answer_that_names_another_request_is_swapped_and_not_wrong() -> None:
    counts = Counts("test")
    (json_infer, *_) = OIP
    request = json_infer.write(models.asked("linear", 7, Random(1), 1), Random(1))
    assert request.asked.y is not None
    output = {"name": "y", "datatype": "FP32", "shape": [1, 3], "data": request.asked.y.ravel().tolist()}
    for identity in ("torture-7", "torture-8"):
        body = json.dumps({"id": identity, "outputs": [output]}).encode()
        Clients(NOWHERE, counts, 1).judge(request, Answer(200, {"x-request-id": "torture-7"}, body))
    assert (counts.verified, counts.wrong, counts.swapped) == (1, 0, 1)


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
    request = asked(1, wanted)
    Clients(NOWHERE, counts, 1).judge(request, answer_to(request, "torture-1", status, code=code))
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
