"""A request of the fast path on its connection: the bytes of its response, and what uvicorn asks of a request cycle.

Owned by the event loop thread. The connection feeds it the body; the life of the request itself is
inference/request.py's. To uvicorn's own code it is the connection's request cycle, with the attributes which that code
reads.
"""

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Final, Protocol

from foldserve.service.access.gate import WIDE_OPEN, Gate
from foldserve.service.frontend.http1.flow.send_buffers import SendBuffer, SendBuffers
from foldserve.service.frontend.http1.flow.throttle import RefusalThrottle
from foldserve.service.frontend.http1.heads.cache import Head, Route
from foldserve.service.frontend.http1.heads.reader import HeadReader
from foldserve.service.frontend.http1.response_lines import ResponseLines, header_lines
from foldserve.service.inference.request import InferenceRequest
from foldserve.service.inference.response import SENT_BYTES, Response
from foldserve.service.inference.server_context import ServerContext

_OK: Final = (
    b"HTTP/1.1 200 OK\r\n%bcontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b"
    b'server-timing: decode;dur=%.3f, queue;dur=%.3f, %bencode;dur=%.3f, batch;desc="%d"\r\n%b\r\n%b'
)
_CLOSE: Final = b"connection: close\r\n"
_KEPT: Final = b"connection: keep-alive\r\n"
"""What a client that speaks HTTP/1.0 must be told."""
_STATUS_LINES: Final = {status.value: f"{status.value} {status.phrase}".encode() for status in HTTPStatus}
_OK_STATUS: Final = 200
_QUEUE_FULL: Final = 429


class Connection(Protocol):
    """What an exchange needs of the connection that it came on."""

    def answer(self, message: bytes) -> None:
        """Send the whole response to the call under way, or the last part of it."""
        ...

    def begin_answer(self, part: bytes, then: Callable[[], None]) -> None:
        """Send a part of the response to the call under way that is not the last; `then` is called when there is room
        for another."""
        ...

    @property
    def send_buffer(self) -> SendBuffer:
        """What its client has not taken."""
        ...

    @property
    def last(self) -> bool:
        """Whether nothing has been read after the call under way."""
        ...

    def refused(self) -> bool:
        """The call under way is to be answered 429: what comes next is looked at a little later; True when the
        connection is to be closed instead."""
        ...


class Http1Context:
    """What the connections of an API server share.

    routes: by the exact bytes of the request target. gate: what is asked of a head.
    """

    def __init__(
        self,
        server: ServerContext,
        routes: Sequence[Route],
        throttle: RefusalThrottle,
        unread: SendBuffers,
        lines: ResponseLines,
        gate: Gate = WIDE_OPEN,
    ) -> None:
        self.server = server
        self.gate = gate
        self.routes: dict[bytes, Route] = {}
        self.heads = HeadReader((), gate)
        self.serve(routes)
        self.throttle = throttle
        self.unread = unread
        self.lines = lines
        self.draining: Sequence[Any] = server.dispatcher.board.draining

    def keys_changed(self) -> None:
        """Others may ask from now on: what heads said is forgotten."""
        self.heads.serve(list(self.routes.values()))

    def serve(self, routes: Sequence[Route]) -> None:
        """Have these targets of the fast path from now on, and no others."""
        self.routes.clear()
        for route in routes:
            self.routes[route.target] = route
        self.heads.serve(routes)


class _NoEvent:
    """Stands where uvicorn expects a cycle's event for its ASGI task; an exchange has none to wake."""

    def set(self) -> None:
        """Nothing waits."""


_NO_EVENT: Final = _NoEvent()


class Http1Exchange:
    """One call; made when its head is there. Implements Responder."""

    # Values until they are set, as in PendingRequest.
    response_complete = False
    disconnected = False
    message_event: Final = _NO_EVENT

    def __init__(self, http: Http1Context, head: Head, connection: Connection) -> None:
        self.keep_alive = head.keep_alive
        self._http = http
        self._head = head
        self._connection = connection
        self._request = InferenceRequest(http.server, head, self)

    # -- what comes of its body

    @property
    def missing(self) -> int:
        """Bytes of the body that have not come yet."""
        return self._request.missing

    def begin(self) -> None:
        """See InferenceRequest."""
        self._request.begin()

    def feed(self, chunk: bytes) -> None:
        """See InferenceRequest."""
        self._request.feed(chunk)

    def rest(self, nbytes: int) -> memoryview | None:
        """See InferenceRequest."""
        return self._request.rest(nbytes)

    def filled(self, nbytes: int) -> None:
        """See InferenceRequest."""
        self._request.filled(nbytes)

    def await_body(self) -> None:
        """See InferenceRequest."""
        self._request.await_body()

    def cancel(self) -> None:
        """The client is gone."""
        if not self.response_complete:
            self.response_complete = True
            self._request.cancel()

    # -- its response

    def respond(self, request: InferenceRequest, response: Response) -> None:
        """See Responder."""
        message = (
            self._success(request, response)
            if response.status == _OK_STATUS
            else self._refusal(request, response)
        )
        if response.rest is None:
            self.response_complete = True
            self._connection.answer(message)
        else:
            self._send_rest(request, response, message)

    def _success(self, request: InferenceRequest, response: Response) -> bytes:
        """The head of the response with its body, or the beginning of it."""
        lines = self._http.lines
        queue_s, gather_s, run_s, scatter_s = request.stages_s
        if self._http.draining[0]:
            self._close_if_last()
        return _OK % (
            lines.date(),
            self._head.media_type
            if response.media_type is request.plan.media_type
            else response.media_type.encode(),
            response.length,
            request.id_bytes(),
            lines.headers(response.headers) if response.headers else b"",
            request.decode_s * 1e3,
            queue_s * 1e3,
            lines.batch_timing(gather_s, run_s, scatter_s),
            request.encode_s * 1e3,
            request.batch_rows,
            self._connection_line(),
            response.body,
        )

    def _refusal(self, request: InferenceRequest, response: Response) -> bytes:
        """The response for an error."""
        full = response.status == _QUEUE_FULL and not request.missing
        if (full and self._connection.refused()) or self._http.draining[0]:
            self._close_if_last()
        timing = request.context().server_timing()
        return b"".join(
            (
                b"HTTP/1.1 " + _STATUS_LINES[response.status],
                b"\r\n" + self._http.lines.date(),
                f"content-type: {response.media_type}\r\ncontent-length: {response.length}\r\n".encode(),
                b"x-request-id: " + request.id_bytes() + b"\r\n",
                header_lines(response.headers),
                f"server-timing: {timing}\r\n".encode() if timing else b"",
                self._connection_line(),
                b"\r\n",
                response.body,
            )
        )

    def _send_rest(self, request: InferenceRequest, response: Response, head: bytes) -> None:
        """Send a response that ends in what lies in the arena, as quickly as the client takes it: a piece in a turn of
        the event loop at most."""
        connection, rest = self._connection, response.rest
        assert rest is not None
        send_buffer = connection.send_buffer
        send_buffer.begin_response(response.allocation_bytes, len(rest), self.cancel)

        def go_on(at: int) -> None:
            if request.done:
                return  # the client is gone
            end = at + SENT_BYTES
            piece = bytes(rest[at:end])
            send_buffer.sent(end)
            if end < len(rest):
                connection.begin_answer(piece, lambda: go_on(end))
                return
            send_buffer.end_response()
            self.response_complete = True
            request.sent()
            connection.answer(piece)

        connection.begin_answer(head, lambda: go_on(0))

    def _close_if_last(self) -> None:
        """The server ends: clients are to go to another. Not before what this one has sent by now is answered."""
        if self._connection.last:
            self.keep_alive = False

    def _connection_line(self) -> bytes:
        """What the response says of the connection."""
        if not self.keep_alive:
            return _CLOSE
        return _KEPT if self._head.old else b""
