"""The calls ModelInfer and ModelStreamInfer: from a message to an answer, or to what is wrong with it."""

import asyncio
import contextlib
from typing import Any, Final

import grpc

from foldserve.service.access.gate import Gate
from foldserve.service.access.scopes import INFER as INFER_SCOPE
from foldserve.service.codecs.protobuf_fields import field_of_bytes
from foldserve.service.engine.codec_process import LARGE_JSON_BYTES
from foldserve.service.frontend.grpc.callers import admit
from foldserve.service.frontend.grpc.exchange import GrpcExchange
from foldserve.service.frontend.grpc.received import start_of
from foldserve.service.frontend.grpc.statuses import abort, client_error, refusal
from foldserve.service.frontend.grpc.streams import UNREAD_S, Streams, ended
from foldserve.service.inference.context import MAX_TIMEOUT_MS, RequestContext
from foldserve.service.inference.plan import RequestHead, Target
from foldserve.service.inference.response import Response, error_response
from foldserve.service.inference.server_context import ServerContext
from foldserve.service.protocols.heads import make_head
from foldserve.service.protocols.lookup import Plans
from foldserve.service.protocols.oip.grpc_infer import OIP_GRPC, OIP_GRPC_RAW
from foldserve.service.protocols.oip.information import Information
from foldserve.service.protocols.oip.messages import INFERENCE
from foldserve.service.protocols.oip.wire import Outline, outline

INFER: Final = f"/{INFERENCE}/ModelInfer"
STREAM: Final = f"/{INFERENCE}/ModelStreamInfer"
STREAM_WINDOW: Final = 64
"""Requests of one stream that are answered at the same time; then no more is read, and so the client is held up."""
_ERROR_MESSAGE: Final = 1
_INFER_RESPONSE: Final = 2
"""Fields of ModelStreamInferResponse."""
_ID: Final = 3
"""Of ModelInferResponse."""
_ID_CHARS: Final = 1024
"""Of an id that is too long, to be told with the error."""
_HEADERS: Final = ("x-request-id", "x-timeout-ms", "x-priority")
_SHORTEST_MS: Final = 0.001


class GrpcInference:
    """Of one API server. Messages are bytes: what they say is the protocol's."""

    def __init__(
        self, server: ServerContext, information: Information, plans: Plans, streams: Streams, gate: Gate
    ) -> None:
        self._server = server
        self._gate = gate
        self._information = information
        self._plans = plans
        self._streams = streams

    async def infer(self, message: bytes, context: Any) -> bytes:
        """ModelInfer."""
        response, _ = await self._answer(message, context, INFER)
        if response.status != 200:
            await context.abort(*refusal(response))
        return response.body

    async def stream(self, messages: Any, context: Any) -> None:
        """ModelStreamInfer: answers in the order of the requests, of which several run at once."""
        answers: asyncio.Queue[asyncio.Task[tuple[Response, str]] | None] = asyncio.Queue()
        room = asyncio.Semaphore(STREAM_WINDOW)

        async def read() -> None:
            while True:
                await room.acquire()
                message = await context.read()
                if message is grpc.aio.EOF:
                    break
                answers.put_nowait(asyncio.create_task(self._answer(message, context, STREAM)))

        reader = self._streams.begin(read(), UNREAD_S)
        reader.add_done_callback(lambda _: answers.put_nowait(None))
        try:
            while (answer := await answers.get()) is not None:
                await context.write(_in_stream(*await answer))
                room.release()
        finally:
            reader.cancel()
            while not answers.empty():
                left = answers.get_nowait()
                if left is not None:
                    left.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader
        if reader.cancelled():  # what was read is answered, and more might have come
            await abort(context, ended())

    async def _answer(self, message: bytes, call: Any, path: str) -> tuple[Response, str]:
        """The response to a request, and the id that it gave itself."""
        headers = {name: value for name, value in call.invocation_metadata() or () if name in _HEADERS}
        left_s = call.time_remaining()
        if left_s is not None and "x-timeout-ms" not in headers:
            left_ms = min(max(left_s * 1000, _SHORTEST_MS), MAX_TIMEOUT_MS)
            headers["x-timeout-ms"] = f"{left_ms:.3f}"
        context = RequestContext("POST", path, "", headers)
        context.route, context.protocol = path, OIP_GRPC.name
        said: Outline | None = None
        try:
            # Again for each message of a stream: the keys may have changed since it was opened.
            caller = admit(self._gate, context, call.invocation_metadata())
            start, encoding = start_of(message)
            if encoding:
                headers["content-encoding"] = encoding
            else:
                message = start
            headers["content-length"] = str(len(message))
            said = outline(start, cut=bool(encoding))
            head = self._head(context, said, len(message))
            if caller is not None:
                caller.check(INFER_SCOPE, context.model)
                head.made_by(caller)
            exchange = GrpcExchange(self._server, head)
            return await exchange.answer(message), said.id
        except Exception as raised:
            error = client_error(raised, context)
        self._server.observers.finished(context, error.status, context.elapsed_s())
        return error_response(error, OIP_GRPC.render_error(error)), "" if said is None else said.id

    def _head(self, context: RequestContext, said: Outline, nbytes: int) -> RequestHead:
        """What a request asks for. Raises: ServiceError."""
        found, chosen = self._information.find(said.model, said.version or None)
        context.model, context.version = found.name, chosen.version
        protocol = OIP_GRPC_RAW if nbytes - said.raw_bytes <= LARGE_JSON_BYTES else OIP_GRPC
        plan = self._plans[found.name, chosen.version][protocol.key]
        return make_head(context, Target(context.path, "", context.route), plan)


def _in_stream(response: Response, identity: str) -> bytes:
    """An answer as a message of the stream; of an error the text, and the request's id beside it."""
    if response.status == 200:
        return field_of_bytes(_INFER_RESPONSE, len(response.body)) + response.body
    given = identity[:_ID_CHARS].encode()
    named = field_of_bytes(_ID, len(given)) + given if given else b""
    text = response.body
    return b"".join(
        (field_of_bytes(_ERROR_MESSAGE, len(text)), text, field_of_bytes(_INFER_RESPONSE, len(named)), named)
    )
