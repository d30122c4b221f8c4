"""HTTP/1.1 on one connection: ordinary calls are answered here, everything else goes on to uvicorn and ASGI.

A subclass of uvicorn's httptools protocol, which LitServer.run(http=...) hands to uvicorn. It takes a call for
itself when the call is ordinary (heads.py) and nothing else is under way on the connection; then no ASGI scope,
task or event is made for it. To uvicorn's own code the exchange is the connection's request cycle, so that
keep-alive, pipelining, flow control and graceful shutdown stay uvicorn's.

A head whose exact bytes were parsed before is not parsed again: its call begins at once, and its body is framed by
the length that the head states. Only between messages, when the parser holds nothing of the stream.
"""

import time
from email.utils import formatdate
from typing import Any, Final

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.fastpath.exchange import Exchange, Shop
from service.fastpath.heads import Head, plan

_HEAD_END: Final = b"\r\n\r\n"


class FastProtocol(HttpToolsProtocol):
    """One connection. `shop` is set once per API server, before the first connection."""

    shop: Shop
    _date_second = 0
    _date_line = b""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle: Any  # None at first; one of uvicorn's, or an Exchange
        self._idle_since_s = 0.0
        self._own: Exchange | None = None
        """The exchange whose body is awaited or which awaits its answer."""
        self._parsing = False
        """Whether the parser is inside a message."""
        self._first = b""
        """The data in which the present head began; empty when that is not known."""

    # -- bytes in

    def data_received(self, data: bytes) -> None:
        own = self._own
        if not self._parsing:
            if own is None:
                end = data.find(_HEAD_END) + 4
                head = self.shop.heads.get(data[:end]) if end > 3 else None
                if (
                    head is not None
                    and (self.cycle is None or self.cycle.response_complete)
                    and not self.pipeline
                ):
                    own = self._begin(head, keep_alive=True)
                    data = data[end:]
            if own is not None and own.missing:
                missing = own.missing
                self._feed(own, data if len(data) <= missing else data[:missing])
                data = data[missing:]
        if data:
            self._first = b"" if self._parsing else data
            super().data_received(data)

    def on_message_begin(self) -> None:
        self._parsing = True
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        head = self._ordinary()
        self._first = b""  # what follows in the same data is another message
        if head is not None:
            self._begin(head, keep_alive=self.parser.should_keep_alive())
            return
        # The long way, from the beginning: uvicorn makes the scope that was put off until now.
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers += headers
        self.date_line()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._own is not None and self.cycle is self._own:
            self._feed(self._own, body)
        elif not isinstance(self.cycle, Exchange):
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._parsing = False
        if not isinstance(self.cycle, Exchange):
            super().on_message_complete()

    # -- keep-alive: one timer per connection, moved on when it is due instead of at every request

    def on_response_complete(self) -> None:
        self._idle_since_s = self.loop.time()
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        if self.timeout_keep_alive_task is None:
            self._arm_keep_alive(self.timeout_keep_alive)

    def _unset_keepalive_if_required(self) -> None:
        if self.transport.is_closing():
            super()._unset_keepalive_if_required()

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        if self.cycle is not None and not self.cycle.response_complete:
            return  # its answer arms the timer
        left_s = self._idle_since_s + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._arm_keep_alive(left_s)
        else:
            super().timeout_keep_alive_handler()

    def _arm_keep_alive(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._own is not None:
            self._own.give_up()
            self._own = None
        HttpToolsProtocol._unset_keepalive_if_required(self)
        super().connection_lost(exc)

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
            or self.pipeline
        ):
            return None
        head = plan(route, self.headers, shop.limit_bytes)
        if head is not None and self._first.startswith(b"POST ") and parser.should_keep_alive():
            # The head began with this data: if it also ends in it, these bytes are the whole head.
            end = self._first.find(_HEAD_END)
            if end > 0:
                shop.heads.add(self._first[: end + 4], head)
        return head

    def _begin(self, head: Head, keep_alive: bool) -> Exchange:
        own = Exchange(self.shop, head, self, keep_alive)
        self._own = self.cycle = own
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

    def date_line(self) -> bytes:
        """The Date line, made anew once a second when it is needed: no timer, so that an idle server sleeps."""
        now = int(time.time())
        if now != FastProtocol._date_second:
            value = formatdate(now, usegmt=True).encode()
            FastProtocol._date_second, FastProtocol._date_line = now, b"date: %b\r\n" % value
        line = FastProtocol._date_line
        if self.server_state.default_headers != [(b"date", line[6:-2])]:
            self.server_state.default_headers = [(b"date", line[6:-2])]
        return line

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is not HTTP, in the one shape of every error."""
        body = orjson.dumps({"error": f"{msg} Send an HTTP/1.1 request.", "code": "bad_request"})
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        self.transport.close()
