"""HTTP/1.1 on one connection: ordinary calls are answered here, everything else goes on to uvicorn and ASGI.

A subclass of uvicorn's httptools protocol, which LitServer.run(http=...) hands to uvicorn. It takes a call for
itself when the call is ordinary (heads.py) and nothing else is under way on the connection; then no ASGI scope,
task or event is made for it. To uvicorn's own code the exchange is the connection's request cycle, so that
keep-alive, pipelining and graceful shutdown stay uvicorn's.

A head whose exact bytes were parsed before is not parsed again: its call begins at once, and its body is framed by
the length that the head states. Only between messages, when the parser holds nothing of the stream.
"""

import asyncio
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, Final

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.fastpath.exchange import Exchange, Shop
from service.fastpath.flow import Flow
from service.fastpath.heads import Head, plan

_HEAD_END: Final = b"\r\n\r\n"
_HEAD_BYTES: Final = 65_536
"""A head, or the trailers of a chunked body, may have so many bytes; a little more where one read brings them."""


class _Deaf:
    """In the parser's place when nothing more of the stream can be understood or is wanted."""

    def feed_data(self, data: bytes) -> None:
        """Drop it."""


class FastProtocol(HttpToolsProtocol):
    """One connection. `shop` is set once per API server, before the first connection."""

    shop: Shop
    _date_until_s = 0.0
    _date_line = b""
    _date_header: tuple[tuple[bytes, bytes], ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle: Any  # None at first; one of uvicorn's, or an Exchange
        self.parser: Any  # httptools', or _Deaf
        self._known = self.shop.heads.get
        self._idle_since_s = 0.0
        self._unsent_bytes = 0
        self._own: Exchange | None = None
        """The exchange whose body is awaited or which awaits its answer."""
        self._parsing = False
        """Whether the parser is inside a message."""
        self._in_body = False
        """Whether it is past that message's head."""
        self._first = b""
        """The data in which the present head began; empty when that is not known."""
        self._unparsed_bytes = 0
        """Given to the parser since it last made something of them: the size of a head that has not ended."""
        self._cut_short = False
        """Whether the last of the requests that wait for their turn will never be whole."""

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
                head = self._known(data[:end])
                if head is not None:
                    own = self._begin(head, True)
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
            if not data:
                return
            self._first = data
        else:
            self._first = b""
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._own is not None and self._own.missing:
            self._own.await_body()
        if self._unparsed_bytes > _HEAD_BYTES:
            self.send_400_response(f"The head is larger than {_HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        """See httptools."""
        self._parsing = True
        self._in_body = False
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._in_body = True
        self._unparsed_bytes = 0
        head = self._ordinary()
        self._first = b""  # what follows in the same data is another message
        if head is not None:
            self._begin(head, self.parser.should_keep_alive())
            return
        # The long way, from the beginning: uvicorn makes the scope that was put off until now.
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers += headers
        self.date_line()
        self.server_state.default_headers = list(self._date_header)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._unparsed_bytes = 0
        if self._own is not None and self.cycle is self._own:
            self._feed(self._own, body)
        elif not isinstance(self.cycle, Exchange):
            super().on_body(body)

    def on_message_complete(self) -> None:
        """See httptools."""
        self._parsing = self._in_body = False
        self._unparsed_bytes = 0
        if not isinstance(self.cycle, Exchange):
            super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        if self._own is not None:
            self._own.give_up()
            self._own = None
        HttpToolsProtocol._unset_keepalive_if_required(self)
        super().connection_lost(exc)

    # -- what cannot be understood

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP in the one shape of every error; later than the answers that are still due."""
        self.parser, self._parsing = _Deaf(), True
        cycle = self.cycle
        if self.transport.is_closing():
            return
        if self._in_body and self.pipeline:
            self._cut_short = True
            return
        if cycle is not None and not self._in_body and not cycle.response_complete:
            cycle.keep_alive = False  # the last request that came whole
            return
        if self._in_body and (cycle.response_complete or cycle.response_started):
            self.transport.close()  # refused already, before its body
            return
        body = orjson.dumps({"error": f"{msg} Send an HTTP/1.1 request.", "code": "bad_request"})
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\n%bcontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%b" % (self.date_line(), len(body), body)
        )
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """No upgrade is served: the request is answered as it stands, and what follows it may be another protocol."""
        self.parser, self._parsing = _Deaf(), True
        if self.cycle.response_complete:
            self.transport.close()
        self.cycle.keep_alive = False

    # -- keep-alive: one timer per connection, moved on when it is due instead of at every request

    def on_response_complete(self) -> None:
        """Called after each answer."""
        self._idle_since_s = self.loop.time()
        if self._cut_short and len(self.pipeline) == 1:
            self.pipeline.clear()
            self.transport.close()
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

    # -- an exchange of our own

    def _ordinary(self) -> Head | None:
        """What the head just parsed says, if the call can be taken here."""
        shop, parser = self.shop, self.parser
        route = shop.routes.get(self.url)
        if (
            route is None
            or parser.get_method() != b"POST"
            or parser.get_http_version() != "1.1"
            or (self.cycle is not None and not self.cycle.response_complete)
        ):
            return None
        head = plan(route, self.headers, shop.limit_bytes, shop.json_limit_bytes)
        if head is not None and self._first.startswith(b"POST ") and parser.should_keep_alive():
            # The head began with this data: if it also ends in it, these bytes are the whole head.
            end = self._first.find(_HEAD_END)
            if end > 0:
                shop.heads.add(self._first[: end + 4], head)
        return head

    def _begin(self, head: Head, keep_alive: bool) -> Exchange:
        self._own = self.cycle = own = Exchange(self.shop, head, self, keep_alive)
        own.begin()
        return own

    def _feed(self, own: Exchange, data: bytes) -> None:
        own.feed(data)
        if own.response_complete and not own.missing:
            self._own = None

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
        if not own.keep_alive:
            transport.close()
        self.on_response_complete()

    def begin_answer(self, part: bytes) -> None:
        """Send a part of the answer to the call under way that is not the last."""
        if not self.transport.is_closing():
            self.transport.write(part)

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
        now_s = time.time()
        if now_s >= FastProtocol._date_until_s:
            value = formatdate(now_s, usegmt=True).encode()
            FastProtocol._date_until_s = float(int(now_s) + 1)
            FastProtocol._date_line = b"date: %b\r\n" % value
            FastProtocol._date_header = ((b"date", value),)
        return FastProtocol._date_line
