"""Mutated whole requests over real connections: whatever comes, an answer that is one or an end, soon, and no 5xx.

Half of the seeds take the fast path and half the ASGI path. Each mutation has a connection of its own,
whose client says when it has nothing more to send, so that what is not whole can be told from what is still to come.
"""

import asyncio
import json
import time
from random import Random
from typing import Final

from tests.torture import models
from tests.torture.counts import Counts
from tests.torture.links.http_link import message
from tests.torture.mutations import mutated
from tests.torture.protocols.predict import NPY, RAW
from tests.torture.protocols.seam import JSON
from tests.torture.wire import Wire, parse_head

END_LIMIT_S: Final = 60.0
_AT_ONCE: Final = 8
_NO_FAULT_5XX: Final = frozenset((501, 505))
"""What RFC 9110 and 9112 answer to codings and versions that nobody asked us to know."""
_ASKED_FOR: Final = frozenset(("model_failed", "deadline_passed"))
"""Codes of 5xx that a well-formed request can ask for: numbers on which the model fails, a time that is too short."""

_TOKENS: Final = (
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" ", b"\t", b":", b": ", b";", b",", b"\x00", b"\xff", b"\x7f",
    b"%", b"%00", b"%2e%2e", b"/", b"?", b"#", b"GET", b"POST", b"HEAD", b"PUT", b"CONNECT", b"OPTIONS",
    b"TRACE", b"PRI", b"*", b"http://", b"http://x/", b"x:443", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9",
    b"HTTP/2.0", b"HTTP/11", b"/predict/linear", b"/predict", b"/v2/health/live", b"/metrics",
    b"content-length: 0\r\n", b"content-length: 1\r\n", b"content-length: -1\r\n",
    b"content-length: 99999999999999999999\r\n", b"content-length: +5\r\n",
    b"transfer-encoding: chunked\r\n", b"transfer-encoding: gzip, chunked\r\n",
    b"transfer-encoding: identity\r\n", b"connection: close\r\n", b"connection: upgrade\r\nupgrade: h2c\r\n",
    b"connection: keep-alive\r\n", b"expect: 100-continue\r\n", b"expect: x\r\n",
    b"content-encoding: gzip\r\n", b"host: a\r\n", b"host: \r\n", b"trailer: x\r\n", b"te: trailers\r\n",
    b"accept: application/x-npy\r\n", b"accept: */*;q=0\r\n", b"accept: ,;q=\r\n", b"x-timeout-ms: 0\r\n",
    b"x-priority: 0\r\n", b"x-priority: 1\r\n", b"x-priority: 9\r\n", b"x-priority: x\r\n",
    b"x-timeout-ms: 1e9\r\n", b"x-timeout-ms: nan\r\n", b"x-tensor-shape: 1,4\r\n",
    b"x-tensor-shape: -1\r\n", b"x-request-id: \r\n", b"x-request-id: " + b"a" * 129 + b"\r\n", b"?output=y",
    b"?output=", b"?version=1", b"?version=-1", b"/versions/1", b"/versions/99999999999999999999",
    b"5\r\nhello\r\n", b"0\r\n\r\n", b"ffffffffffffffff\r\n", b"1;a=b\r\nx\r\n", b"{", b"[", b"]", b'"',
    b"NaN", JSON.encode(), RAW.encode(), NPY.encode(),
    b"/v2/models/linear/infer", b"/v2/models", b"/v1/models/linear:predict", b"/v2/repository/index", b":predict",
    b"inference-header-content-length: 0\r\n", b"inference-header-content-length: -1\r\n", b"/invocations",
    b"inference-header-content-length: 99999999999999999999\r\n", b"content-encoding: deflate\r\n", b"?top=5",
    b"?top=99999999999", b"image/jpeg", b"image/png", b"multipart/form-data; boundary=", b'"b64"', b'"instances"',
    b"application/json; charset=utf-16", b"text/plain", b"multipart/form-data",
)  # fmt: skip


def seeds(chosen: Random, served: tuple[str, ...]) -> list[bytes]:
    """Good requests of every kind, on both paths, and a few of them behind each other."""
    found = []
    for number in range(48):
        request = models.good(chosen.choice(served), number, chosen)
        found.append(message(request, long_way=bool(number % 2), chunked=number % 5 == 0))
    for path in ("/health", "/v2/health/live", "/v2/health/ready", "/info", "/docs", "/openapi.json"):
        found.append(f"GET {path} HTTP/1.1\r\nhost: x\r\naccept: */*\r\n\r\n".encode())
    return [*found, found[0] + found[3] + found[-1], found[1] + found[2]]


async def fuzz_wire(
    port: int, counts: Counts, seed: int, served: tuple[str, ...], *, requests: int = 0, seconds: float = 0.0
) -> None:
    """So many mutated requests, and for so long."""
    chosen = Random(seed)
    messages, until_s = seeds(chosen, served), time.monotonic() + seconds
    whole = frozenset(messages)

    async def send_on() -> None:
        while counts.requests < requests or time.monotonic() < until_s:
            counts.requests += 1
            sent = mutated(messages, _TOKENS, chosen)
            if not await _send(port, sent, counts) and sent in whole:
                counts.add("refused", f"not changed, and not answered with 200: {sent[:200]!r}")

    await asyncio.gather(*(send_on() for _ in range(_AT_ONCE)))


async def _send(port: int, message: bytes, counts: Counts) -> int:
    """Returns: how many answers 200 came."""
    shown = f"{message[:200]!r}"
    began_s = time.monotonic()
    try:
        wire = await Wire.open(port)
    except OSError as error:
        counts.add("broken", f"no connection: {error}")
        return 0
    try:
        async with asyncio.timeout(END_LIMIT_S):
            wire.send(message)
            wire.half_close()
            got = await wire.rest()
    except TimeoutError:
        counts.add("hung", shown)
        return 0
    except OSError:
        counts.cancelled += 1  # the server ended the connection while it was being sent to
        return 0
    finally:
        wire.close()
    counts.answered_in(time.monotonic() - began_s)
    if not got and _is_one_head(message):
        counts.add("broken_promises", f"no answer at all to {shown}")
    try:
        return _judge(got, counts, shown)
    except ValueError as error:
        counts.add("broken_promises", f"{error}: {got[:100]!r} to {shown}")
        return 0


def _is_one_head(message: bytes) -> bool:
    """Whether this is something, up to an empty line, that announces no body: then an answer is due."""
    head, end, rest = message.partition(b"\r\n\r\n")
    lower = head.lower()
    announces = b"content-length" in lower or b"transfer-encoding" in lower
    return bool(end) and bool(head.strip()) and not rest and not announces


def _judge(got: bytes, counts: Counts, shown: str) -> int:
    """Look at each of the answers. Returns: how many are 200. Raises: ValueError when they are none."""
    good = 0
    while got:
        head, found, rest = got.partition(b"\r\n\r\n")
        if not found:
            raise ValueError("a head without its end")
        status, headers = parse_head(head)
        if status == 100:
            got = rest
            continue
        length = int(headers["content-length"]) if "content-length" in headers else len(rest)
        # An answer to HEAD has the length of what it leaves out.
        body, got = (b"", rest) if rest.startswith(b"HTTP/1.") or not rest else (rest[:length], rest[length:])
        if body and len(body) < length:
            raise ValueError(f"a body of {len(body)} bytes, {length} were promised")
        if status == 200:
            good += 1
        elif body:
            _judge_error(status, headers, body, counts, shown)
    counts.accepted += good
    return good


def _judge_error(status: int, headers: dict[str, str], body: bytes, counts: Counts, shown: str) -> None:
    if not headers.get("content-type", "").startswith(JSON):
        raise ValueError(f"{status} is {headers.get('content-type')}, not {JSON}")
    error = json.loads(body)
    if not error["error"] or not error["code"] or len(body) > 5_000:
        raise ValueError(f"{status} says {body[:100]!r}")
    if status >= 500 and error["code"] not in _ASKED_FOR and status not in _NO_FAULT_5XX:
        counts.add("input_5xx", f"{status} {body[:150]!r} to {shown}")
    else:
        counts.right_refusals += 1
