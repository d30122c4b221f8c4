"""An inference request that came through ASGI: feeds it the body, and sends its response."""

import asyncio

from foldserve.service.errors import BadRequest, ServiceError
from foldserve.service.frontend.asgi_channel import Channel, Message
from foldserve.service.inference.context import BROKEN, RequestContext
from foldserve.service.inference.partial_body import UNKNOWN
from foldserve.service.inference.plan import RequestHead
from foldserve.service.inference.request import InferenceRequest
from foldserve.service.inference.response import SENT_BYTES, Response
from foldserve.service.inference.server_context import ServerContext


class AsgiExchange:
    """One request. Implements Responder. context: its head, from the ASGI scope."""

    def __init__(
        self, server: ServerContext, head: RequestHead, context: RequestContext, channel: Channel
    ) -> None:
        self._head = head
        self._context = context
        self._channel = channel
        self._request = InferenceRequest(server, head, self)
        self._draining = server.dispatcher.board.draining
        self._response: asyncio.Future[Response | None] = server.loop.create_future()
        """None when the client is gone."""

    def respond(self, request: InferenceRequest, response: Response) -> None:
        """See Responder."""
        if not self._response.done():
            self._response.set_result(response)

    async def run(self) -> None:
        """Answer it. When this task is cancelled, so is the request."""
        request = self._request
        request.begin()
        if request.missing:
            request.await_body()
        listening = asyncio.create_task(self._listen())
        try:
            response = await self._response
            if response is None:
                return
            context = request.context()
            context.headers = self._context.headers
            draining = bool(self._draining[0])
            if response.rest is not None:
                await self._send_rest(response, response.rest, context, draining)
                return
            listening.cancel()
            await self._channel.send_whole(response, context, draining)
        finally:
            listening.cancel()
            request.cancel()

    async def _listen(self) -> None:
        """Read the body, and then on, for that is how it is noticed that the client goes."""
        try:
            await self._read()
        except Exception:
            self._request.refuse(self._request.fault())

    async def _read(self) -> None:
        # No message stays in a variable while another is waited for: it would keep its part of the body.
        while await self._read_part():
            pass
        while not self._is_gone(await self._channel.receive()):
            pass

    async def _read_part(self) -> bool:
        """Feed the next part of the body. Whether more comes."""
        message = await self._channel.receive()
        if self._is_gone(message):
            return False
        more: bool = message.get("more_body", False)
        self._feed(message.get("body", b""), more)
        return more and self._request.missing > 0  # an empty last message may follow

    def _feed(self, chunk: bytes, more: bool) -> None:
        request = self._request
        if self._head.length == UNKNOWN and not more:
            request.feed_last(chunk)
        elif len(chunk) > request.missing or (not more and len(chunk) < request.missing):
            request.refuse(
                BadRequest(
                    f"the body does not have the {self._head.length} bytes that Content-Length says; send a body of "
                    "that length"
                )
            )
        else:
            request.feed(chunk)

    def _is_gone(self, message: Message) -> bool:
        """Whether the client is gone, or its body cannot be understood any more."""
        if message["type"] != "http.disconnect":
            return False
        error: ServiceError | None = message.get(BROKEN)
        if error is not None:
            self._request.refuse(error)
        else:
            self._request.cancel()
            if not self._response.done():
                self._response.set_result(None)
        return True

    async def _send_rest(
        self, response: Response, rest: memoryview, context: RequestContext, draining: bool
    ) -> None:
        """Send a response that ends in what lies in the arena, as quickly as the client takes it."""
        request, channel, wire = self._request, self._channel, self._channel.wire
        if wire is not None:
            wire.send_buffer.begin_response(response.allocation_bytes, len(rest), request.cancel)
        try:
            await channel.send_head(response, context, draining)
            beginning, at = response.body, 0
            while True:
                if request.done:
                    return  # the client is gone, or was evicted
                part = beginning + bytes(rest[at : at + SENT_BYTES])
                beginning, at = b"", at + SENT_BYTES
                if at >= len(rest):
                    break
                await channel.send({"type": "http.response.body", "body": part, "more_body": True})
                if wire is not None:
                    wire.send_buffer.sent(at)
        finally:
            if wire is not None:
                wire.send_buffer.end_response()
        request.sent()
        await channel.send({"type": "http.response.body", "body": part, "more_body": False})
