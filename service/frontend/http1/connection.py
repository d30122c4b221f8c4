"""HTTP/1.1 on one connection: ordinary calls are answered here, everything else goes on to ASGI.

The last of three layers over uvicorn's httptools protocol (lifetime.py, parsing.py, this), which
LitServer.run(http=...) hands to uvicorn. It takes a call for itself when the call is ordinary (heads/cache.py) and
nothing else is under way on the connection; then no ASGI scope, task or event is made for it. To uvicorn's own code the
exchange is the connection's request cycle, so that keep-alive, pipelining and graceful shutdown stay uvicorn's.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from foldserve.service.errors import BadRequest, ServiceError
from foldserve.service.frontend.asgi_channel import WIRE
from foldserve.service.frontend.http1.asgi_cycle import AsgiCycle, scope_of
from foldserve.service.frontend.http1.direct_read import DIRECT_READ_BYTES, DirectRead
from foldserve.service.frontend.http1.exchange import Http1Exchange
from foldserve.service.frontend.http1.flow.send_buffers import SendBuffer
from foldserve.service.frontend.http1.flow.throttle import CLOSE
from foldserve.service.frontend.http1.heads.cache import Head, field_of, head_of
from foldserve.service.frontend.http1.heads.rules import RequestTarget, parse_target, shown
from foldserve.service.frontend.http1.lifetime import BEGINNING
from foldserve.service.frontend.http1.parsing import HEAD_END, MessageParsing

_LINGER_S: Final = 2.0
"""How long the rest of a body is waited for whose call was refused, before the connection is closed: closed under a
client that still sends, its system would throw the answer away unread."""


class Http1Protocol(MessageParsing):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._direct_read: DirectRead | None = None

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
                    if own.missing > DIRECT_READ_BYTES:
                        self._fill(own)
                    return
            elif self.cycle is None or self.cycle.response_complete:
                end = data.find(HEAD_END) + 4
                head = self._read(data, end) if end > 3 else None
                if head is not None and len(data) - end <= head.length:
                    own = self._begin(head)
                    own.feed(data[end:])
                    if own.missing:
                        own.await_body()
                        if own.missing > DIRECT_READ_BYTES:
                            self._fill(own)
                    elif own.response_complete:
                        self._end_own(own)
                    return
        at = self._parse(data, 0)
        if at < len(data):
            self._keep(data[at:])
        else:
            self._ahead_bytes = 0

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
        return head_of(route, version == "1.0", fields, self.http.gate)

    def _begin(self, head: Head) -> Http1Exchange:
        self._own = self.cycle = self._running = own = Http1Exchange(self.http, head, self)
        self._own_begun = False
        own.begin()
        return own

    def _begin_asgi(self, method: str, version: str, error: ServiceError | None) -> None:
        """An ASGI scope, and a task as soon as it is its turn. error: the answer, if that is settled."""
        url = self.url or self._first_line()
        target = RequestTarget(shown(url), url, b"")
        if error is None:
            try:
                target = parse_target(self.url)
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
        """Have the rest of a large body read into its memory of the arena, if it has any. Not where it comes encrypted:
        TLS has its own memory in between."""
        if own.rest(1) is not None and not self.transport.is_closing() and not self._encrypted:
            if self._direct_read is None:
                self._direct_read = DirectRead(self.transport, self)
            self._direct_read.begin(own)

    def filled(self, own: Http1Exchange, nbytes: int) -> None:
        """So many bytes of its body were read into its memory."""
        own.filled(nbytes)
        if own.response_complete and not own.missing:
            self._end_own(own)

    def _end_own(self, own: Http1Exchange) -> None:
        """It is answered, and its body is read."""
        self._own = None
        if not own.keep_alive:
            self.transport.close()

    def _give_up(self) -> None:
        """The client is gone, or its connection is being ended."""
        if self._own is not None:
            self._own.cancel()
            self._own = None
        self._flow.end()
        if self._kept_in is not None:
            self._kept_in.end()
            self._kept_in = None

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
        return message[len(BEGINNING) :]

    @property
    def send_buffer(self) -> SendBuffer:
        """What its client has not taken."""
        return self._flow.send_buffer

    def refused(self) -> bool:
        """A call is to be answered 429: look at no more for a while (throttle.py); True to close its connection."""
        pause_s = self.http.throttle.delay_s(time.monotonic())
        if pause_s > 0.0 and not self.transport.is_closing():
            self._flow.pause(pause_s)
        return pause_s == CLOSE
