"""Connections of gRPC: one call after the other, or a stream of many requests.

An answer is told in HTTP's words, so that one judge has them all: status, `code`, and whose it is. What gRPC itself
says when a connection breaks becomes an EOFError.
"""

import asyncio
from collections import deque
from random import Random
from typing import Any, Final

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from tests.torture.links.seam import Ports
from tests.torture.protocols.seam import JSON, Carried, Request
from tests.torture.wire import HOST, Answer

INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
STREAM: Final = "/inference.GRPCInferenceService/ModelStreamInfer"
OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own, which either API server may get
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_receive_message_length", -1),
)
_OPEN_LIMIT_S: Final = 2.0
_DEPTH: Final = 8
"""Requests of a stream that a client has under way."""
_STATUSES: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""Others, such as INTERNAL and UNKNOWN, are 500."""
_OVER: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""What gRPC says of a call that the server never took, for one of both ends: CANCELLED comes of grpcio's own end."""
_SAID: Final = (
    ("died, ", 500, "model_crashed"),
    ("the model failed", 500, "model_failed"),
    ("the server failed", 500, "internal"),
    ("the request allows", 504, "deadline_passed"),
    ("within its time", 504, "deadline_passed"),
    ("try again", 429, "queue_full"),
    ("shutting down", 503, "draining"),
    ("not ready", 503, "not_ready"),
)
"""An error in a stream is a text alone: what it says, in the order of looking. Whatever else it is, it is 400."""


def refused(status: grpc.StatusCode, text: str, code: str, request_id: str) -> Answer:
    """The answer that a refusal is."""
    return Answer(
        _STATUSES.get(status, 500),
        {"content-type": JSON, "x-request-id": request_id, "code": code},
        text.encode(),
    )


async def _connected(ports: Ports) -> grpc.aio.Channel:
    channel = grpc.aio.insecure_channel(f"{HOST}:{ports.grpc}", options=OPTIONS)
    try:
        async with asyncio.timeout(_OPEN_LIMIT_S):
            await channel.channel_ready()
    except TimeoutError:
        await channel.close()
        raise ConnectionRefusedError(f"nobody listens on {ports.grpc}") from None
    return channel


class CallLink:
    """Implements Link: each request a call of ModelInfer."""

    carried = Carried.GRPC
    depth = 1
    slow_s = 0.25
    owes = False  # the channel connects anew, and says nothing of it

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._infer = channel.unary_unary(INFER)
        self._call: Any = None
        self._request_id = ""

    @classmethod
    async def open(cls, ports: Ports) -> "CallLink":
        """Raises: OSError when nobody listens."""
        return cls(await _connected(ports))

    async def send(self, request: Request, chosen: Random) -> None:
        timeout_ms = request.asked.timeout_ms
        limit_s = timeout_ms / 1000 if timeout_ms is not None and chosen.random() < 0.5 else None
        self._request_id = request.asked.request_id
        self._call = self._infer(request.body, timeout=limit_s)

    async def answer(self) -> Answer:
        try:
            body = await self._call
        except grpc.aio.AioRpcError as error:
            code = dict(iter(error.trailing_metadata())).get("code", "")
            if error.code() in _OVER and not code:
                raise EOFError(f"{error.code()}: {error.details()}") from None
            return refused(error.code(), error.details() or "", str(code), self._request_id)
        said = service_pb2.ModelInferResponse.FromString(body).id
        return Answer(200, {"x-request-id": said}, body)

    async def leave(self, request: Request, chosen: Random, seconds: float) -> bool:
        await self.send(request, chosen)
        await asyncio.sleep(seconds)  # the moment of leaving
        self._call.cancel()
        return chosen.random() < 0.8

    async def close(self) -> None:
        await self._channel.close()


class StreamLink:
    """Implements Link: one call of ModelStreamInfer for all requests."""

    carried = Carried.GRPC
    depth = _DEPTH
    slow_s = 0.25
    owes = False

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._stream = channel.stream_stream(STREAM)()
        self._under_way: deque[str] = deque()

    @classmethod
    async def open(cls, ports: Ports) -> "StreamLink":
        """Raises: OSError when nobody listens."""
        return cls(await _connected(ports))

    async def send(self, request: Request, chosen: Random) -> None:
        self._under_way.append(request.asked.request_id)
        try:
            await self._stream.write(request.body)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise EOFError(f"the stream is over: {error}") from None

    async def answer(self) -> Answer:
        try:
            body = await self._stream.read()
        except grpc.aio.AioRpcError as error:
            return self._over(error.code(), error.details() or "")
        if body is grpc.aio.EOF:
            return self._over(await self._stream.code(), await self._stream.details())
        request_id = self._under_way.popleft()
        message = service_pb2.ModelStreamInferResponse.FromString(body)
        said = message.infer_response
        if not message.error_message:
            return Answer(200, {"x-request-id": said.id}, said.SerializeToString())
        text = message.error_message
        status, code = next(((status, code) for words, status, code in _SAID if words in text), (400, ""))
        # A message that cannot be read names no request: then the order says which it is.
        headers = {"content-type": JSON, "x-request-id": said.id or request_id, "code": code}
        return Answer(status, headers, text.encode())

    def _over(self, status: grpc.StatusCode, details: str) -> Answer:
        """The stream has ended under requests. Raises: EOFError when it broke, or the server ends."""
        if status in (*_OVER, grpc.StatusCode.OK):
            raise EOFError(f"the stream is over: {status} {details}")
        return refused(status, f"the stream ended with {status}: {details}", "", self._under_way.popleft())

    async def leave(self, request: Request, chosen: Random, seconds: float) -> bool:
        await self.send(request, chosen)
        await asyncio.sleep(seconds)  # the moment of leaving
        self._stream.cancel()
        return False

    async def close(self) -> None:
        self._stream.cancel()
        await self._channel.close()
