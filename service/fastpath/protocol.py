"""HTTP/1.1 on one connection: ordinary calls are answered here, everything else goes on to ASGI.

A subclass of uvicorn's httptools protocol, which LitServer.run(http=...) hands to uvicorn. It takes a call for
itself when the call is ordinary (heads.py) and nothing else is under way on the connection; then no ASGI scope,
task or event is made for it. To uvicorn's own code the exchange is the connection's request cycle, so that
keep-alive, pipelining and graceful shutdown stay uvicorn's.

A head that is there in one piece between two messages is read by head_reader.py where that is sure of it: its call
begins at once, and its body is framed by the length that the head states. Every other goes through httptools. What is
no HTTP, or what rules.py forbids, is a request too: its answer, a 400 say, is given in its turn.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.call import REFUSAL
from service.errors import BadRequest, Internal, ServiceError
from service.fastpath.exchange import Exchange, Shop
from service.fastpath.flow import Flow
from service.fastpath.heads import Head, field_of, head_of
from service.fastpath.long_way import LongCycle
from service.fastpath.rules import Target, refusal, shown, target_of

_HEAD_END: Final = b"\r\n\r\n"
_HEAD_BYTES: Final = 65_536
"""A head, or the trailers of a chunked body, may have so many bytes; a little more where one read brings them."""
_LINGER_S: Final = 2.0
"""How long the rest of a body is waited for whose call was refused, before the connection is closed: closed under a
client that still sends, its system would throw the answer away unread."""

_log = logging.getLogger("foldserve.http")


class _Deaf:
    """In the parser's place when nothing more of the stream can be understood or is wanted."""

    def feed_data(self, data: bytes) -> None:
        """Drop it."""


class FastProtocol(HttpToolsProtocol):
    """One connection. `shop` is set once per API server, before the first connection."""

    shop: Shop
    _date_s = -1
    _date_line = b""
    _date_header: tuple[tuple[bytes, bytes], ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle: Any  # None at first; a LongCycle, or an Exchange: of the last request that has come
        self.parser: Any  # httptools', or _Deaf
        self._read = self.shop.heads.read
        self._idle_since_s = 0.0
        self._unsent_bytes = 0
        self._own: Exchange | None = None
        """The exchange whose body is awaited or which awaits its answer."""
        self._running: Any = None
        """The cycle that is being answered; others wait in the pipeline."""
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
        self.flow = self._flow = Flow(transport, self.pipeline)
        # Also for the first head: who never sends it is gone after as long as one who was answered.
        self._idle_since_s = self.loop.time()
        self._arm_keep_alive(self.timeout_keep_alive)

    # -- bytes in

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if not self._parsing:
            own = self._own
            if own is None and (self.cycle is None or self.cycle.response_complete):
                end = data.find(_HEAD_END) + 4
                head = self._read(data, end) if end > 3 else None
                if head is not None:
                    own = self._begin(head)
                    data = data[end:]
            if own is not None and own.missing:
                missing = own.missing
                if len(data) <= missing:
                    self._feed(own, data)
                    if own.missing:
                        own.await_body()
                    return
                self._feed(own, data[:missing])
                data = data[missing:]
            if not data or self.transport.is_closing():
                return
            self._line = data.lstrip(b"\r\n")
        elif self._line and b"\n" not in self._line:
            self._line += data
        self._unparsed_bytes += len(data)
        self._parse(data)
        if self._own is not None and self._own.missing:
            self._own.await_body()
        if self._unparsed_bytes > _HEAD_BYTES:
            self._break_off(
                BadRequest(f"the head is larger than {_HEAD_BYTES} bytes; send fewer or shorter headers")
            )

    def _parse(self, data: bytes) -> None:
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

    def on_message_begin(self) -> None:
        """See httptools."""
        self._parsing = True
        self._in_body = False
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._unparsed_bytes = 0
        parser = self.parser
        method, version = parser.get_method(), parser.get_http_version()
        if parser.should_upgrade() and method != b"CONNECT":
            self._upgrading = True
            return
        self._in_body = True
        protocol = self._line.partition(b"\n")[0].rpartition(b" ")[2].partition(b"/")[0]
        self._line = b""  # what follows in the same data is another message
        error = refusal(method, version, protocol, self.headers)
        if error is None:
            head = self._ordinary(method, version)
            if head is not None:
                self._begin(head)
                return
        self._begin_long(method.decode("ascii"), version, error)

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._unparsed_bytes = 0
        if self._own is not None and self.cycle is self._own:
            self._feed(self._own, body)
        elif not isinstance(self.cycle, Exchange):
            super().on_body(body)

    def on_message_complete(self) -> None:
        """See httptools."""
        if self._upgrading:
            return
        self._parsing = self._in_body = False
        self._unparsed_bytes = 0
        if not isinstance(self.cycle, Exchange):
            super().on_message_complete()

    def eof_received(self) -> bool:  # type: ignore[override]
        """See asyncio.Protocol. The client sends no more: what came whole is answered, then the connection closed.

        A client that has gone altogether looks the same until something is written to it. Its answers are made all
        the same; a reset, which cannot be mistaken, gives its requests up at once.
        """
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
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        if self._own is not None:
            self._own.give_up()
            self._own = None
        if self._running is not None and self._running is not self.cycle:
            self._running.disconnected = True
            self._running.message_event.set()
        HttpToolsProtocol._unset_keepalive_if_required(self)
        super().connection_lost(exc)

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
            self._begin_long("", "1.1", error)
            self.cycle.more_body = False
            self.cycle.message_event.set()
        elif isinstance(cycle, LongCycle) and not cycle.response_complete:
            cycle.break_off(error)
        else:
            self.transport.close()  # answered already, before its body

    def _peer(self) -> str:
        return "{}:{}".format(*self.client) if self.client else "a client"

    # -- keep-alive: one timer per connection, moved on when it is due instead of at every request

    def on_response_complete(self) -> None:
        """Called after each answer."""
        self._idle_since_s = self.loop.time()
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        if self.flow.read_paused:
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
        left_s = self._idle_since_s + self.timeout_keep_alive - self.loop.time()
        unsent, before = self.transport.get_write_buffer_size(), self._unsent_bytes
        self._unsent_bytes = unsent
        if left_s > 0:
            self._arm_keep_alive(left_s)
        elif not unsent:
            super().timeout_keep_alive_handler()
        elif unsent == before:
            self.transport.abort()  # a whole period in which the client took nothing of its answer
        else:
            self._arm_keep_alive(self.timeout_keep_alive)

    def _arm_keep_alive(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    # -- the request whose head was just read

    def _ordinary(self, method: bytes, version: str) -> Head | None:
        """What the head just parsed says, if the call can be taken here."""
        route = self.shop.routes.get(self.url)
        if (
            route is None
            or method != b"POST"
            or (self.cycle is not None and not self.cycle.response_complete)
        ):
            return None
        fields = [field_of(name, value) for name, value in self.headers]
        return head_of(route, version == "1.0", fields, self.shop.heads.limits)

    def _begin(self, head: Head) -> Exchange:
        self._own = self.cycle = self._running = own = Exchange(self.shop, head, self)
        own.begin()
        return own

    def _begin_long(self, method: str, version: str, error: ServiceError | None) -> None:
        """The long way: an ASGI scope, and a task as soon as it is its turn. error: the answer, if that is settled."""
        url = self.url or self._line.partition(b"\n")[0]
        target = Target(shown(url), url, b"")
        if error is None:
            try:
                target = target_of(self.url)
            except BadRequest as no_target:
                error = no_target
        self.scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme or "http",
            "root_path": self.root_path,
            "headers": self.headers or [],
            "state": self.app_state.copy(),
            "method": method,
            "path": target.path,
            "raw_path": target.raw_path,
            "query_string": target.query,
        }
        if error is not None:
            self.scope[REFUSAL] = error  # type: ignore[typeddict-unknown-key]
        self.date_line()
        self.server_state.default_headers = list(self._date_header)
        busy = self.cycle is not None and not self.cycle.response_complete
        self.cycle = LongCycle(
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

    def _feed(self, own: Exchange, data: bytes) -> None:
        own.feed(data)
        if own.response_complete and not own.missing:
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
        transport.write(message)
        if not own.keep_alive and own.missing:
            self.loop.call_later(_LINGER_S, transport.close)
        elif not own.keep_alive:
            transport.close()
        self.on_response_complete()

    def begin_answer(self, part: bytes) -> None:
        """Send a part of the answer to the call under way that is not the last."""
        if not self.transport.is_closing():
            self.transport.write(part)

    def refused(self) -> None:
        """A call was answered 429; see pace.py."""
        pause_s = self.shop.pace.pause_s(time.monotonic())
        if pause_s:
            self.hold(pause_s)

    def hold(self, seconds: float) -> None:
        """Read nothing more for so many seconds."""
        if not self.transport.is_closing():
            self._flow.hold()
            self.loop.call_later(seconds, self._flow.release)

    def call_later(self, seconds: float, then: Callable[[], None]) -> asyncio.TimerHandle:
        """Call `then` on the event loop after so many seconds."""
        return self.loop.call_later(seconds, then)

    def date_line(self) -> bytes:
        """The Date line, made anew once a second when it is needed: no timer, so that an idle server sleeps."""
        now_s = int(time.time())
        if now_s != FastProtocol._date_s:
            value = formatdate(now_s, usegmt=True).encode()
            FastProtocol._date_s = now_s
            FastProtocol._date_line = b"date: %b\r\n" % value
            FastProtocol._date_header = ((b"date", value),)
        return FastProtocol._date_line
