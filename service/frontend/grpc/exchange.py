"""An inference request that came by gRPC: its message is whole, and so is the answer's."""

import asyncio

from foldserve.service.inference.plan import RequestHead
from foldserve.service.inference.request import InferenceRequest
from foldserve.service.inference.response import Response
from foldserve.service.inference.server_context import ServerContext


class GrpcExchange:
    """One request. Implements Responder."""

    def __init__(self, server: ServerContext, head: RequestHead) -> None:
        self._request = InferenceRequest(server, head, self)
        self._response: asyncio.Future[Response] = server.loop.create_future()

    def respond(self, request: InferenceRequest, response: Response) -> None:
        """See Responder. What lies in the arena is copied at once: gRPC sends whole messages."""
        if response.rest is not None:
            body = b"".join((response.body, response.rest))
            response = Response(response.status, body, response.media_type, response.headers)
            request.sent()
        if not self._response.done():
            self._response.set_result(response)

    async def answer(self, message: bytes) -> Response:
        """Have it answered. When this task is cancelled, for the client has gone or its deadline has passed, so is the
        request."""
        request = self._request
        request.begin()
        request.feed(message)
        try:
            return await self._response
        finally:
            request.cancel()
