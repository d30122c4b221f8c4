"""One ordinary call: its body into a place of the arena, its ticket into the queue, its answer out of the place.

Owned by the event loop thread. The connection feeds it the body and is given one answer, as the bytes to write.
To the dispatcher it is the request; to uvicorn's own code it is the connection's request cycle, with the attributes
which that code reads. It may be given up at any time.
"""

import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from time import monotonic_ns, perf_counter
from typing import Final, Protocol

import numpy as np

from service.answers import error_answer
from service.call import Call, request_id
from service.codecs import BodyType, decode, encode
from service.dispatch import Dispatcher, Ticketed
from service.errors import NotReady, ServiceError
from service.fastpath.heads import Head, KnownHeads, Route
from service.metrics import Metrics

CLIENT_GONE: Final = 499

_OK: Final = (
    b"HTTP/1.1 200 OK\r\n%bcontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b"
    b"server-timing: decode;dur=%.3f, queue;dur=%.3f, gather;dur=%.3f, run;dur=%.3f, scatter;dur=%.3f, "
    b'encode;dur=%.3f, batch;desc="%d"\r\n%b\r\n%b'
)
_CLOSE: Final = b"connection: close\r\n"
PROTOCOLS: Final = {BodyType.JSON: "json", BodyType.RAW: "raw", BodyType.NPY: "npy"}
_MEDIA_TYPES: Final = {kind: kind.value.encode() for kind in BodyType}
_STATUS_LINES: Final = {status.value: f"{status.value} {status.phrase}".encode() for status in HTTPStatus}


class Connection(Protocol):
    """What an exchange needs of the connection that it came on."""

    def date_line(self) -> bytes:
        """The Date header of now, with its line end."""
        ...

    def answer(self, message: bytes) -> None:
        """Send the whole answer to the call under way."""
        ...


@dataclass(frozen=True)
class Shop:
    """What every exchange of an API server shares.

    routes: by the exact bytes of the request target. counters: Metrics.answered_counter of each.
    log_access: given every finished call with its status and seconds; None when nobody wants to know.
    """

    routes: Mapping[bytes, Route]
    dispatcher: Dispatcher
    metrics: Metrics
    counters: Mapping[tuple[Route, BodyType], Callable[..., None]]
    limit_bytes: int
    log_access: Callable[[Call, int, float], None] | None
    heads: KnownHeads
    ids: "RequestIds"


class RequestIds:
    """Ids for requests that bring none: random per process and then counted, 32 characters."""

    def __init__(self) -> None:
        self._prefix = os.urandom(10).hex().encode()
        self._numbers = itertools.count()

    def make(self) -> bytes:
        """The next id."""
        return b"%b%012x" % (self._prefix, next(self._numbers))


class _NoEvent:
    """Stands where uvicorn expects a cycle's event for its ASGI task; an exchange has none to wake."""

    def set(self) -> None:
        """Nothing waits."""


_NO_EVENT: Final = _NoEvent()


class Exchange(Ticketed):
    """One call; made when its head is there."""

    __slots__ = (
        "_body",
        "_connection",
        "_decode_s",
        "_head",
        "_id",
        "_shop",
        "_started_s",
        "disconnected",
        "keep_alive",
        "message_event",
        "missing",
        "response_complete",
    )

    def __init__(self, shop: Shop, head: Head, connection: Connection, keep_alive: bool) -> None:
        super().__init__(head.route.lane)
        self.keep_alive = keep_alive
        self.response_complete = False
        self.disconnected = False
        self.message_event = _NO_EVENT
        self.missing = head.length
        """Bytes of the body that have not come yet."""
        self._started_s = perf_counter()
        self._decode_s = 0.0
        self._shop = shop
        self._head = head
        self._connection = connection
        self._body: bytes | bytearray = b""
        given = head.own.get("x-request-id") if head.own else None
        self._id = shop.ids.make() if given is None else request_id(given).encode()

    @property
    def request_id(self) -> str:
        """The id that the answer carries."""
        return self._id.decode()

    def begin(self) -> None:
        """Refuse at once what cannot be served now; set the place of a raw body aside before the body comes."""
        head, dispatcher = self._head, self._shop.dispatcher
        route = head.route
        try:
            if not dispatcher.ready(route.lane):
                raise NotReady(
                    f"model {route.lane.model!r} version {route.lane.version} is not ready; try again when "
                    "/v2/health/ready answers 200"
                )
            if head.kind is BodyType.RAW:
                self.rows = head.length // route.raw_row_bytes
                dispatcher.reserve(
                    self, head.length, dispatcher.output_room(route.lane, self.rows, (), head.length)
                )
        except ServiceError as error:
            self._fail(error)

    def feed(self, chunk: bytes) -> None:
        """The next part of the body, at most what is missing. The last part sends the request on its way."""
        at = self._head.length - self.missing
        self.missing -= len(chunk)
        if self.response_complete:
            return  # refused already: what still comes is dropped
        if self.place is not None:
            self.place.inputs[at : at + len(chunk)] = chunk
        elif not at:
            self._body = chunk
        else:
            if not isinstance(self._body, bytearray):
                self._body = bytearray(self._body)
            self._body += chunk
        if not self.missing:
            try:
                self._submit()
            except ServiceError as error:
                self._shop.dispatcher.release(self)
                self._fail(error)

    def give_up(self) -> None:
        """The client is gone."""
        if not self.response_complete:
            self.response_complete = True
            self._shop.dispatcher.cancel(self)
            self._finish(CLIENT_GONE, None)

    def settled(self, error: ServiceError | None) -> None:
        """See Ticketed."""
        if error is not None:
            self._fail(error)
            return
        started_s = perf_counter()
        head = self._head
        route = head.route
        headers = body = None
        try:
            outputs = self._shop.dispatcher.outputs(self)
            if head.kind is BodyType.JSON and route.quick is not None:
                body = route.quick.encode(next(iter(outputs.values())))
            if body is None:
                encoded = encode(head.kind, route.lane.model, route.lane.version, outputs, route.signature)
                body = encoded.body
                headers = b"".join(
                    [f"{name.lower()}: {value}\r\n".encode() for name, value in encoded.headers]
                )
        except ServiceError as unencodable:
            self._shop.dispatcher.release(self)
            self._fail(unencodable)
            return
        self._shop.dispatcher.release(self)
        queue_s, gather_s, run_s, scatter_s = self.stages_s
        encode_s = perf_counter() - started_s
        message = _OK % (
            self._connection.date_line(),
            _MEDIA_TYPES[head.kind],
            len(body),
            self._id,
            headers or b"",
            self._decode_s * 1e3,
            queue_s * 1e3,
            gather_s * 1e3,
            run_s * 1e3,
            scatter_s * 1e3,
            encode_s * 1e3,
            self.batch_rows,
            b"" if self.keep_alive else _CLOSE,
            body,
        )
        self.response_complete = True
        self._connection.answer(message)
        self._finish(200, None, encode_s)

    def _submit(self) -> None:
        """Have the inputs in a place and queue the request. Raises ServiceError."""
        head, shop = self._head, self._shop
        route = head.route
        if self.place is None:
            body, self._body = self._body, b""
            array = None
            if head.kind is BodyType.JSON and route.quick is not None:
                array = route.quick.decode(bytes(body))
            if array is not None:
                self.rows = len(array)
                room = route.lane.layout.output_room(self.rows)
                assert room is not None
                shop.dispatcher.reserve(self, array.nbytes, room)[:] = array.reshape(-1).view(np.uint8).data
            else:
                inputs = decode(head.kind, body, route.signature)
                shop.dispatcher.put(self, inputs, route.signature.check_inputs(inputs))
        timeout_s = route.lane.timeout_s
        if head.own:
            timeout_s = self._call().timeout_s(timeout_s) or timeout_s
        self._decode_s = decode_s = perf_counter() - self._started_s
        shop.dispatcher.submit(self, monotonic_ns() + int((timeout_s - decode_s) * 1e9))

    def _fail(self, error: ServiceError) -> None:
        answer = error_answer(error)
        lines = [
            b"HTTP/1.1 " + _STATUS_LINES[answer.status],
            b"\r\n" + self._connection.date_line(),
            f"content-type: {answer.content_type}\r\ncontent-length: {len(answer.body)}\r\n".encode(),
            b"x-request-id: " + self._id + b"\r\n",
            *(f"{name.lower()}: {value}\r\n".encode("latin-1") for name, value in answer.headers),
            b"" if self.keep_alive else _CLOSE,
            b"\r\n",
            answer.body,
        ]
        self.response_complete = True
        self._connection.answer(b"".join(lines))
        self._finish(answer.status, error.code)

    def _finish(self, status: int, error_code: str | None, encode_s: float = 0.0) -> None:
        shop, head = self._shop, self._head
        duration_s = perf_counter() - self._started_s
        if error_code is None and status == 200:
            shop.counters[head.route, head.kind](
                duration_s, self.rows, self._decode_s, *self.stages_s, encode_s
            )
        else:
            lane = self.lane
            shop.metrics.request_finished(
                PROTOCOLS[head.kind],
                lane.model,
                lane.version,
                status,
                duration_s,
                rows=self.rows,
                error_code=error_code,
            )
        if shop.log_access is not None:
            call = self._call()
            call.error_code = error_code
            shop.log_access(call, status, duration_s)

    def _call(self) -> Call:
        """The call as the long way describes it."""
        head = self._head
        call = Call("POST", head.route.path, "", head.own, request_id=self.request_id)
        call.route, call.model, call.version = head.route.path, self.lane.model, self.lane.version
        call.rows, call.batch_rows, call.body_bytes = self.rows, self.batch_rows, head.length
        return call
