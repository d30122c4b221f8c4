"""Requests that are large, slow to read or never whole: what one client can do to hold up all the others.

Sent one after another, each on a connection of its own, by a thread beside the clients of asking.py. Each must get an
answer that is no 5xx, or, where it never ends, must not keep anybody from one.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Final

from tests.torture.counts import Counts
from tests.torture.models import JSON, NPY, RAW
from tests.torture.wire import ANSWER_LIMIT_S, HOST, parse_head

MIB: Final = 2**20
_HELD_S: Final = 1.0
"""How long a client that sends no more, or reads nothing, keeps its connections."""
_BETWEEN_S: Final = 0.05
_ROW: Final = "[1,2,3,4]"
_SIZES: Final = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'999999999999999999, ' * 450}), }}"


@dataclass(frozen=True)
class Hog:
    """One of them. connections: how many send it at once. answered: whether an answer must come; else they leave."""

    name: str
    message: bytes
    connections: int = 1
    answered: bool = True


def _post(
    body: bytes, kind: str = JSON, *headers: str, length: int | None = None, model: str = "linear"
) -> bytes:
    lines = [f"POST /predict/{model} HTTP/1.1", "host: x", f"content-type: {kind}", *headers]
    lines.append(f"content-length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def _empty_post(target: bytes) -> bytes:
    return b"POST " + target + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"


def _rows(size: int, last: str = _ROW) -> bytes:
    return ('{"inputs":[' + (_ROW + ",") * (size // (len(_ROW) + 1)) + last + "]}").encode()


def _npy(header: str, data: bytes) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def _npy_rows(size: int) -> bytes:
    rows = size // 16
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, 4), }}"
    return _npy(text, bytes(rows * 16))


@cache
def hogs() -> tuple[Hog, ...]:
    """All kinds, the quick ones first. Made once: together they are 100 MB."""
    small = [
        Hog("scrape", b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"),
        Hog("info", b"GET /info HTTP/1.1\r\nhost: x\r\n\r\n"),
        Hog("document", b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n"),
        Hog("spaces in a shape", _post(bytes(16), RAW, f"x-tensor-shape: 1{' ' * 16_000}x")),
        Hog("more spaces in a shape", _post(bytes(16), RAW, f"x-tensor-shape: 1,{' ' * 60_000}4x")),
        Hog("digits in a shape", _post(bytes(16), RAW, f"x-tensor-shape: {'1,' * 25_000}4")),
        Hog("spaces in an npy header", _post(_npy("{'descr': '<f4'" + " " * 9_800 + "x", bytes(16)), NPY)),
        Hog("sizes in an npy header", _post(_npy(_SIZES, bytes(16)), NPY)),
        Hog("a long Accept", _post(_rows(0), JSON, "accept: " + "a/b;q=0.1," * 6_000)),
        Hog("many headers", _post(_rows(0), JSON, *(f"x-{i}: {i}" for i in range(3_000)))),
        Hog("a long query", _empty_post(b"/predict/linear?" + b"a=b&" * 15_000)),
        Hog("a long name", _empty_post(b"/predict/" + b"x" * 60_000)),
    ]
    text = [
        Hog("JSON, a wrong last value", _post(_rows(MIB, "[1,2,3,true]"))),
        Hog("JSON, a wrong last row", _post(_rows(MIB, "[1,2,3]"))),
        Hog("JSON, cut", _post(_rows(MIB)[:-2])),
        Hog("JSON, empty objects", _post(b'{"inputs":[' + b"{}," * (MIB // 3) + b"{}]}")),
        Hog("JSON, nested", _post(b'{"inputs":' + b"[" * MIB)),
        Hog("JSON, a long integer", _post(b'{"inputs":[[' + b"1" * MIB + b",2,3,4]]}")),
        Hog("JSON, a long string", _post(b'{"inputs":"' + b"\\u0061" * (MIB // 6) + b'"}')),
        Hog("JSON, many keys", _post(json.dumps({"inputs": {f"k{i}": 1 for i in range(80_000)}}).encode())),
        Hog("JSON, a repeated key", _post(b'{"inputs":{' + b'"x":1,' * (MIB // 6) + b'"x":[[1,2,3,4]]}}')),
        Hog("JSON, spaces", _post(b'{"inputs":' + b" " * 8 * MIB + b"[[1,2,3,4]]}")),
    ]
    large = [
        Hog("JSON, 1 MiB", _post(_rows(MIB))),
        Hog("JSON, 8 MiB", _post(_rows(8 * MIB))),
        Hog("JSON, 8 MiB, the ASGI path", _post(_rows(8 * MIB), JSON, "trailer: none")),
        Hog("npy, 8 MiB", _post(_npy_rows(8 * MIB), NPY)),
        Hog("raw, 8 MiB", _post(bytes(8 * MIB), RAW)),
        Hog("raw to JSON, 1 MiB", _post(bytes(MIB), RAW, f"accept: {JSON}")),
        Hog("JSON, 60 MiB", _post(_rows(60 * MIB))),
        Hog("raw, 60 MiB", _post(bytes(60 * MIB), RAW)),
    ]
    endless = [
        Hog("heads without bodies", _post(b"", RAW, length=66_999_808), connections=10, answered=False),
        Hog("half a body", _post(bytes(MIB), RAW, length=8 * MIB), connections=10, answered=False),
        Hog("half a JSON body", _post(_rows(MIB), JSON, length=8 * MIB), connections=10, answered=False),
        Hog("answers nobody reads", _post(bytes(800 * 16), RAW, f"accept: {JSON}") * 20, 20, answered=False),
        Hog("a pipeline", b"GET / HTTP/1.1\r\n\r\n" * 14_000, 4, answered=False),
        Hog("a client that leaves a large request", _post(bytes(60 * MIB), RAW), answered=False),
    ]
    return (*small, *text, *large, *endless)


class Hogs:
    """`with Hogs(port, counts, seed):` sends them meanwhile, in an order by luck, again and again."""

    def __init__(self, port: int, counts: Counts, seed: int, chosen: tuple[Hog, ...]) -> None:
        self._port, self._counts = port, counts
        self._hogs = chosen
        self._random = Random(seed)
        self.rounds = 0
        """How often all of them were sent."""
        self.sent: list[tuple[str, float, float]] = []
        """Which, from when to when, CLOCK_MONOTONIC."""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Hogs":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Send nothing more; afterwards the last one has its answer."""
        self._done.set()
        self._thread.join()

    def beside(self, from_s: float, to_s: float) -> list[str]:
        """Which were under way in this time."""
        return [name for name, began_s, ended_s in self.sent if began_s < to_s and ended_s > from_s]

    def _run(self) -> None:
        while not self._done.wait(_BETWEEN_S):
            for hog in self._random.sample(self._hogs, len(self._hogs)):
                if self._done.wait(_BETWEEN_S):
                    return
                began_s = time.monotonic()
                self._send(hog)
                self.sent.append((hog.name, began_s, time.monotonic()))
            self.rounds += 1

    def _send(self, hog: Hog) -> None:
        """Send it, and judge its answer."""
        counts = self._counts
        counts.requests += 1
        with _connections(self._port, hog.connections) as connections:
            for connection in connections:
                with contextlib.suppress(
                    OSError
                ):  # refused before it was sent whole: an answer is there all the same
                    if hog.answered:
                        connection.sendall(hog.message)
                    else:
                        connection.settimeout(_HELD_S)
                        connection.sendall(hog.message)
            if not hog.answered:
                self._done.wait(_HELD_S)  # how long they stay
                counts.cancelled += 1
                return
            try:
                status, body = _read_answer(connections[0])
            except TimeoutError:
                counts.add("hung", f"{hog.name}: no answer in {ANSWER_LIMIT_S:g} s")
                return
            except (OSError, EOFError, ValueError) as error:
                counts.add("broken", f"{hog.name}: {type(error).__name__} {error}")
                return
        if status == 504:
            counts.deadlines += 1  # millions of rows may be more than the time of a request allows
        elif status >= 500:
            counts.add("input_5xx", f"{hog.name}: {status} {body[:150]!r}")
        else:
            counts.right_refusals += status >= 400


@contextlib.contextmanager
def _connections(port: int, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection((HOST, port), timeout=ANSWER_LIMIT_S))
            for _ in range(count)
        ]


def _read_answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body. Raises: OSError, EOFError, ValueError."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += _chunk(connection)
    head, _, body = got.partition(b"\r\n\r\n")
    status, headers = parse_head(head)
    parts, missing = [body], int(headers.get("content-length", "0")) - len(body)
    while missing > 0:
        parts.append(_chunk(connection))
        missing -= len(parts[-1])
    return status, b"".join(parts)


def _chunk(connection: socket.socket) -> bytes:
    chunk = connection.recv(65536)
    if not chunk:
        raise EOFError("the connection ended inside an answer")
    return chunk
