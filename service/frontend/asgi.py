"""The ASGI application: which request is answered by what.

An inference request goes on to asgi_exchange.py; every other response, the errors too, leaves through __call__. The
application needs no framework, and so nobody else's errors can come out of it.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from foldserve.service.access.gate import WIDE_OPEN, Gate
from foldserve.service.access.keyring import Caller
from foldserve.service.access.scopes import INFER, scope_of
from foldserve.service.engine.served import Status
from foldserve.service.errors import Internal, ServiceError
from foldserve.service.frontend.asgi_channel import WIRE, Channel, Receive, Scope, Send
from foldserve.service.frontend.asgi_exchange import AsgiExchange
from foldserve.service.frontend.pages import info, operations, site
from foldserve.service.frontend.pages.openapi import OpenApiDocument
from foldserve.service.frontend.routing import RouteTable
from foldserve.service.inference.context import REFUSAL, RequestContext
from foldserve.service.inference.response import Response, error_response, json_response
from foldserve.service.inference.server_context import ServerContext
from foldserve.service.logs.limits import with_id
from foldserve.service.protocols.lookup import check_ready
from foldserve.service.protocols.routes import Route, read_head
from foldserve.service.settings import ServeSettings

_SMALL_BODY_BYTES: Final = 65_536
"""Of a call that is no inference request."""

_log = logging.getLogger("foldserve.http")


class Calls(Protocol):
    """Those of one protocol (protocols/)."""

    def routes(self) -> tuple[Route, ...]:
        """Every one."""
        ...


class AsgiApp:
    """The ASGI application of one API server."""

    def __init__(
        self,
        status: Status,
        inference: ServerContext,
        calls: Sequence[Calls],
        settings: ServeSettings,
        exposition: Callable[[str], Awaitable[tuple[bytes, str]]],
        gate: Gate = WIDE_OPEN,
    ) -> None:
        """
        Args:
            status: what is served.
            inference: what inference requests need; its observers learn of every other request too.
            calls: of each protocol.
            exposition: Accept header -> body and content type of GET /metrics.
            gate: what is asked of a request before it is served.
        """
        self.gate = gate
        self.status = status
        self.inference = inference
        self.observers = inference.observers
        self.settings = settings
        self.exposition = exposition
        own = (
            ("/health", "Ready to serve", self._ready, operations.READY),
            ("/info", "Models, versions, signatures, limits", self._info, operations.INFO),
            (
                "/metrics",
                "Prometheus metrics, text or OpenMetrics by Accept",
                self._metrics,
                operations.METRICS,
            ),
            ("/docs", "This server's page for people", self._docs, operations.PAGE),
            ("/docs/{file}", "What that page is made of", self._docs_file, operations.FILES),
            ("/openapi.json", "This description", self._openapi, operations.DOCUMENT),
        )
        self.routes = RouteTable(
            (
                *(route for of in calls for route in of.routes()),
                *(Route("GET", path, what, handler, operation=said) for path, what, handler, said in own),
            )
        )
        self._document = OpenApiDocument(
            self.routes.routes, status, settings, asks_keys=gate.keys is not None
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; the ASGI entry."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        context = _context_of(scope)
        cross_origin = self.gate.cross_origin
        headers = () if cross_origin is None else cross_origin.headers(context.headers.get("origin"))
        channel = Channel(receive, send, scope.get("extensions", {}).get(WIRE), headers)
        exchange: AsgiExchange | None = None
        try:
            if REFUSAL in scope:
                raise scope[REFUSAL]
            answered = self._preflight(context) or await self._answer(context, channel)
            if isinstance(answered, AsgiExchange):
                exchange = answered
            else:
                response = answered
        except ServiceError as error:
            context.error_code = error.code
            response = error_response(error)
            response.closes |= REFUSAL in scope
        except Exception:
            _log.exception(
                "request %s failed: %s %s",
                *(context.request_id, context.method, context.path[:200]),
                extra=with_id(context.request_id),
            )
            context.error_code = Internal.code
            response = error_response(
                Internal(
                    f"the server failed on this request; its log says why, under id {context.request_id}"
                )
            )
        if exchange is not None:  # it sends, counts and tells itself
            await exchange.run()
            return
        await channel.send_whole(response, context, self.status.draining())
        if context.counted:
            self.observers.finished(context, response.status, context.elapsed_s())
        else:
            self.observers.notify(context, response.status, context.elapsed_s())

    async def _answer(self, context: RequestContext, channel: Channel) -> Response | AsgiExchange:
        """The response to a call, or the exchange of an inference request. Raises: ServiceError."""
        route, parameters, caller = self._admit(context)
        context.counted = route.handler is None
        if route.handler is None:
            head = read_head(route, context, parameters)
            if caller is not None:
                caller.check(INFER, context.model)
                head.made_by(caller)
            return AsgiExchange(self.inference, head, context, channel)
        if route.reads_body:
            body = await channel.read_small_body(_SMALL_BODY_BYTES)
            context.body_bytes = len(body)
            return await route.handler(context, body=body, **parameters)
        return await route.handler(context, **parameters)

    def _admit(self, context: RequestContext) -> tuple[Route, dict[str, str], Caller | None]:
        """What a request asks for, and who asks. Raises: ServiceError; who has no key is not told what there is."""
        authorization, key = context.headers.get("authorization"), context.headers.get("x-api-key")
        try:
            route, parameters = self.routes.match(context.method, context.path)
        except ServiceError:
            if self.gate.keys is not None:
                context.key = self.gate.keys.caller(authorization, key).name
            raise
        context.route = route.path
        scope = scope_of(route.path)
        caller = self.gate.caller(scope, authorization, key)
        if caller is not None:
            context.key = caller.name
            caller.check(scope, parameters.get("model", ""))
        return route, parameters, caller

    def _preflight(self, context: RequestContext) -> Response | None:
        """The answer to a browser that asks whether a page may ask; None for any other request."""
        headers, cross_origin = context.headers, self.gate.cross_origin
        if (
            cross_origin is None
            or context.method != "OPTIONS"
            or "access-control-request-method" not in headers
        ):
            return None
        context.counted = False
        allowed = cross_origin.preflight(headers.get("origin"), self.routes.methods)
        return Response(
            200, b"", "text/plain", allowed
        )  # a 204 must not have a Content-Length (RFC 9110, 8.6)

    async def _ready(self, context: RequestContext) -> Response:
        check_ready(self.status)
        return json_response({"live": True, "ready": True})

    async def _info(self, context: RequestContext) -> Response:
        return json_response(info.info(self.status, self.settings))

    async def _metrics(self, context: RequestContext) -> Response:
        body, content_type = await self.exposition(context.headers.get("accept", ""))
        return Response(200, body, content_type)

    async def _docs(self, context: RequestContext) -> Response:
        return site.page()

    async def _docs_file(self, context: RequestContext, file: str) -> Response:
        return site.page_file(file)

    async def _openapi(self, context: RequestContext) -> Response:
        return Response(200, await self._document.body())


def _context_of(scope: Scope) -> RequestContext:
    lines: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        of_name = lines.setdefault(name.decode("latin-1"), [])
        text = value.decode("latin-1")
        if text not in of_name:  # said twice is said once
            of_name.append(text)
    # Several lines make one list (RFC 9110, 5.3). Of a header that can have one value alone that is none, and refused:
    # to believe one of two lines would be to read a body as something that it may not be.
    headers = {name: ",".join(of_name) for name, of_name in lines.items()}
    return RequestContext(
        method=scope["method"],
        path=scope["path"],
        query=scope["query_string"].decode("latin-1"),
        headers=headers,
    )


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return
