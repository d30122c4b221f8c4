"""From the bytes of one connection to heads and parts of bodies: what is parsed at once, and what must wait.

A head that is there in one piece between two messages is read by heads/reader.py where that is sure of it; its body is
framed by the length that the head states. Every other goes through httptools, a piece at a time: no more than one
request is parsed ahead of the one that is being answered. What is not HTTP, or what heads/rules.py forbids, is a
request too: its response, such as a 400, is sent in its turn.
"""

import logging
from typing import Any, Final

import httptools

from foldserve.service.errors import BadRequest, Internal, ServiceError
from foldserve.service.frontend.http1.asgi_cycle import AsgiCycle
from foldserve.service.frontend.http1.exchange import Http1Exchange
from foldserve.service.frontend.http1.heads.cache import Head
from foldserve.service.frontend.http1.heads.rules import MOST_HEADERS, not_http, refusal, too_many_headers
from foldserve.service.frontend.http1.lifetime import ConnectionLifetime
from foldserve.service.inference.holdings import Holding

HEAD_END: Final = b"\r\n\r\n"
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

_log = logging.getLogger("foldserve.http")


class _Deaf:
    """In the parser's place when nothing more of the stream can be understood or is wanted."""

    def feed_data(self, data: bytes) -> None:
        """Drop it."""


class MessageParsing(ConnectionLifetime):
    """One connection."""

    _chunks = 0
    """Parts of bodies that were read lately, on all connections."""
    _next_turn = False
    """Whether that is forgotten in the next turn of the event loop."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser: Any  # httptools', or _Deaf
        self._read = self.http.heads.read
        self._kept_at = 0
        """What of flow.kept was parsed."""
        self._kept_in: Holding | None = None
        self._reading_kept = False
        self._body_left = 0
        """Of the body that is parsed, on the ASGI path; 0 when that is not known."""
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

    # -- what the layer above knows

    def _ordinary(self, method: bytes, version: str) -> Head | None:
        """What the head just parsed says, if the call can take the fast path."""
        raise NotImplementedError

    def _begin(self, head: Head) -> Http1Exchange:
        """Begin an ordinary call."""
        raise NotImplementedError

    def _begin_asgi(self, method: str, version: str, error: ServiceError | None) -> None:
        """Begin a request that goes through ASGI. error: the answer, if that is settled."""
        raise NotImplementedError

    def _feed(self, own: Http1Exchange, data: bytes) -> None:
        """The next part of an ordinary call's body."""
        raise NotImplementedError

    # -- what is read, and what is kept for later

    def _keep(self, data: bytes) -> None:
        """Parse this later."""
        if self.transport.is_closing() or isinstance(self.parser, _Deaf):
            return
        if self._kept_in is None:
            self._kept_in = self.http.server.bodies.budget.open(self.abort)
        if self._kept_in.reserve(len(data)):
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
            if MessageParsing._chunks > _CHUNKS and self._in_body:
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
            end = data.find(HEAD_END, at + _SHORTEST_HEAD_BYTES) + 4
            if end < 4:
                end = len(data)
        self._ahead_bytes = len(data) - end
        piece = data[at:end]
        if not self._parsing:
            if own is not None and own.missing:
                self._feed(own, piece)
                return end
            if own is None and (self.cycle is None or self.cycle.response_complete):
                head = self._read(piece, len(piece)) if piece.endswith(HEAD_END) else None
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
        end = data.find(HEAD_END, at + _CHUNKS_BYTES, most) + 4  # which is how chunks and trailers end too
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
            self._break_off(Internal("the server failed on this request; its log says why"))
        except httptools.HttpParserError as error:
            begin = self._line[:60]
            refused = not_http(begin, str(error))
            _log.warning("%s is refused: %s; it begins %r", self._peer(), refused, begin)
            self._break_off(refused)

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
            not MessageParsing._next_turn
        ):  # one for all: each would let another connection go on in the same turn
            MessageParsing._next_turn = True
            self.loop.call_soon(self._forget_chunks)
        self._flow.pause(0.0)

    @staticmethod
    def _forget_chunks() -> None:
        MessageParsing._chunks, MessageParsing._next_turn = 0, False

    # -- what the parser finds

    def on_message_begin(self) -> None:
        """See httptools."""
        self._parsing = True
        self._in_body = False
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools. Trailers are not kept, and of a head no more lines than tell that there are too many. White
        space after a value, which httptools leaves there, is none of it (RFC 9110, 5.5)."""
        if not self._in_body and len(self.headers) <= MOST_HEADERS:
            super().on_header(name, value.rstrip(b" \t"))

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
            MessageParsing._chunks += 1
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

    # -- what cannot be understood, or is not wanted

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

    def _become_deaf(self) -> None:
        """Nothing more of the stream is read as HTTP."""
        self.parser, self._parsing, self._in_body = _Deaf(), True, False
        self._unparsed_bytes = 0

    def _break_off(self, error: ServiceError) -> None:
        """What comes now is not HTTP, whatever follows: answer it in its turn, and close."""
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
