"""Calls of gRPC that are large, never whole, never read, or left at once by many.

Each must get an answer that is no fault of the server's, or must not keep anybody from one.
"""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any, Final

import grpc
from tritonclient.grpc import service_pb2

from tests.torture.counts import Counts
from tests.torture.greedy.http_hogs import HELD_S, MIB
from tests.torture.links.grpc_links import INFER, OPTIONS, STREAM
from tests.torture.links.seam import Ports
from tests.torture.wire import ANSWER_LIMIT_S, HOST

_STORM: Final = 200
"""Calls that are left, or given little time, at once."""
_UNREAD: Final = 2_000
"""Requests of a stream whose answers nobody reads: many times what is read ahead."""
_OPENED: Final = 300
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""RFC 9113, 3.4, with a SETTINGS frame that says nothing."""
_GUILTLESS: Final = frozenset(
    (
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNIMPLEMENTED,
    )
)
"""What a server says that is not to blame."""

Act = Callable[[grpc.Channel, Counts, threading.Event], None]


@dataclass(frozen=True)
class GrpcHog:
    """One of them: what a client does on a connection of its own."""

    name: str
    act: Act

    def send(self, ports: Ports, counts: Counts, done: threading.Event) -> None:
        """See Greedy."""
        counts.requests += 1
        with grpc.insecure_channel(f"{HOST}:{ports.grpc}", options=OPTIONS) as channel:
            self.act(channel, counts, done)


@dataclass(frozen=True)
class RawHog:
    """Bytes on the port of gRPC that are no call, or never become one."""

    name: str
    message: bytes
    connections: int = 1

    def send(self, ports: Ports, counts: Counts, done: threading.Event) -> None:
        """See Greedy."""
        counts.requests += 1
        with contextlib.ExitStack() as stack:
            for _ in range(self.connections):
                made = socket.create_connection((HOST, ports.grpc), timeout=HELD_S)
                with contextlib.suppress(OSError):  # the server may end it at once
                    stack.enter_context(made).sendall(self.message)
            done.wait(HELD_S)  # how long they stay
        counts.cancelled += 1


def _message(rows: int, *, typed: bool = False, model: str = "linear") -> bytes:
    message = service_pb2.ModelInferRequest(model_name=model)
    tensor: Any = message.inputs.add(name="x", datatype="FP32", shape=[rows, 4])
    if typed:
        tensor.contents.fp32_contents.extend([1.0] * (4 * rows))
    else:
        message.raw_input_contents.append(bytes(16 * rows))
    written: bytes = message.SerializeToString()
    return written


def _wide() -> bytes:
    """One row whose answer is as long as 6 KB."""
    message = service_pb2.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(8 * 800)])
    message.inputs.add(name="index", datatype="INT64", shape=[1, 800])
    written: bytes = message.SerializeToString()
    return written


def _inputs(count: int) -> bytes:
    message = service_pb2.ModelInferRequest(model_name="linear")
    for number in range(count):
        message.inputs.add(name=f"x{number}", datatype="FP32", shape=[1, 4])
    written: bytes = message.SerializeToString()
    return written


def _judged(counts: Counts, what: str, call: Any, *allowed: grpc.StatusCode) -> None:
    """Wait for the end of a call."""
    try:
        status = call.code() if call.exception(ANSWER_LIMIT_S) is not None else grpc.StatusCode.OK
    except grpc.FutureTimeoutError:
        counts.add("hung", f"{what}: no answer in {ANSWER_LIMIT_S:g} s")
        return
    except grpc.FutureCancelledError:
        counts.cancelled += 1
        return
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        counts.deadlines += 1
    elif status not in (*_GUILTLESS, *allowed):
        counts.add("input_5xx", f"{what}: {status} {call.details()}")
    else:
        counts.right_refusals += status is not grpc.StatusCode.OK


def _one(name: str, message: bytes, path: str = INFER, **how: Any) -> GrpcHog:
    def act(channel: grpc.Channel, counts: Counts, done: threading.Event) -> None:
        _judged(counts, name, channel.unary_unary(path).future(message, **how))

    return GrpcHog(name, act)


def _cancel_storm(channel: grpc.Channel, counts: Counts, done: threading.Event) -> None:
    """All at once, and all left at once, at some moment of their lives."""
    infer, small, chosen = channel.unary_unary(INFER), _message(1), Random(counts.requests)
    calls = [infer.future(small) for _ in range(_STORM)]
    done.wait(chosen.random() * 0.05)  # the moment of leaving
    for call in calls:
        call.cancel()
    for call in calls:
        _judged(counts, "a storm of cancels", call)


def _deadline_storm(channel: grpc.Channel, counts: Counts, done: threading.Event) -> None:
    infer, small, chosen = channel.unary_unary(INFER), _message(1), Random(counts.requests)
    calls = [infer.future(small, timeout=chosen.choice((0.001, 0.005, 0.02, 0.05))) for _ in range(_STORM)]
    for call in calls:
        _judged(counts, "a storm of deadlines", call)


def _unread(message: bytes, streams: int) -> Act:
    """Streams that ask without end, and read nothing."""

    def act(channel: grpc.Channel, counts: Counts, done: threading.Event) -> None:
        def asked() -> Iterator[bytes]:
            for _ in range(_UNREAD):
                yield message

        calls = [channel.stream_stream(STREAM)(asked()) for _ in range(streams)]
        done.wait(HELD_S)  # how long they stay
        for call in calls:
            call.cancel()
        counts.cancelled += streams

    return act


def _opened(channel: grpc.Channel, counts: Counts, done: threading.Event) -> None:
    """Streams on which nothing is asked."""
    ended = threading.Event()

    def nothing() -> Iterator[bytes]:
        ended.wait(HELD_S)
        yield from ()

    calls = [channel.stream_stream(STREAM)(nothing()) for _ in range(_OPENED // 10)]
    done.wait(HELD_S)  # how long they stay
    ended.set()
    for call in calls:
        call.cancel()
    counts.cancelled += len(calls)


@cache
def grpc_hogs() -> tuple[GrpcHog | RawHog, ...]:
    """All kinds, the quick ones first."""
    health = "/grpc.health.v1.Health/Check"
    return (
        _one("gRPC, many inputs", _inputs(4_000)),
        _one("gRPC, more fields than are read", _inputs(100_000)),
        _one("gRPC, bytes that are no message", b"\xff" * MIB),
        _one("gRPC, a long name", b"\x0a\x80\x80\x40" + b"x" * MIB),
        _one("gRPC, an unknown call", b"", "/inference.GRPCInferenceService/" + "x" * 4_000),
        _one("gRPC, a large message to a small call", bytes(MIB), health),
        _one("gRPC, compressed", _message(MIB // 16), compression=grpc.Compression.Gzip),
        _one("gRPC typed, 1 MiB", _message(MIB // 16, typed=True)),
        _one("gRPC typed, 16 MiB", _message(MIB, typed=True)),
        _one("gRPC, 8 MiB", _message(MIB // 2)),
        _one("gRPC, 16 MiB", _message(MIB)),
        _one("gRPC, more than is taken", _message(70 * MIB // 16)),
        GrpcHog("gRPC, a storm of cancels", _cancel_storm),
        GrpcHog("gRPC, a storm of deadlines", _deadline_storm),
        GrpcHog("gRPC, streams nobody reads", _unread(_wide(), 4)),
        GrpcHog("gRPC, a stream of requests that are refused", _unread(_message(MIB // 16), 1)),
        GrpcHog("gRPC, streams on which nothing is asked", _opened),
        RawHog("gRPC, only the preface", _PREFACE, 20),
        RawHog("gRPC, HTTP/1.1 on its port", b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\n"),
        RawHog("gRPC, a frame of 16 MiB", _PREFACE + b"\xff\xff\xff\0\0\0\0\0\1" + bytes(MIB)),
        RawHog("gRPC, pings", _PREFACE + (b"\0\0\x08\6\0\0\0\0\0" + bytes(8)) * 20_000),
        RawHog("gRPC, bytes", bytes(range(256)) * 256),
    )
