"""One ordinary call: its body into a place of the arena, its ticket into the queue, its answer out of the place.

Owned by the event loop thread. The connection feeds it the body and is given one answer, as the bytes to write.
To the dispatcher it is the request; to uvicorn's own code it is the connection's request cycle, with the attributes
which that code reads. It may be given up at any time.
"""

import itertools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from time import monotonic_ns
from typing import Final, Protocol

import numpy as np

from service.codecs import BodyType, decode, encode, lay_out
from service.engine.codec_process import LARGE_ANSWER_BYTES, LARGE_COPY_BYTES
from service.engine.codec_process.client import CodecProcess, Job
from service.engine.dispatcher import Dispatcher
from service.engine.request import NO_BOUND_S, Ticketed
from service.errors import DeadlinePassed, Internal, NotReady, QueueFull, ServiceError
from service.frontend.http1.answer_lines import AnswerLines
from service.frontend.http1.head_cache import Head, Route
from service.frontend.http1.head_reader import HeadReader
from service.frontend.http1.throttle import Pace
from service.frontend.http1.unread import Owing, Unread
from service.frontend.receiving import HalfBody, Receiving
from service.inference.context import CLIENT_GONE, PROTOCOL_OF, Call, allowed_s
from service.inference.response import error_answer
from service.ipc.slots.allocator import rounded
from service.logs.limits import with_id
from service.metrics.catalog import STAGES
from service.metrics.recorder import Metrics

_OK: Final = (
    b"HTTP/1.1 200 OK\r\n%bcontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b"
    b'server-timing: decode;dur=%.3f, queue;dur=%.3f, %bencode;dur=%.3f, batch;desc="%d"\r\n%b\r\n%b'
)
_CLOSE: Final = b"connection: close\r\n"
_SENT_BYTES: Final = 256 * 1024
"""Of a large answer: what is sent at once, and so what is kept of it when the client takes nothing."""
_KEPT: Final = b"connection: keep-alive\r\n"
"""What a client that speaks HTTP/1.0 must be told."""
_STATUS_LINES: Final = {status.value: f"{status.value} {status.phrase}".encode() for status in HTTPStatus}

_log = logging.getLogger("foldserve.http")


def _nanoseconds(timeout_s: float | None) -> int:
    return int((NO_BOUND_S if timeout_s is None else timeout_s) * 1e9)


def _lines(headers: Sequence[tuple[str, str]]) -> bytes:
    """Headers as they go over the wire."""
    return b"".join([f"{name.lower()}: {value}\r\n".encode() for name, value in headers])


class Connection(Protocol):
    """What an exchange needs of the connection that it came on."""

    def answer(self, message: bytes) -> None:
        """Send the whole answer to the call under way, or the last part of it."""
        ...

    def begin_answer(self, part: bytes, then: Callable[[], None]) -> None:
        """Send a part of the answer to the call under way that is not the last; `then` is called when there is room for
        another."""
        ...

    @property
    def owing(self) -> Owing:
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

    def call_later(self, seconds: float, then: Callable[[], None]) -> "Timer":
        """Call `then` on the event loop after so many seconds."""
        ...


class Timer(Protocol):
    """What call_later gives."""

    def cancel(self) -> None:
        """Never call."""
        ...


@dataclass
class Shop:
    """What every exchange of an API server shares.

    routes: by the exact bytes of the request target. log_access: given
    every finished call with its status and seconds; None when nobody wants to know. request_timeout_s: the most time
    from a request's head to its answer; None = no bound.
    """

    routes: Mapping[bytes, Route]
    dispatcher: Dispatcher
    codecs: CodecProcess
    metrics: Metrics
    receiving: Receiving
    log_access: Callable[[Call, int, float], None] | None
    heads: HeadReader
    ids: "RequestIds"
    pace: Pace
    request_timeout_s: float | None
    unread: Unread
    lines: AnswerLines
    request_timeout_ns: int = field(init=False)

    def __post_init__(self) -> None:
        self.request_timeout_ns = _nanoseconds(self.request_timeout_s)


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

    # Values until they are set, as in Ticketed.
    response_complete = False
    disconnected = False
    message_event: Final = _NO_EVENT
    _body: bytes = b""
    _id = b""
    _decode_s = -1.0
    """Negative until the body is decoded."""
    _settled = False

    def __init__(self, shop: Shop, head: Head, connection: Connection) -> None:
        self._began_ns = monotonic_ns()
        self.queue = head.queue
        self.keep_alive = head.keep_alive
        self.missing = head.length
        """Bytes of the body that have not come yet."""
        self._shop = shop
        self._head = head
        self._connection = connection
        self._timeout_s = shop.request_timeout_s
        self._timeout_ns = shop.request_timeout_ns
        self._draining = shop.dispatcher.board.draining
        # Not class values: the compiler leaves those of classes that it does not compile unset.
        self._timer: Timer | None = None
        self._half: HalfBody | None = None
        self._job: Job | None = None
        """Its body or its answer is in the codec process."""

    @property
    def request_id(self) -> str:
        """The id that the answer carries."""
        return self._made_id().decode()

    def begin(self) -> None:
        """Refuse at once what cannot be served now. Nothing is set aside for a body of which nothing has come."""
        head, dispatcher = self._head, self._shop.dispatcher
        queue = head.queue
        try:
            if head.timeout_ms:
                self._timeout_s = allowed_s(head.timeout_ms.decode("latin-1"), self._timeout_s)
                self._timeout_ns = _nanoseconds(self._timeout_s)
            if not dispatcher.ready(queue):
                raise NotReady(
                    f"model {queue.model!r} version {queue.version} is not ready; try again when "
                    "/v2/health/ready answers 200"
                )
            if head.raw:
                self.rows = head.length // head.row_bytes
                if head.length > LARGE_COPY_BYTES:  # what could never be served is told before it is sent
                    dispatcher.check_fits(self, *self._room())
        except ServiceError as error:
            self._refuse(error)

    def feed(self, chunk: bytes) -> None:
        """The next part of the body, at most what is missing. The last part sends the request on its way."""
        self.missing -= len(chunk)
        if self.response_complete:
            return  # refused already: what still comes is dropped
        try:
            half = self._half
            if half is not None or (self.missing and chunk):
                self._feed_part(chunk)
            elif self.missing:
                return
            elif self._head.raw:
                input_bytes, output_bytes = self._room()
                self._shop.dispatcher.reserve(self, input_bytes, output_bytes)[:] = chunk
                self._submit()
            else:
                self._body = chunk
                self._submit()
        except ServiceError as error:
            self._refuse(error)
        except Exception:
            self._refuse(self._internal())

    def rest(self, nbytes: int) -> memoryview | None:
        """Where the next bytes of the body may be written, as many at most; None when feed() is to be given them."""
        if self._half is None or self.response_complete:
            return None
        return self._half.rest(min(nbytes, self.missing))

    def filled(self, nbytes: int) -> None:
        """So many bytes were written to rest(). The last sends the request on its way."""
        half = self._half
        assert half is not None
        self.missing -= nbytes
        try:
            half.filled(nbytes)
            if not self.missing:
                self._end_parts(half)
        except ServiceError as error:
            self._refuse(error)
        except Exception:
            self._refuse(self._internal())

    def _room(self) -> tuple[int, int]:
        """Bytes of inputs and of outputs of the place that the body goes to."""
        head = self._head
        if head.raw:
            return head.length, self._shop.dispatcher.output_room(head.queue, self.rows, (), head.length)
        return rounded(head.length), 0  # rounded, because the arena keeps places by their sizes

    def _feed_part(self, part: bytes) -> None:
        """A part of a body that does not come in one go. Raises ServiceError."""
        half = self._half
        if half is None:
            half = self._half = self._shop.receiving.begin(
                self, self._head.length, self._room(), self._gives_way
            )
        half.add(part)
        if not self.missing:
            self._end_parts(half)

    def _end_parts(self, half: HalfBody) -> None:
        """The body is whole. Raises ServiceError."""
        if self.place is not None:
            self._end_waiting()
            self._submit()
            return
        # It waited in memory of its own.
        input_bytes, output_bytes = self._room()
        dispatcher = self._shop.dispatcher
        memory = dispatcher.reserve(self, input_bytes, output_bytes)

        def go_on(at: int) -> None:
            if self.response_complete:
                dispatcher.release(self)  # late, or the client is gone
                return
            rest = half.copy_some(memory, at)
            if rest:
                self._connection.call_later(0.0, lambda: go_on(rest))
                return
            self._end_waiting()
            self._try(self._submit)

        go_on(0)

    def _gives_way(self) -> None:
        """The bodies that are being received have no room left, and this one is to give way."""
        self._refuse(self._shop.receiving.memory.gave_way())

    def await_body(self) -> None:
        """What was sent so far is not all: its time is bounded too."""
        if self._timer is None and not self.response_complete:
            left_s = (self._deadline_ns() - monotonic_ns()) / 1e9
            self._timer = self._connection.call_later(max(0.0, left_s), self._late)

    def _end_waiting(self) -> None:
        """The body is whole, or nobody waits for the rest of it."""
        if self._timer is not None:
            self._timer.cancel()
        if self._half is not None:
            self._half.end()
            self._half = None

    def give_up(self) -> None:
        """The client is gone."""
        if not self.response_complete:
            self.response_complete = True
            self._end_waiting()
            if self._job is not None:
                self._job.give_up()
            self._shop.dispatcher.cancel(self)
            self._finish(self._call(), CLIENT_GONE, None)

    def settled(self, error: ServiceError | None) -> None:
        """See Ticketed."""
        self._settled = True
        if error is not None:
            self._fail(error)
            return
        started_ns = monotonic_ns()
        head, dispatcher = self._head, self._shop.dispatcher
        headers = b""
        body = None
        try:
            outputs = dispatcher.outputs(self)
            assert self.place is not None
            if len(self.place.outputs) > LARGE_ANSWER_BYTES and self._answer_in_parts(outputs, started_ns):
                return
            if head.quick is not None:
                (output,) = outputs.values()
                body = head.quick.encode(output)
            if body is None:
                queue = self.queue
                encoded = encode(head.kind, queue.model, queue.version, outputs, head.route.signature)
                body = encoded.body
                headers = _lines(encoded.headers)
        except ServiceError as unencodable:
            self._refuse(unencodable)
            return
        except Exception:
            self._refuse(self._internal())
            return
        dispatcher.release(self)
        encode_s = (monotonic_ns() - started_ns) / 1e9
        message = self._success(headers, len(body), encode_s, body)
        self.response_complete = True
        self._connection.answer(message)
        self._answered(encode_s)

    def _success(self, headers: bytes, length: int, encode_s: float, body: bytes) -> bytes:
        """The head of the answer with its body, or the beginning of it."""
        lines = self._shop.lines
        queue_s, gather_s, run_s, scatter_s = self.stages_s
        if self._draining[0]:
            self._close_if_last()
        return _OK % (
            lines.date(),
            self._head.media_type,
            length,
            self._made_id(),
            headers,
            self._decode_s * 1e3,
            queue_s * 1e3,
            lines.batch_timing(gather_s, run_s, scatter_s),
            encode_s * 1e3,
            self.batch_rows,
            self._connection_line(),
            body,
        )

    def _close_if_last(self) -> None:
        """The server ends: clients are to go to another. Not before what this one has sent by now is answered."""
        if self._connection.last:
            self.keep_alive = False

    def _answered(self, encode_s: float) -> None:
        """Count and log a call that was answered with 200."""
        shop = self._shop
        queue_s, gather_s, run_s, scatter_s = self.stages_s
        duration_s = (monotonic_ns() - self._began_ns) / 1e9
        self._head.counter(
            duration_s, self.rows, self._decode_s, queue_s, gather_s, run_s, scatter_s, encode_s
        )
        if shop.log_access is not None:
            shop.log_access(self._call(), 200, duration_s)

    # -- a body or an answer that would hold the event loop for too long

    def _decode_elsewhere(self, started_ns: int) -> None:
        """Have the codec process make the inputs of the body. Raises ServiceError."""
        head, shop = self._head, self._shop
        if self.place is None:
            shop.dispatcher.reserve(self, head.length, 0)[:] = self._body
            self._body = b""

        def decoded(error: Exception | None) -> None:
            self._job = None
            if error is None:
                self._try(lambda: self._queue(self._decoded(started_ns)))
            else:
                self._refuse(self._told(error))

        self._job = shop.codecs.decode(self, head.kind, head.length, None, self._deadline_ns(), decoded)

    def _answer_in_parts(self, outputs: Mapping[str, np.ndarray], started_ns: int) -> bool:
        """Answer without a copy of the whole, JSON by way of the codec process. False for what is not large."""
        head, nbytes = self._head, sum(array.nbytes for array in outputs.values())
        if head.kind is not BodyType.JSON:
            if nbytes <= LARGE_COPY_BYTES:
                return False
            laid = lay_out(head.kind, outputs, head.route.signature)
            self._send(laid.prefix, laid.numbers, _lines(laid.headers), started_ns)
            return True
        if nbytes <= LARGE_ANSWER_BYTES:
            return False

        def encoded(error: Exception | None) -> None:
            self._job = None
            place = self.place
            if error is None and place is not None:
                self._try(lambda: self._send(b"", place.inputs, b"", started_ns))
            else:
                self._refuse(self._told(error))

        self._job = self._shop.codecs.encode(self, list(outputs), self._deadline_ns(), encoded)
        return True

    def _send(self, prefix: bytes, rest: memoryview, headers: bytes, started_ns: int) -> None:
        """Send an answer that ends in what lies in the place, as quickly as the client takes it: a piece in a turn of
        the event loop at most."""
        encode_s = (monotonic_ns() - started_ns) / 1e9
        connection, place = self._connection, self.place
        assert place is not None
        owing = connection.owing
        owing.begin_place(len(place.inputs) + len(place.outputs), len(rest))

        def go_on(at: int) -> None:
            if self.response_complete:
                return  # the client is gone
            end = at + _SENT_BYTES
            piece = bytes(rest[at:end])
            owing.sent(end)
            if end < len(rest):
                connection.begin_answer(piece, lambda: go_on(end))
                return
            owing.end_place()
            self._shop.dispatcher.release(self)
            self.response_complete = True
            connection.answer(piece)
            self._answered(encode_s)

        head = self._success(headers, len(prefix) + len(rest), encode_s, prefix)
        connection.begin_answer(head, lambda: go_on(0))

    def _try(self, step: Callable[[], None]) -> None:
        """Take a step in a turn of the event loop of its own."""
        try:
            step()
        except ServiceError as error:
            self._refuse(error)
        except Exception:
            self._refuse(self._internal())

    def _told(self, error: Exception | None) -> ServiceError:
        """What the client is told when the codec process has failed."""
        if isinstance(error, ServiceError):
            return error
        _log.error("request %s failed: %s", self.request_id, error, extra=with_id(self.request_id))
        return self._told_internal()

    def _submit(self) -> None:
        """Have the inputs in a place and queue the request. Raises ServiceError."""
        started_ns = now_ns = monotonic_ns()
        head, dispatcher = self._head, self._shop.dispatcher
        if not head.raw:
            if head.length > head.loop_bytes:
                self._decode_elsewhere(started_ns)
                return
            body = self._body
            if self.place is not None:
                body = bytes(self.place.inputs[: head.length])
                dispatcher.release(self)
            taken = None if head.quick is None else head.quick.decode(body)
            if taken is not None:
                self.rows, data = taken
                now_ns = self._decoded(started_ns)
                room = self.queue.layout.output_room(self.rows)
                assert room is not None
                dispatcher.reserve(self, len(data), room)[:] = data
            else:
                signature = head.route.signature
                inputs = decode(head.kind, body, signature)
                self.rows = signature.check_inputs(inputs)
                now_ns = self._decoded(started_ns)
                dispatcher.put(self, inputs, self.rows)
            self._body = b""
        else:
            self._decode_s = 0.0
        self._queue(now_ns)

    def _queue(self, now_ns: int) -> None:
        """Queue the request, whose inputs are in its place. Raises ServiceError."""
        if self.response_complete:
            self._shop.dispatcher.release(
                self
            )  # its connection was ended to make room, for itself as it happened
            return
        deadline_ns, latest_ns = self._deadline_ns(), now_ns + self._head.queue_ns
        self._shop.dispatcher.submit(self, now_ns, min(deadline_ns, latest_ns))

    def _decoded(self, started_ns: int) -> int:
        """The time, CLOCK_MONOTONIC, at which decoding has ended."""
        now_ns = monotonic_ns()
        self._decode_s = (now_ns - started_ns) / 1e9
        return now_ns

    def _deadline_ns(self) -> int:
        """CLOCK_MONOTONIC at which its time is over."""
        return self._began_ns + self._timeout_ns

    def _late(self) -> None:
        """The time is over, and the body is not there."""
        self._refuse(DeadlinePassed.after(self._timeout_s))

    def _internal(self) -> Internal:
        """The error for a fault of ours; logs it."""
        head = self._head
        _log.exception(
            "request %s failed: POST %s",
            *(self.request_id, head.route.path[:200]),
            extra=with_id(self.request_id),
        )
        return self._told_internal()

    def _told_internal(self) -> Internal:
        return Internal(f"the server failed on this request; its log tells why, under id {self.request_id}")

    def _refuse(self, error: ServiceError) -> None:
        """Fail while the place is still ours."""
        if self.response_complete:
            return  # given up by what it asked for: others had to make room, its own connection among them
        self._end_waiting()
        self._shop.dispatcher.release(self)
        self._fail(error)

    def _fail(self, error: ServiceError) -> None:
        self._end_waiting()
        refused = isinstance(error, QueueFull) and not self.missing
        if (refused and self._connection.refused()) or self._draining[0]:
            self._close_if_last()
        answer = error_answer(error)
        call = self._call()
        lines = [
            b"HTTP/1.1 " + _STATUS_LINES[answer.status],
            b"\r\n" + self._shop.lines.date(),
            f"content-type: {answer.content_type}\r\ncontent-length: {len(answer.body)}\r\n".encode(),
            b"x-request-id: " + self._made_id() + b"\r\n",
            *(f"{name.lower()}: {value}\r\n".encode("latin-1") for name, value in answer.headers),
            f"server-timing: {call.server_timing()}\r\n".encode() if call.stages_s else b"",
            self._connection_line(),
            b"\r\n",
            answer.body,
        ]
        self.response_complete = True
        self._connection.answer(b"".join(lines))
        self._finish(call, answer.status, error.code)

    def _finish(self, call: Call, status: int, error_code: str | None) -> None:
        """Count and log a call that was not answered with 200."""
        shop, queue = self._shop, self.queue
        duration_s = (monotonic_ns() - self._began_ns) / 1e9
        call.error_code = error_code
        shop.metrics.request_finished(
            call.protocol,
            queue.model,
            queue.version,
            status,
            duration_s,
            rows=self.rows,
            stages_s=call.stages_s,
            error_code=error_code,
        )
        if shop.log_access is not None:
            shop.log_access(call, status, duration_s)

    def _connection_line(self) -> bytes:
        """What the answer says of the connection."""
        if not self.keep_alive:
            return _CLOSE
        return _KEPT if self._head.old else b""

    def _made_id(self) -> bytes:
        """The client's own id where it gave a good one, else one of ours."""
        if not self._id:
            self._id = self._head.request_id or self._shop.ids.make()
        return self._id

    def _call(self) -> Call:
        """The call as the long way describes it."""
        head, path = self._head, self._head.route.path
        call = Call("POST", path, head.route.query[1:], {}, request_id=self.request_id)
        call.route, call.model, call.version = head.route.pattern, self.queue.model, self.queue.version
        call.protocol = PROTOCOL_OF[head.kind]
        call.rows, call.batch_rows = self.rows, self.batch_rows
        call.body_bytes = 0 if self.missing else head.length
        if self._decode_s >= 0.0:
            call.stages_s["decode"] = self._decode_s
        if self._settled:
            call.stages_s.update(zip(STAGES[1:5], self.stages_s, strict=True))
        return call
