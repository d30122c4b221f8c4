"""Requests of HTTP that are large, slow to read or never whole: what one client can do to hold up all the others.

Each must get an answer that is no 5xx, or, where it never ends, must not keep anybody from one.
"""

import base64
import contextlib
import gzip
import io
import json
import socket
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from PIL import Image

from tests.torture.counts import Counts
from tests.torture.links.seam import Ports
from tests.torture.protocols.predict import NPY, RAW
from tests.torture.protocols.seam import JSON
from tests.torture.wire import ANSWER_LIMIT_S, HOST, parse_head

MIB: Final = 2**20
HELD_S: Final = 1.0
"""How long a client that sends no more, or reads nothing, keeps its connections."""
_ROW: Final = "[1,2,3,4]"
_SIZES: Final = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'999999999999999999, ' * 450}), }}"


@dataclass(frozen=True)
class Hog:
    """One of them. connections: how many send it at once. answered: whether an answer must come; else they leave."""

    name: str
    message: bytes
    connections: int = 1
    answered: bool = True

    def send(self, ports: Ports, counts: Counts, done: threading.Event) -> None:
        """Send it, and judge its answer. done: when it is set, nobody stays any longer than needed."""
        counts.requests += 1
        with _connections(ports.http, self.connections) as connections:
            for connection in connections:
                with contextlib.suppress(
                    OSError
                ):  # refused before it was sent whole: an answer is there all the same
                    if self.answered:
                        connection.sendall(self.message)
                    else:
                        connection.settimeout(HELD_S)
                        connection.sendall(self.message)
            if not self.answered:
                done.wait(HELD_S)  # how long they stay
                counts.cancelled += 1
                return
            try:
                status, body = _read_answer(connections[0])
            except TimeoutError:
                counts.add("hung", f"{self.name}: no answer in {ANSWER_LIMIT_S:g} s")
                return
            except (OSError, EOFError, ValueError) as error:
                counts.add("broken", f"{self.name}: {type(error).__name__} {error}")
                return
        if status == 504:
            counts.deadlines += 1  # millions of rows may be more than the time of a request allows
        elif status >= 500:
            counts.add("input_5xx", f"{self.name}: {status} {body[:150]!r}")
        else:
            counts.right_refusals += status >= 400


def _post(
    body: bytes, kind: str = JSON, *headers: str, length: int | None = None, path: str = "/predict/linear"
) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-type: {kind}", *headers]
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


_INFER: Final = "/v2/models/linear/infer"
_V1: Final = "/v1/models/linear:predict"
_LENGTH: Final = "inference-header-content-length"


def _infer(nbytes: int, last: str = "1") -> bytes:
    """Rows as JSON of the Open Inference Protocol, flat."""
    rows = nbytes // 8
    head = f'{{"inputs":[{{"name":"x","datatype":"FP32","shape":[{rows},4],"data":['
    return (head + "1," * (4 * rows - 1) + last + "]}]}").encode()


def _infer_binary(nbytes: int, *headers: str, spaces: int = 0) -> bytes:
    head = f'{{"inputs":[{{"name":"x","datatype":"FP32","shape":[{nbytes // 16},4],"parameters":'
    head += f'{{"binary_data_size":{nbytes}}}}}]{" " * spaces}}}'
    return _post(head.encode() + bytes(nbytes), RAW, f"{_LENGTH}: {len(head)}", *headers, path=_INFER)


def _inputs(count: int) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    return json.dumps({"inputs": [{**tensor, "name": f"x{i}"} for i in range(count)]}).encode()


def _picture(side: int, kind: str) -> bytes:
    """Of noise."""
    noise = np.random.default_rng(3).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()


def _huge_claim() -> bytes:
    """A PNG that says that it has 10 billion pixels."""
    file = bytearray(_picture(8, "PNG"))
    file[16:24] = (100_000).to_bytes(4, "big") * 2
    return bytes(file)


def _parts(count: int) -> bytes:
    """A PNG with so many parts that say nothing."""
    file = _picture(8, "PNG")
    return file[:33] + (bytes(4) + b"abcd" + zlib.crc32(b"abcd").to_bytes(4, "big")) * count + file[33:]


def _of_protocols() -> list[Hog]:
    """What is large or strange in protocols besides /predict."""
    bomb = gzip.compress(bytes(200 * MIB), 6)
    photo = base64.b64encode(_picture(500, "JPEG")).decode()
    photos = json.dumps({"instances": [{"b64": photo}] * 20}).encode()
    colours, pictures = "/predict/colours", "/v1/models/colours:predict"
    return [
        Hog("OIP, many inputs", _post(_inputs(20_000), path=_INFER)),
        Hog("OIP, a long id", _post(b'{"id":"' + b"a" * MIB + b'","inputs":[]}', path=_INFER)),
        Hog("OIP, 1 MiB", _post(_infer(MIB), path=_INFER)),
        Hog("OIP, a wrong last value", _post(_infer(MIB, "true"), path=_INFER)),
        Hog("OIP, nested", _post(b'{"inputs":[{"name":"x","data":' + b"[" * MIB, path=_INFER)),
        Hog("OIP, 40 MiB", _post(_infer(20 * MIB), path=_INFER)),
        Hog("OIP binary, 8 MiB", _infer_binary(8 * MIB)),
        Hog("OIP binary, 60 MiB", _infer_binary(60 * MIB)),
        Hog("OIP binary, spaces", _infer_binary(16, spaces=8 * MIB)),
        Hog("OIP binary, half a body", _infer_binary(8 * MIB)[:-MIB], connections=10, answered=False),
        Hog("OIP, a bomb", _post(bomb, JSON, "content-encoding: gzip", path=_INFER)),
        Hog("raw, a bomb", _post(bomb, RAW, "content-encoding: gzip")),
        Hog("raw, 8 MiB, gzip", _post(gzip.compress(bytes(8 * MIB), 1), RAW, "content-encoding: gzip")),
        Hog("gzip, 20,000 files", _post(gzip.compress(b"") * 20_000, JSON, "content-encoding: gzip")),
        Hog("v1, 1 MiB", _post(_rows(MIB).replace(b"inputs", b"instances"), path=_V1)),
        Hog("v1, a wrong last row", _post(_rows(MIB, "[1,2,3]").replace(b"inputs", b"instances"), path=_V1)),
        Hog("v1, empty objects", _post(b'{"instances":[' + b"{}," * (MIB // 3) + b"{}]}", path=_V1)),
        Hog("a picture of 4 megapixels", _post(_picture(2000, "PNG"), "image/png", path=colours)),
        Hog("a picture that claims much", _post(_huge_claim(), "image/png", path=colours)),
        Hog("a picture of empty parts", _post(_parts(4_000_000), "image/png", path=colours)),
        Hog("20 pictures as base64", _post(photos, path=pictures)),
        Hog("base64 that is none", _post(photos.replace(b"/", b"-"), path=pictures)),
    ]


@cache
def hogs() -> tuple[Hog, ...]:
    """All kinds, the quick ones first. Made once: together they are 300 MB."""
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
    return (*small, *text, *_of_protocols(), *large, *endless)


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
