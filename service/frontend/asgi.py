"""The ASGI application: which request is answered by what.

An inference request goes on to asgi_exchange.py; every other response, the errors too, leaves through __call__. The
application needs no framework, and so nobody else's errors can come out of it.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from foldserve.service.engine.served import Status
from foldserve.service.errors import Draining, Internal, NotReady, ServiceError
from foldserve.service.frontend.asgi_channel import WIRE, Channel, Receive, Scope, Send
from foldserve.service.frontend.asgi_exchange import AsgiExchange
from foldserve.service.frontend.pages import info
from foldserve.service.frontend.pages.docs import docs_page
from foldserve.service.frontend.routing import Route, RouteTable
from foldserve.service.inference.context import REFUSAL, RequestContext
from foldserve.service.inference.plan import RequestHead, Target
from foldserve.service.inference.response import Response, error_response, json_response
from foldserve.service.inference.server_context import ServerContext
from foldserve.service.logs.limits import with_id
from foldserve.service.protocols.predict import PredictCalls
from foldserve.service.settings import ServeSettings

PREDICT_PATHS: Final = ("/predict", "/predict/{model}", "/predict/{model}/versions/{version}")

_log = logging.getLogger("foldserve.http")


class AsgiApp:
    """The ASGI application of one API server."""

    def __init__(
        self,
        status: Status,
        inference: ServerContext,
        predict: PredictCalls,
        settings: ServeSettings,
        exposition: Callable[[str], Awaitable[tuple[bytes, str]]],
    ) -> None:
        """
        Args:
            status: what is served.
            inference: what inference requests need; its observers learn of every other request too.
            predict: reads the heads of calls of /predict.
            exposition: Accept header -> body and content type of GET /metrics.
        """
        self.status = status
        self.inference = inference
        self.observers = inference.observers
        self.predict = predict
        self.settings = settings
        self.exposition = exposition
        self.routes = RouteTable(self._routes())

    def _routes(self) -> tuple[Route, ...]:
        return (
            *(
                Route("POST", path, None, summary)
                for path, summary in zip(
                    PREDICT_PATHS,
                    ("Run the default model", "Run a model's default version", "Run one version of a model"),
                    strict=True,
                )
            ),
            Route("GET", "/health", self._ready, "Ready to serve"),
            Route("GET", "/v2/health/ready", self._ready, "Ready to serve (Open Inference Protocol)"),
            Route("GET", "/v2/health/live", self._live, "The process answers (Open Inference Protocol)"),
            Route("GET", "/info", self._info, "Models, versions, signatures, limits"),
            Route("GET", "/metrics", self._metrics, "Prometheus metrics, text or OpenMetrics by Accept"),
            Route("GET", "/docs", self._docs, "This server's page for people"),
            Route("GET", "/openapi.json", self._openapi, "This description"),
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
        channel = Channel(receive, send, scope.get("extensions", {}).get(WIRE))
        route: Route | None = None
        exchange: AsgiExchange | None = None
        try:
            if REFUSAL in scope:
                raise scope[REFUSAL]
            route, parameters = self.routes.match(context.method, context.path)
            context.route = route.path
            if route.handler is None:
                exchange = AsgiExchange(
                    self.inference, self._head(context, route, parameters), context, channel
                )
            else:
                response = await route.handler(context)
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
        if route is None or route.handler is None:  # or what asked for nothing that there is
            self.observers.finished(context, response.status, context.elapsed_s())
        else:
            self.observers.notify(context, response.status, context.elapsed_s())

    def _head(self, context: RequestContext, route: Route, parameters: dict[str, str]) -> RequestHead:
        """What the head of an inference request asks for. Raises: ServiceError."""
        query = f"?{context.query}" if context.query else ""
        return self.predict.head(context, Target(context.path, query, route.path), **parameters)

    async def _ready(self, context: RequestContext) -> Response:
        if self.status.ready():
            return json_response({"live": True, "ready": True})
        if self.status.draining():
            raise Draining("the server is shutting down; send requests to another one")
        waiting = [model.name for model in self.status.models().values() if not model.ready]
        broken = list(self.status.broken())
        told = f"cannot be served: {', '.join(broken[:20])}; GET /info says why" if broken else ""
        if waiting or not broken:
            told = f"waiting for {', '.join(waiting[:20]) or 'the workers'}; try again shortly{'; ' * bool(told)}{told}"
        raise NotReady(f"not ready: {told}")

    async def _live(self, context: RequestContext) -> Response:
        return json_response({"live": True})

    async def _info(self, context: RequestContext) -> Response:
        return json_response(info.info(self.status, self.settings))

    async def _metrics(self, context: RequestContext) -> Response:
        body, content_type = await self.exposition(context.headers.get("accept", ""))
        return Response(200, body, content_type)

    async def _docs(self, context: RequestContext) -> Response:
        page = docs_page(self.status, self.settings, context.scheme, context.headers.get("host", ""))
        # The page is made of names from model files: whatever they hold, the browser runs and loads nothing.
        policy = ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        return Response(200, page.encode(), "text/html; charset=utf-8", (policy,))

    async def _openapi(self, context: RequestContext) -> Response:
        return json_response(info.openapi(self.routes.routes))


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
        scheme=scope.get("scheme", "http"),
    )


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return
