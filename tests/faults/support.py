"""Load on a real server, every answer checked against its own input; and models that crash, hang or take their time.

The models are ordinary ONNX files. What they do for a magic value is done by a backend of the tests, which the server
finds through PYTHONPATH: a signal raised in the run is what a fault in native code looks like from outside.
"""

import asyncio
import contextlib
import itertools
import json
import os
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from tests.e2e.server_process import ServerProcess
from tests.service.repositories import WEIGHT, save_linear

CRASH, HANG, SLOW, GATED = 666.0, 777.0, 555.0, 444.0
SLOW_S = 1.0
RUN_S = "TEST_RUN_S"
"""Environment: seconds that every run takes at least, so that a kill finds the worker in a run."""
ROOM = "TEST_ROOM"
"""Environment: the rows that the device has room for in one run."""
LOST_AT = "TEST_LOST_AT"
"""Environment: which run of each worker finds the device lost, counted from the worker's start."""
FULL_AT = "TEST_FULL_AT"
"""Environment: which loadings of the model, counted over all workers from 1, find no room on the device: "2,3"."""
HELD_AT = "TEST_HELD_AT"
"""Environment: which loading of the model, counted likewise, never ends."""
LIMIT_S = 120.0
"""For anything that must happen in the end: a worker's start on a busy machine is seconds."""

_BACKEND = f"""
import itertools, os, signal, time
from foldserve.service.backends.onnxruntime import cpu_session
from foldserve.service.backends.base import DeviceLost, InsufficientMemory, OutOfMemory

runs = itertools.count(1)
room = int(os.environ.get("TEST_ROOM", "1000000"))
lost_at = int(os.environ.get("TEST_LOST_AT", "0"))

class Session:
    notes = ("a session of the tests",)
    keeps_outputs = False

    def __init__(self, session):
        self.session = session

    def host_buffers(self, rows):
        return None

    def run(self, inputs):
        x = inputs["x"]
        if next(runs) == lost_at:
            raise DeviceLost("CUDA error 719: unspecified launch failure")
        if len(x) > room:
            raise OutOfMemory(f"cannot allocate {{len(x)}} rows")
        time.sleep(float(os.environ.get("TEST_RUN_S", "0")))
        if (x == {CRASH}).any():
            signal.raise_signal(signal.SIGSEGV)  # in this thread, at once
        if (x == {HANG}).any():
            time.sleep(3600)
        if (x == {SLOW}).any():
            time.sleep({SLOW_S})
        while (x == {GATED}).any() and not os.path.exists(os.path.dirname(__file__) + "/gate"):
            time.sleep(0.01)
        return self.session.run(inputs)

def load_session(*args):
    with open(os.path.dirname(__file__) + "/loads", "a") as loads:
        loads.write(".")
        loads.flush()
        if str(loads.tell()) in os.environ.get("TEST_FULL_AT", "").split(","):
            raise InsufficientMemory("CUDA failure 2: out of memory")
        if str(loads.tell()) == os.environ.get("TEST_HELD_AT"):
            time.sleep(3600)
    return Session(cpu_session.load_session(*args))
"""
_SITE = """
import sys
if any("spawn_main" in word for word in sys.orig_argv):
    from dataclasses import replace
    from foldserve.service.backends import BACKENDS
    BACKENDS["onnxruntime"] = replace(BACKENDS["onnxruntime"], module="faulty_backend")
"""


def make_repository(folder: Path, config: str = "") -> Path:
    """One model, linear, whose requests wait for any restart unless the config says otherwise."""
    save_linear(folder / "linear" / "1" / "model.onnx")
    (folder / "linear" / "config.yaml").write_text(
        config if "queue:" in config else f"{config}queue: {{timeout_ms: 120000}}\n"
    )
    return folder


def use_faulty_backend(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the magic values do something in the servers that are started from now on."""
    folder.mkdir()
    (folder / "faulty_backend.py").write_text(_BACKEND)
    (folder / "sitecustomize.py").write_text(_SITE)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)


def open_gate(folder: Path) -> None:
    """Let the runs of GATED rows go on, on servers that use the backend in this folder."""
    (folder / "gate").touch()


def expected(row: list[float]) -> list[float]:
    """What linear answers; exact, because the weights are eighths and the rows whole numbers."""
    answer: list[float] = (np.float32(row) @ WEIGHT).tolist()
    return answer


def client_ports(pid: int) -> set[int]:
    """The far ends of the TCP connections that a process holds."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = os.readlink(link)
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(words[2].rpartition(":")[2], 16) for words in lines if words[9] in inodes} - {0}


async def until(condition: object, what: str) -> None:
    """Wait until condition() holds."""
    until_s = time.monotonic() + LIMIT_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until_s, f"not in {LIMIT_S} s: {what}"
        await asyncio.sleep(0.02)  # between two looks


async def until_restarted(server: ServerProcess, count: int, deaths: int) -> None:
    """Wait until so many workers have died, and as many as before serve again."""
    async with httpx.AsyncClient(timeout=LIMIT_S) as client:
        until_s = time.monotonic() + LIMIT_S
        while True:
            text = (await client.get(f"{server.url}/metrics")).text
            lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#")
            restarts = float(lines.get('foldserve_worker_restarts_total{device="cpu"}', 0))
            ready = (await client.get(f"{server.url}/v2/health/ready")).status_code == 200
            if restarts >= deaths and ready and len(server.workers()) == count:
                return
            assert time.monotonic() < until_s, server.output
            await asyncio.sleep(0.05)  # between two looks


class Caller:
    """One connection that asks again and again, one request at a time."""

    def __init__(self, url: str, model: str = "linear") -> None:
        parts = urlsplit(url)
        self.model = model
        self.host, self.port = parts.hostname, parts.port
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        self.own_port: int = self.writer.get_extra_info("sockname")[1]

    def send(self, row: list[float], *headers: str) -> None:
        body = json.dumps({"inputs": [row]}).encode()
        lines = [
            f"POST /predict/{self.model} HTTP/1.1",
            "host: x",
            "content-type: application/json",
            *headers,
        ]
        self.writer.write("\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body)

    async def receive(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers, body. Raises: EOFError or OSError when the connection breaks."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in head[1:] if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        body = await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), headers, body

    async def ask(self, row: list[float], *headers: str) -> tuple[int, dict[str, str], dict[str, object]]:
        """Send one request and wait for its answer."""
        self.send(row, *headers)
        status, got, body = await asyncio.wait_for(self.receive(), LIMIT_S)
        return status, got, json.loads(body)

    def close(self) -> None:
        self.writer.close()


class SteadyLoad:
    """Connections that ask without a pause; `async with`. Rows count up, so that no two requests are the same."""

    def __init__(self, url: str, connections: int, model: str = "linear") -> None:
        self.callers = [Caller(url, model) for _ in range(connections)]
        self.right = 0
        self.wrong: list[str] = []
        self.broken: list[int] = []
        """Own ports of the connections that broke."""
        self.stopping = False
        self._numbers = itertools.count(1000)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "SteadyLoad":
        for caller in self.callers:
            await caller.open()
        self._tasks = [asyncio.create_task(self._ask_on(caller)) for caller in self.callers]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Send nothing more, and wait for the answers that are due."""
        self.stopping = True
        await asyncio.gather(*self._tasks)
        for caller in self.callers:
            caller.close()

    async def _ask_on(self, caller: Caller) -> None:
        while not self.stopping:
            number = next(self._numbers)
            row = [float(number % 50_000), float(number % 7), 1.0, float(number % 11)]
            if not {CRASH, HANG, SLOW, GATED}.isdisjoint(row):
                continue
            try:
                status, headers, answer = await caller.ask(row)
                if headers.get("connection") == "close" and not self.stopping:
                    caller.close()
                    await caller.open()
            except (OSError, EOFError):
                self.broken.append(caller.own_port)
                return
            if status == 200 and answer["outputs"]["y"] == [expected(row)]:  # type: ignore[index]
                self.right += 1
            else:
                self.wrong.append(f"{status} {answer} for {row}")
