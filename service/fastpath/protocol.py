"""HTTP/1.1 on one connection: ordinary calls are answered here, everything else goes on to uvicorn and ASGI.

A subclass of uvicorn's httptools protocol, which LitServer.run(http=...) hands to uvicorn. It takes a call for
itself when the call is ordinary (heads.py) and nothing else is under way on the connection; then no ASGI scope,
task or event is made for it. To uvicorn's own code the exchange is the connection's request cycle, so that
keep-alive, pipelining and graceful shutdown stay uvicorn's.

A head whose exact bytes were parsed before is not parsed again: its call begins at once, and its body is framed by
the length that the head states. Only between messages, when the parser holds nothing of the stream.
"""

import asyncio
import fcntl
import sys
import termios
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, Final

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.fastpath.exchange import Exchange, Shop
from service.fastpath.flow import Flow
from service.fastpath.heads import Head, plan
from service.fastpath.unread import Owing
from service.holdings import Holding
from service.http import WIRE

_HEAD_END: Final = b"\r\n\r\n"
UNREAD_S: Final = 0.5
"""What has come when the server ends is read and answered within this time, or not any more."""
_SHORTEST_HEAD_BYTES: Final = len(b"GET / HTTP/1.1")
"""No head ends before: what a client sends is not cut into thousands of pieces that are no heads."""
_CHUNKS_BYTES: Final = 512
"""Of a chunked body the parser is given at least so much at once: it may be full of what looks like its end."""
_HEAD_BYTES: Final = 65_536
"""A head, or the trailers of a chunked body, may have so many bytes; a little more where one read brings them."""


class _Deaf:
    """In the parser's place when nothing more of the stream can be understood or is wanted."""

    def feed_data(self, data: bytes) -> None:
        """Drop it."""


def _nobody_counts() -> None:
    """Stands where connections are not counted."""


class FastProtocol(HttpToolsProtocol):
    """One connection. `shop` and `left` are set once per API server, before the first connection."""

    shop: Shop
    left: Callable[[], None] = staticmethod(_nobody_counts)
    """Called when a connection is lost."""
    _date_until_s = 0.0
    _date_line = b""
    _date_header: tuple[tuple[bytes, bytes], ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle: Any  # None at first; one of uvicorn's, or an Exchange
        self.parser: Any  # httptools', or _Deaf
        self._known = self.shop.heads.get
        self._idle_since_s = 0.0
        self._kept_at = 0
        """What of flow.kept was parsed."""
        self._ahead_bytes = 0
        """Read and not parsed."""
        self._body_left = 0
        """Of the body that is parsed, on the long way; 0 when that is not known."""
        self._kept_in: Holding | None = None
        self._reading_kept = False
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

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        owing = Owing(self.shop.unread, transport, self.abort)
        self.flow = self._flow = Flow(transport, self.pipeline, owing, self._go_on)
        # Also for the first head: who never sends it is gone after as long as one who was answered.
        self._idle_since_s = self.loop.time()
        self._arm_keep_alive(self.timeout_keep_alive)

    # -- bytes in

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        flow = self._flow
        if flow.waits or flow.kept:
            self._keep(data)
            return
        if not self._parsing:
            # The common cases, in few steps: a whole request with a known head, and the next part of a body.
            own = self._own
            if own is not None:
                if len(data) <= own.missing:
                    self._feed(own, data)
                    return
            elif self.cycle is None or self.cycle.response_complete:
                end = data.find(_HEAD_END) + 4
                head = self._known(data[:end])
                if head is not None and len(data) - end <= head.length:
                    own = self._begin(head, True)
                    if end < len(data):
                        self._feed(own, data[end:])
                    if own.missing:
                        own.await_body()
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
            self._kept_in = self.shop.receiving.memory.open(self.abort)
        if self._kept_in.take(len(data)):
            self._flow.keep(data)
            self._ahead_bytes = len(self._flow.kept) - self._kept_at
        else:
            self.abort()

    def _go_on(self) -> None:
        """Parse what was kept, if its turn has come."""
        flow = self._flow
        if not flow.kept or flow.waits or self._reading_kept:
            return
        kept, self._reading_kept = flow.kept, True
        try:
            self._kept_at = self._parse(kept, self._kept_at)
        finally:
            self._reading_kept = False
        if self._kept_at == len(kept) or self.transport.is_closing():
            self._drop_kept()

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
        while at < end and not flow.waits:
            at = self._parse_piece(data, at)
            if self._unparsed_bytes > _HEAD_BYTES:
                self.send_400_response(f"The head is larger than {_HEAD_BYTES} bytes.")
            if isinstance(self.parser, _Deaf):
                return end
        if self._own is not None and self._own.missing:
            self._own.await_body()
        return at

    def _parse_piece(self, data: bytes, at: int) -> int:
        """Parse a head or a part of a body that begins there; returns where it ends."""
        own = self._own
        if own is not None and own.missing and (self._in_body or not self._parsing):
            end = min(len(data), at + own.missing)
            if not self._parsing:
                self._ahead_bytes = len(data) - end
                self._feed(own, data[at:end])
                return end
        elif self._in_body:
            end = self._piece_end(data, at)
        else:
            end = data.find(_HEAD_END, at + _SHORTEST_HEAD_BYTES) + 4
            if end < 4:
                end = len(data)
            self._ahead_bytes = len(data) - end
            if not self._parsing and own is None and (self.cycle is None or self.cycle.response_complete):
                head = self._known(data[at:end])
                if head is not None:
                    self._begin(head, True)
                    return end
        self._ahead_bytes = len(data) - end
        piece = data[at:end]
        self._first = b"" if self._parsing else piece
        self._unparsed_bytes += len(piece)
        super().data_received(piece)
        return at + len(piece)

    def _piece_end(self, data: bytes, at: int) -> int:
        """Where the body, of which more begins there, ends; or a part of it that is hardly longer than it."""
        if self._body_left:
            return min(len(data), at + self._body_left)
        end = data.find(_HEAD_END, at + _CHUNKS_BYTES) + 4  # which is how chunks and trailers end too
        return len(data) if end < 4 else end

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
        length = next((value for name, value in headers if name == b"content-length"), b"")
        self._body_left = int(length) if length.isdigit() else 0
        self.scope["extensions"] = {WIRE: self}  # type: ignore[dict-item]
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
            self._body_left = max(0, self._body_left - len(body))
            super().on_body(body)

    def on_message_complete(self) -> None:
        """See httptools."""
        self._parsing = self._in_body = False
        self._unparsed_bytes = 0
        if not isinstance(self.cycle, Exchange):
            super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._give_up()
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

    # -- what cannot be understood

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP in the one shape of every error; later than the answers that are still due."""
        self.parser, self._parsing = _Deaf(), True
        cycle = self.cycle
        if self.transport.is_closing():
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

    def begin_answer(self, part: bytes, then: Callable[[], None]) -> None:
        """Send a part of the answer to the call under way that is not the last; `then` is called when there is room for
        another."""
        if not self.transport.is_closing():
            self.transport.write(part)
            if not self._flow.when_taken(then):
                self.loop.call_later(0.0, then)

    @property
    def last(self) -> bool:
        """Whether nothing has been read after the call under way."""
        missing = 0 if self._own is None else self._own.missing
        return not self.pipeline and self._ahead_bytes <= missing

    def owe(self, nbytes: int) -> None:
        """So many bytes more of an answer, or less if negative, wait until its client takes what came before."""
        self._flow.owing.more(nbytes)

    def hold(self, seconds: float) -> None:
        """Look at nothing more for so many seconds."""
        if not self.transport.is_closing():
            self._flow.pause(seconds)

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
