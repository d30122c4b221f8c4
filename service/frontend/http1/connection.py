"""HTTP/1.1 on one connection: ordinary calls are answered here, everything else goes on to ASGI.

A subclass of uvicorn's httptools protocol, which LitServer.run(http=...) hands to uvicorn. It takes a call for
itself when the call is ordinary (head_cache.py) and nothing else is under way on the connection; then no ASGI scope,
task or event is made for it. To uvicorn's own code the exchange is the connection's request cycle, so that
keep-alive, pipelining and graceful shutdown stay uvicorn's.

A head that is there in one piece between two messages is read by head_reader.py where that is sure of it: its call
begins at once, and its body is framed by the length that the head states. Every other goes through httptools. What is
no HTTP, or what rules.py forbids, is a request too: its answer, a 400 say, is given in its turn.
"""

import asyncio
import fcntl
import logging
import sys
import termios
import time
from collections.abc import Callable
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import BadRequest, Internal, ServiceError
from service.frontend.asgi_channel import WIRE
from service.frontend.http1.asgi_cycle import AsgiCycle, scope_of
from service.frontend.http1.exchange import Http1Context, Http1Exchange
from service.frontend.http1.filling import FILLING_BYTES, Filling
from service.frontend.http1.flow_control import Flow
from service.frontend.http1.head_cache import Head, field_of, head_of
from service.frontend.http1.resets import was_reset
from service.frontend.http1.rules import MOST_HEADERS, Target, refusal, shown, target_of, too_many_headers
from service.frontend.http1.throttle import CLOSE
from service.frontend.http1.unread import Owing
from service.inference.holdings import Holding

_HEAD_END: Final = b"\r\n\r\n"
UNREAD_S: Final = 0.5
"""What has come when the server ends is read and answered within this time, or not any more."""
_SHORTEST_HEAD_BYTES: Final = len(b"GET / HTTP/1.1")
"""No head ends before: what a client sends is not cut into thousands of pieces that are no heads."""
_CHUNKS_BYTES: Final = 512
"""Of a chunked body the parser is given at least so much at once: it may be full of what looks like its end."""
_CHUNKED_PIECE_BYTES: Final = 32_768
"""And no more than so much."""
_CHUNKS: Final = 4_000
"""Chunks that are read in one turn of the event loop on all connections, or a piece more: they may be of a byte."""
_HEAD_BYTES: Final = 65_536
"""A head, or the trailers of a chunked body, may have so many bytes; a little more where one read brings them."""
_BEGINNING: Final = b"HTTP/1.1 "
"""What every answer begins with."""
_LOOK_S: Final = 0.002
_LINGER_S: Final = 2.0
"""How long the rest of a body is waited for whose call was refused, before the connection is closed: closed under a
client that still sends, its system would throw the answer away unread."""

_log = logging.getLogger("foldserve.http")


class _Deaf:
    """In the parser's place when nothing more of the stream can be understood or is wanted."""

    def feed_data(self, data: bytes) -> None:
        """Drop it."""


def _nobody_counts() -> None:
    """Stands where connections are not counted."""


class FastProtocol(HttpToolsProtocol):
    """One connection. `http` and `left` are set once per API server, before the first connection."""

    http: Http1Context
    left: Callable[[], None] = staticmethod(_nobody_counts)
    """Called when a connection is lost."""
    _chunks = 0
    """Parts of bodies that were read lately, on all connections."""
    _next_turn = False
    """Whether that is forgotten in the next turn of the event loop."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle: Any  # None at first; a AsgiCycle, or an Http1Exchange: of the last request that has come
        self.parser: Any  # httptools', or _Deaf
        self._read = self.http.heads.read
        self._idle_since_s = 0.0
        self._ended = False
        """Whether the client sends no more, and what it has sent is still being parsed."""
        self._kept_at = 0
        """What of flow.kept was parsed."""
        self._ahead_bytes = 0
        """Read and not parsed."""
        self._body_left = 0
        """Of the body that is parsed, on the ASGI path; 0 when that is not known."""
        self._kept_in: Holding | None = None
        self._reading_kept = False
        self._own: Http1Exchange | None = None
        """The exchange whose body is awaited or which awaits its answer."""
        self._running: Any = None
        """The cycle that is being answered; others wait in the pipeline."""
        self._asked = False
        """Whether a client that sends no more was asked whether it is gone."""
        self._filling: Filling | None = None
        self._own_begun = False
        """Whether a part of its answer was sent."""
        self._cut_beginning = False
        """Whether _BEGINNING was sent ahead of it."""
        self._parsing = False
        """Whether the parser is inside a message."""
        self._in_body = False
        """Whether it is past that message's head."""
        self._upgrading = False
        """Whether that head offers another protocol, so that the parser stops behind it."""
        self._line = b""
        """What came of the present head up to the end of its first line at least; empty when that is not known."""
        self._unparsed_bytes = 0
        """Given to the parser since it last made something of them: the size of a head that has not ended."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        owing = Owing(self.http.unread, transport, self.abort)
        self.flow = self._flow = Flow(transport, self.pipeline, owing, self._go_on)
        # Also for the first head: who never sends it is gone after as long as one who was answered.
        self._idle_since_s = self.loop.time()
        self._arm_keep_alive(self.timeout_keep_alive)

    # -- bytes in

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        flow = self._flow
        if self.pipeline or flow.kept or flow.pauses:
            self._keep(data)
            return
        if not self._parsing:
            # The common cases, in few steps: an ordinary call with its body, and the next part of a body.
            own = self._own
            if own is not None:
                if len(data) <= own.missing:
                    self._feed(own, data)
                    if own.missing > FILLING_BYTES:
                        self._fill(own)
                    return
            elif self.cycle is None or self.cycle.response_complete:
                end = data.find(_HEAD_END) + 4
                head = self._read(data, end) if end > 3 else None
                if head is not None and len(data) - end <= head.length:
                    own = self._begin(head)
                    own.feed(data[end:])
                    if own.missing:
                        own.await_body()
                        if own.missing > FILLING_BYTES:
                            self._fill(own)
                    elif own.response_complete:
                        self._end_own(own)
                    return
        at = self._parse(data, 0)
        if at < len(data):
            self._keep(data[at:])
        else:
            self._ahead_bytes = 0

    def _keep(self, data: bytes) -> None:
        """Parse this later."""
        if self.transport.is_closing() or isinstance(self.parser, _Deaf):
            return
        if self._kept_in is None:
            self._kept_in = self.http.server.bodies.budget.open(self.abort)
        if self._kept_in.take(len(data)):
            self._flow.keep(data)
            self._ahead_bytes = len(self._flow.kept) - self._kept_at
        else:
            self.abort()

    def _go_on(self) -> None:
        """Parse what was kept, if its turn has come."""
        flow = self._flow
        if not flow.kept or flow.pauses or self.pipeline or self._reading_kept:
            return
        kept, self._reading_kept = flow.kept, True
        try:
            self._kept_at = self._parse(kept, self._kept_at)
        finally:
            self._reading_kept = False
        if self._kept_at == len(kept) or self.transport.is_closing():
            self._drop_kept()
            if self._ended and not self._end_of_input():
                self.transport.close()

    def _drop_kept(self) -> None:
        """Nothing that was kept is left, or wanted."""
        self._flow.kept, self._kept_at, self._ahead_bytes = b"", 0, 0
        if self._kept_in is not None:
            self._kept_in.end()
            self._kept_in = None
        if not self.transport.is_closing():
            self._flow.resume_reading()

    def _parse(self, data: bytes, at: int) -> int:
        """Parse data from there on, until a request must wait; returns where the rest begins.

        The parser itself cannot be stopped, and would make something of every request that a client has sent. So it is
        given a head at a time.
        """
        flow, end = self._flow, len(data)
        while at < end and not self.pipeline and not flow.pauses:
            if isinstance(self.parser, _Deaf) or self.transport.is_closing():
                return end
            if FastProtocol._chunks > _CHUNKS and self._in_body:
                self._wait_for_the_next_turn()
                break
            at = self._parse_piece(data, at)
            if self._unparsed_bytes > _HEAD_BYTES:
                self._break_off(
                    BadRequest(f"the head is larger than {_HEAD_BYTES} bytes; send fewer or shorter headers")
                )
            elif self._parsing and not self._in_body and len(self.headers or ()) > MOST_HEADERS:
                self._break_off(too_many_headers())
        if self._own is not None and self._own.missing:
            self._own.await_body()
        return at

    def _parse_piece(self, data: bytes, at: int) -> int:
        """Parse a head or a part of a body that begins there; returns where it ends."""
        own = self._own
        if own is not None and own.missing and (self._in_body or not self._parsing):
            end = min(len(data), at + own.missing)
        elif self._in_body:
            end = self._piece_end(data, at)
        else:
            end = data.find(_HEAD_END, at + _SHORTEST_HEAD_BYTES) + 4
            if end < 4:
                end = len(data)
        self._ahead_bytes = len(data) - end
        piece = data[at:end]
        if not self._parsing:
            if own is not None and own.missing:
                self._feed(own, piece)
                return end
            if own is None and (self.cycle is None or self.cycle.response_complete):
                head = self._read(piece, len(piece)) if piece.endswith(_HEAD_END) else None
                if head is not None:
                    self._begin(head)
                    return end
            self._line = piece.lstrip(b"\r\n")
        elif self._line and b"\n" not in self._line:
            self._line += piece
        self._unparsed_bytes += len(piece)
        self._give_parser(piece)
        return end

    def _piece_end(self, data: bytes, at: int) -> int:
        """Where the body, of which more begins there, ends; or a part of it that is hardly longer than it."""
        if self._body_left:
            return min(len(data), at + self._body_left)
        most = min(len(data), at + _CHUNKED_PIECE_BYTES)
        end = data.find(_HEAD_END, at + _CHUNKS_BYTES, most) + 4  # which is how chunks and trailers end too
        return most if end < 4 else end

    def _give_parser(self, data: bytes) -> None:
        """Let the parser have it."""
        rest = memoryview(data)
        try:
            while True:
                try:
                    self.parser.feed_data(rest)
                    return
                except httptools.HttpParserUpgrade as stop:
                    rest = rest[stop.args[0] :]
                    self._after_upgrade()
        except httptools.HttpParserCallbackError as error:
            _log.error("a request of %s could not be taken", self._peer(), exc_info=error)
            self._break_off(Internal("the server failed on this request; its log tells why"))
        except httptools.HttpParserError as error:
            begin = self._line[:60]
            _log.warning("%s sent no valid HTTP: %s; it begins %r", self._peer(), error, begin)
            self._break_off(
                BadRequest(
                    f"the request is no valid HTTP/1.1: {error}; expected a line such as 'POST /predict/<model> "
                    "HTTP/1.1', headers, an empty line and the body"
                )
            )

    def _after_upgrade(self) -> None:
        """No other protocol is spoken: the request is answered as it stands, so its head is read without the offer.

        The parser itself would take what follows for the other protocol, the body too.
        """
        if not self._upgrading:
            self._become_deaf()  # CONNECT: what follows is meant for somebody else
            return
        self._upgrading = False
        lines = [
            b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        ]
        for name, value in self.headers:
            if name == b"connection":
                options = [option.strip(b" \t") for option in value.split(b",")]
                value = b", ".join([option for option in options if option.lower() != b"upgrade"])
            if name != b"upgrade":
                lines.append(b"%b: %b" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does, for pipelining
        self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))

    def _wait_for_the_next_turn(self) -> None:
        """Enough was read in this one."""
        if (
            not FastProtocol._next_turn
        ):  # one for all: each would let another connection go on in the same turn
            FastProtocol._next_turn = True
            self.loop.call_soon(self._forget_chunks)
        self._flow.pause(0.0)

    @staticmethod
    def _forget_chunks() -> None:
        FastProtocol._chunks, FastProtocol._next_turn = 0, False

    def on_message_begin(self) -> None:
        """See httptools."""
        self._parsing = True
        self._in_body = False
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools. Trailers are not kept, and of a head no more lines than tell that there are too many."""
        if not self._in_body and len(self.headers) <= MOST_HEADERS:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._unparsed_bytes = 0
        parser = self.parser
        method, version = parser.get_method(), parser.get_http_version()
        if parser.should_upgrade() and method != b"CONNECT":
            self._upgrading = True
            return
        protocol = self._first_line().rpartition(b" ")[2].partition(b"/")[0]
        self._line = b""  # what follows in the same data is another message
        error = refusal(method, version, protocol, self.headers)
        head = self._ordinary(method, version) if error is None else None
        if head is not None:
            self._begin(head)
        else:
            self._begin_asgi(method.decode("ascii"), version, error)
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._unparsed_bytes = 0
        if self._own is not None and self.cycle is self._own:
            self._feed(self._own, body)
        elif not isinstance(self.cycle, Http1Exchange):
            FastProtocol._chunks += 1
            self._body_left = max(0, self._body_left - len(body))
            super().on_body(body)

    def on_message_complete(self) -> None:
        """See httptools."""
        if self._upgrading:
            return
        self._parsing = self._in_body = False
        self._unparsed_bytes = 0
        if not isinstance(self.cycle, Http1Exchange):
            super().on_message_complete()

    def eof_received(self) -> bool:  # type: ignore[override]
        """See asyncio.Protocol. The client sends no more: what came whole is answered, then the connection closed."""
        if self._flow.kept:
            self._ended = True  # what was read is parsed first
            self._ask_whether_gone()
            return True
        return self._end_of_input()

    def _end_of_input(self) -> bool:
        """Nothing more comes. Whether answers are due."""
        if self._own is not None and self._own.missing:
            return False
        if self._in_body:
            if not self.pipeline:
                return False  # in the only request there is
            self.pipeline.popleft()
            self.cycle = self.pipeline[0][0] if self.pipeline else self._running
        self._become_deaf()
        if self.cycle is None or self.cycle.response_complete:
            return False
        self.cycle.keep_alive = False
        self._ask_whether_gone()
        return True

    def _ask_whether_gone(self) -> None:
        """A client that has gone looks like one that only sends no more, until something is sent to it: its system
        resets the connection then. So what every answer begins with is sent at once, and the rest when it is there."""
        running = self._running
        if self._asked or running is None or running.response_complete:
            return
        self._asked = True
        if self._own is None:
            running.begin_answer(_BEGINNING)
        elif not self._own_begun:
            self.transport.write(_BEGINNING)
            self._own_begun = self._cut_beginning = True
        self._look_whether_gone(_LOOK_S)

    def _look_whether_gone(self, again_s: float) -> None:
        """Give up when the client's system has reset the connection, which is not told while nothing is read."""
        if self.transport.is_closing() or self.cycle.response_complete:
            return
        if was_reset(self.transport):
            self.transport.abort()
        else:
            self.loop.call_later(again_s, self._look_whether_gone, min(2 * again_s, 1.0))

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._give_up()
        if self._running is not None and self._running is not self.cycle:
            self._running.disconnected = True
            self._running.message_event.set()
        HttpToolsProtocol._unset_keepalive_if_required(self)
        super().connection_lost(exc)
        self.left()

    def _give_up(self) -> None:
        """The client is gone, or given up."""
        if self._own is not None:
            self._own.give_up()
            self._own = None
        self._flow.end()
        if self._kept_in is not None:
            self._kept_in.end()
            self._kept_in = None

    def abort(self) -> None:
        """End the connection at once; nothing of it is kept any more."""
        self._give_up()
        self.transport.abort()

    # -- what cannot be understood, or is not wanted

    def _become_deaf(self) -> None:
        """Nothing more of the stream is read as HTTP."""
        self.parser, self._parsing, self._in_body = _Deaf(), True, False
        self._unparsed_bytes = 0

    def _break_off(self, error: ServiceError) -> None:
        """What comes now is no HTTP, whatever follows: answer it in its turn, and close."""
        in_body, cycle = self._in_body, self.cycle
        self._become_deaf()
        if self.transport.is_closing():
            return
        if not in_body:
            self._begin_asgi("", "1.1", error)
            self.cycle.more_body = False
            self.cycle.message_event.set()
        elif isinstance(cycle, AsgiCycle) and not cycle.response_complete:
            cycle.break_off(error)
        else:
            self.transport.close()  # answered already, before its body

    def _first_line(self) -> bytes:
        """Of the present head, where it is known."""
        end = self._line.find(b"\n")
        return self._line[:end] if end >= 0 else self._line[:_HEAD_BYTES]

    def _peer(self) -> str:
        return "{}:{}".format(*self.client) if self.client else "a client"

    # -- keep-alive: one timer per connection, moved on when it is due instead of at every request

    def on_response_complete(self) -> None:
        """Called after each answer."""
        self._idle_since_s = self.loop.time()
        if self.transport.is_closing():
            self._flow.owing.count()
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            self._go_on()
            return
        self.server_state.total_requests += 1
        if self.flow.read_paused:
            self._go_on()
            self.flow.resume_reading()
        if self.timeout_keep_alive_task is None:
            self._arm_keep_alive(self.timeout_keep_alive)

    def _unset_keepalive_if_required(self) -> None:
        if self.transport.is_closing():
            super()._unset_keepalive_if_required()

    def timeout_keep_alive_handler(self) -> None:
        """End a connection on which nothing was asked for a while."""
        self.timeout_keep_alive_task = None
        if self.cycle is not None and not self.cycle.response_complete:
            return  # its answer arms the timer
        if self._flow.write_paused:
            self._idle_since_s = self.loop.time()  # it still takes an answer, or is ended for taking nothing
        left_s = self._idle_since_s + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._arm_keep_alive(left_s)
        else:
            super().timeout_keep_alive_handler()
            self._flow.owing.count()

    def _arm_keep_alive(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    # -- the end of the server

    @property
    def _idle(self) -> bool:
        return (self.cycle is None or self.cycle.response_complete) and self._ahead_bytes == 0

    def shutdown(self) -> None:
        """Called when the server ends, by uvicorn: an idle connection is closed, unless a request has come that is not
        read yet; another closes with its last answer."""
        if not self._idle:
            if self.last:
                self.cycle.keep_alive = False
        elif self._unread_bytes():
            self.loop.call_later(UNREAD_S, self._close_idle)
        else:
            self._close_idle()

    def _close_idle(self) -> None:
        if self._idle:
            self.transport.close()

    def _unread_bytes(self) -> int:
        """What came and waits in the kernel."""
        connection = self.transport.get_extra_info("socket")
        if connection is None:
            return 0
        return int.from_bytes(fcntl.ioctl(connection.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)

    # -- the request whose head was just read

    def _ordinary(self, method: bytes, version: str) -> Head | None:
        """What the head just parsed says, if the call can be taken here."""
        route = self.http.routes.get(self.url)
        if (
            route is None
            or method != b"POST"
            or (self.cycle is not None and not self.cycle.response_complete)
        ):
            return None
        fields = [field_of(name, value) for name, value in self.headers]
        return head_of(route, version == "1.0", fields)

    def _begin(self, head: Head) -> Http1Exchange:
        self._own = self.cycle = self._running = own = Http1Exchange(self.http, head, self)
        self._own_begun = False
        own.begin()
        return own

    def _begin_asgi(self, method: str, version: str, error: ServiceError | None) -> None:
        """An ASGI scope, and a task as soon as it is its turn. error: the answer, if that is settled."""
        url = self.url or self._first_line()
        target = Target(shown(url), url, b"")
        if error is None:
            try:
                target = target_of(self.url)
            except BadRequest as no_target:
                error = no_target
        self.scope = scope_of(method, version, target, self.headers or [], error)
        self.scope["server"], self.scope["client"] = self.server, self.client
        self.scope["scheme"], self.scope["state"] = self.scheme or "http", self.app_state.copy()
        self.scope["extensions"] = {WIRE: self}  # type: ignore[dict-item]
        length = next((value for name, value in self.headers or () if name == b"content-length"), b"")
        self._body_left = int(length) if length.isdigit() else 0
        self.server_state.default_headers = [(b"date", self.http.lines.date_value())]
        busy = self.cycle is not None and not self.cycle.response_complete
        self.cycle = AsgiCycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=error is None and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
            refused=self.refused,
        )
        if busy:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))
        else:
            self._start_asgi_task(self.cycle, self.app)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _feed(self, own: Http1Exchange, data: bytes) -> None:
        own.feed(data)
        if own.response_complete and not own.missing:
            self._end_own(own)

    def _fill(self, own: Http1Exchange) -> None:
        """Have the rest of a large body read into its place, if it has one."""
        if own.rest(1) is not None and not self.transport.is_closing():
            if self._filling is None:
                self._filling = Filling(self.transport, self)
            self._filling.begin(own)

    def filled(self, own: Http1Exchange, nbytes: int) -> None:
        """So many bytes of its body were read into its place."""
        own.filled(nbytes)
        if own.response_complete and not own.missing:
            self._end_own(own)

    def _end_own(self, own: Http1Exchange) -> None:
        """It is answered, and its body is read."""
        self._own = None
        if not own.keep_alive:
            self.transport.close()

    # -- what an exchange asks for

    def answer(self, message: bytes) -> None:
        """Send the whole answer to the call under way."""
        own = self._own
        assert own is not None
        if not own.missing:
            self._own = None
        transport = self.transport
        if transport.is_closing():
            return
        transport.write(self._rest(message) if self._cut_beginning else message)
        if not own.keep_alive and own.missing:
            self.loop.call_later(_LINGER_S, transport.close)
        elif not own.keep_alive:
            transport.close()
        self.on_response_complete()

    def begin_answer(self, part: bytes, then: Callable[[], None]) -> None:
        """Send a part of the answer to the call under way that is not the last; `then` is called when there is room for
        another."""
        if not self.transport.is_closing():
            self._own_begun = True
            self.transport.write(self._rest(part))
            if not self._flow.when_taken(then):
                self.loop.call_later(0.0, then)

    def _rest(self, message: bytes) -> bytes:
        """Without what was sent ahead of it."""
        if not self._cut_beginning:
            return message
        self._cut_beginning = False
        return message[len(_BEGINNING) :]

    @property
    def last(self) -> bool:
        """Whether nothing has been read after the call under way."""
        missing = 0 if self._own is None else self._own.missing
        return not self.pipeline and self._ahead_bytes <= missing

    @property
    def owing(self) -> Owing:
        """What its client has not taken."""
        return self._flow.owing

    def refused(self) -> bool:
        """A call is to be answered 429: look at no more for a while (throttle.py); True to close its connection."""
        pause_s = self.http.throttle.delay_s(time.monotonic())
        if pause_s > 0.0 and not self.transport.is_closing():
            self._flow.pause(pause_s)
        return pause_s == CLOSE
