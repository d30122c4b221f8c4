"""The front as an ASGI application: routes, the limits on bodies and time, and what every answer has.

Every answer, the errors too, leaves through Front.__call__: there it gets its X-Request-Id, and there the
access log and the metrics learn of it. Nothing here touches tensors (protocols/predict.py, codecs/) or models
(engine/interface.py). The application needs no framework, and so nobody else's errors can come out of it.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, Protocol

from service.codecs import BodyType
from service.engine.interface import Engine
from service.errors import DeadlinePassed, Draining, Internal, NotReady, QueueFull, ServiceError
from service.frontend.body import BodyMemory, BodyTooLarge, ClientGone, Receive, read_body
from service.frontend.pages import info
from service.frontend.pages.docs import docs_page
from service.frontend.routing import Route, RouteTable
from service.inference.access_log import log_access, open_access_log
from service.inference.context import CLIENT_GONE, REFUSAL, Call
from service.inference.response import Answer, error_answer, json_answer
from service.logs.limits import with_id
from service.protocols.predict import predict
from service.settings import ServeSettings

__all__ = ["Front", "FrontMetrics", "Receive", "Scope", "Send"]

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Any]

PREDICT_PATHS: Final = ("/predict", "/predict/{model}", "/predict/{model}/versions/{version}")
WIRE: Final = "foldserve.wire"
"""The ASGI extension that is the request's connection, a Wire."""
# After a 413, what the client still sends is read and dropped for so long: if the connection were closed
# under a client that is still sending, its system would throw the answer away unread.
_LINGER_S: Final = 2.0

_log = logging.getLogger("foldserve.http")


class FrontMetrics(Protocol):
    """What the front counts (service/metrics/recorder.py has the real one)."""

    def request_finished(
        self,
        protocol: str,
        model: str,
        version: str,
        status: int,
        duration_s: float,
        *,
        rows: int = 0,
        stages_s: dict[str, float] | None = None,
        error_code: str | None = None,
    ) -> None:
        """Count one answered inference request."""


class Wire(Protocol):
    """What the front can ask of a connection that knows it (frontend/http1/connection.py)."""

    @property
    def last(self) -> bool:
        """Whether nothing has been read after the request under way."""
        ...

    def owe(self, nbytes: int) -> bool:
        """So many bytes more of an answer, or less if negative, wait until its client takes what came before; False
        when there is no room for them."""
        ...


class Front:
    """The ASGI application of one API server."""

    def __init__(
        self,
        engine: Engine,
        settings: ServeSettings,
        metrics: FrontMetrics,
        exposition: Callable[[str], Awaitable[tuple[bytes, str]]],
    ) -> None:
        """
        Args:
            engine: runs the requests.
            metrics: counts them.
            exposition: Accept header -> body and content type of GET /metrics.
        """
        self.engine = engine
        self.settings = settings
        self.metrics = metrics
        self.exposition = exposition
        self.routes = RouteTable(self._routes())
        self.bodies = BodyMemory(settings.receive_bytes)
        if settings.access_log:
            open_access_log()

    def _routes(self) -> tuple[Route, ...]:
        return (
            *(
                Route("POST", path, self._predict, summary, inference=True)
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
        call = _call_of(scope)
        route: Route | None = None
        try:
            if REFUSAL in scope:
                raise scope[REFUSAL]
            route, parameters = self.routes.match(call.method, call.path)
            call.route = route.path
            answer = await route.handler(call, receive, parameters)
        except ServiceError as error:
            call.error_code = error.code
            answer = error_answer(error, close=isinstance(error, BodyTooLarge) or REFUSAL in scope)
        except ClientGone:
            self._finished(call, route, CLIENT_GONE)
            return
        except Exception:
            _log.exception(
                "request %s failed: %s %s",
                *(call.request_id, call.method, call.path[:200]),
                extra=with_id(call.request_id),
            )
            call.error_code = Internal.code
            answer = error_answer(
                Internal(f"the server failed on this request; its log tells why, under id {call.request_id}")
            )
        wire: Wire | None = scope.get("extensions", {}).get(WIRE)
        if wire is not None and answer.rest and not wire.owe(sum(map(len, answer.rest))):
            full = _too_much_unread(answer.length)
            call.error_code = full.code
            answer = error_answer(full)
        closes = answer.close or (self.engine.draining() and (wire is None or wire.last))
        await _send(answer, call, receive, send, closes, wire)
        self._finished(call, route, answer.status)

    def _finished(self, call: Call, route: Route | None, status: int) -> None:
        duration_s = call.elapsed_s()
        if route is None or route.inference:  # or what asked for nothing that there is
            self.metrics.request_finished(
                call.protocol,
                call.model,
                call.version,
                status,
                duration_s,
                rows=call.rows,
                stages_s=call.stages_s,
                error_code=call.error_code,
            )
        if self.settings.access_log:
            log_access(call, status, duration_s)

    async def _predict(self, call: Call, receive: Receive, parameters: dict[str, str]) -> Answer:
        timeout_s = call.timeout_s(self.settings.request_timeout_s)
        asking = _this_task()
        gone: asyncio.Task[None] | None = None

        async def read(kind: BodyType) -> list[bytes | bytearray]:
            nonlocal gone
            length, settings = call.headers.get("content-length"), self.settings
            limit_bytes, name = settings.max_body_bytes, "--max-body-bytes"
            if kind is BodyType.JSON and settings.max_json_bytes < limit_bytes:
                limit_bytes, name = settings.max_json_bytes, "--max-json-bytes"
            body = await read_body(receive, length, limit_bytes, self.bodies, name)
            gone = asyncio.create_task(_until_gone(receive, asking))
            return body

        left_s = None if timeout_s is None else max(0.0, timeout_s - call.elapsed_s())
        # The bound holds for a body that comes slowly and for an engine that does not keep its own.
        clock = asyncio.timeout(left_s)
        try:
            async with clock:
                return await predict(
                    call, self.engine, read, timeout_s, self.settings.default_model, **parameters
                )
        except TimeoutError:
            if clock.expired():
                raise DeadlinePassed.after(timeout_s) from None
            raise
        except asyncio.CancelledError:
            if gone is not None and gone.done() and not gone.cancelled():
                asking.uncancel()
                raise ClientGone from None
            raise
        finally:
            if gone is not None:
                gone.cancel()

    async def _ready(self, call: Call, receive: Receive, parameters: dict[str, str]) -> Answer:
        if self.engine.ready():
            return json_answer({"live": True, "ready": True})
        if self.engine.draining():
            raise Draining("the server is shutting down; send requests to another one")
        waiting = [model.name for model in self.engine.models().values() if not model.ready]
        broken = list(self.engine.broken())
        told = f"cannot be served: {', '.join(broken[:20])}; GET /info tells why" if broken else ""
        if waiting or not broken:
            told = f"waiting for {', '.join(waiting[:20]) or 'the workers'}; try again shortly{'; ' * bool(told)}{told}"
        raise NotReady(f"not ready: {told}")

    async def _live(self, call: Call, receive: Receive, parameters: dict[str, str]) -> Answer:
        return json_answer({"live": True})

    async def _info(self, call: Call, receive: Receive, parameters: dict[str, str]) -> Answer:
        return json_answer(info.info(self.engine, self.settings))

    async def _metrics(self, call: Call, receive: Receive, parameters: dict[str, str]) -> Answer:
        body, content_type = await self.exposition(call.headers.get("accept", ""))
        return Answer(200, body, content_type)

    async def _docs(self, call: Call, receive: Receive, parameters: dict[str, str]) -> Answer:
        page = docs_page(self.engine, self.settings, call.scheme, call.headers.get("host", ""))
        # The page is made of names from model files: whatever they hold, the browser runs and loads nothing.
        policy = ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        return Answer(200, page.encode(), "text/html; charset=utf-8", (policy,))

    async def _openapi(self, call: Call, receive: Receive, parameters: dict[str, str]) -> Answer:
        return json_answer(info.openapi(self.routes.routes))


def _this_task() -> "asyncio.Task[Any]":
    task = asyncio.current_task()
    assert task is not None  # uvicorn runs the application in a task of its own
    return task


def _call_of(scope: Scope) -> Call:
    lines: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        of_name = lines.setdefault(name.decode("latin-1"), [])
        text = value.decode("latin-1")
        if text not in of_name:  # said twice is said once
            of_name.append(text)
    # Several lines make one list (RFC 9110, 5.3). Of a header that can have one value alone that is none, and refused:
    # to believe one of two lines would be to read a body as something that it may not be.
    headers = {name: ",".join(of_name) for name, of_name in lines.items()}
    return Call(
        method=scope["method"],
        path=scope["path"],
        query=scope["query_string"].decode("latin-1"),
        headers=headers,
        scheme=scope.get("scheme", "http"),
    )


def _unread(call: Call) -> bool:
    """Whether a body is left in a connection that the client wants closed after this answer."""
    sent = call.headers.get("content-length", "0") != "0" or "transfer-encoding" in call.headers
    closing = "close" in call.headers.get("connection", "").lower()
    return sent and closing and not call.body_bytes


def _too_much_unread(nbytes: int) -> QueueFull:
    return QueueFull(
        f"the answer has {nbytes} bytes, and other clients have not taken theirs yet, so that there is no room to "
        "keep it; try again later, or send fewer rows at once"
    )


async def _send(
    answer: Answer, call: Call, receive: Receive, send: Send, closes: bool, wire: Wire | None
) -> None:
    headers = [
        (b"content-type", answer.content_type.encode("latin-1")),
        (b"content-length", str(answer.length).encode("ascii")),
        (b"x-request-id", call.request_id.encode("ascii")),
    ]
    headers += [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    if call.stages_s:
        headers.append((b"server-timing", call.server_timing().encode("ascii")))
    if closes:
        headers.append((b"connection", b"close"))
    linger = (answer.close or _unread(call)) and "expect" not in call.headers
    part, rest = answer.body, answer.rest  # what waits in rest is owed already
    try:
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        while rest:
            await send({"type": "http.response.body", "body": part, "more_body": True})
            part = rest.popleft()
            if wire is not None:
                wire.owe(-len(part))
    finally:
        if wire is not None:
            wire.owe(-sum(map(len, rest)))
    await send({"type": "http.response.body", "body": part, "more_body": linger})
    if linger:
        await _drop_rest(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_gone(receive: Receive, asking: "asyncio.Task[Any]") -> None:
    """Cancel the task whose answer nobody waits for any more: its request then frees its place in the queue."""
    while (await receive())["type"] != "http.disconnect":
        pass
    asking.cancel()


async def _drop_rest(receive: Receive) -> None:
    """Read on until the body ends, the client goes, or _LINGER_S have passed. Keeps nothing."""
    until_s = time.monotonic() + _LINGER_S
    try:
        async with asyncio.timeout(_LINGER_S):
            while time.monotonic() < until_s:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return
