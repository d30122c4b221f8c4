"""A request while its body arrives: into the arena where possible, bounded in memory and time.

Owned by the event loop thread.
"""

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from time import monotonic_ns
from typing import Final

from foldserve.service.engine.codec_process import LARGE_COPY_BYTES
from foldserve.service.engine.request import PendingRequest
from foldserve.service.errors import DeadlinePassed, Internal, NotReady, ServiceError
from foldserve.service.inference.body_budget import BodyTooLarge
from foldserve.service.inference.context import allowed_s
from foldserve.service.inference.partial_body import UNKNOWN, PartialBody
from foldserve.service.inference.plan import RequestHead
from foldserve.service.inference.server_context import ServerContext, nanoseconds
from foldserve.service.ipc.slots.allocator import rounded

_ENDLESS: Final = 1 << 60
"""Missing bytes of a body of unknown length, of which as many may come."""


class ReceivingRequest(PendingRequest):
    """One request; made when its head is there."""

    # Values until they are set, as in PendingRequest.
    done = False
    """Answered or cancelled: nothing of it is left but what its client may still send."""
    body: bytes = b""
    """Set when it came whole and is to be parsed."""

    def __init__(self, server: ServerContext, head: RequestHead) -> None:
        self.began_ns = monotonic_ns()
        self.server = server
        self.head = head
        self.plan = head.plan
        self.queue = head.plan.queue
        self.level = head.level
        self.length = head.length
        """Of the body."""
        self.missing = head.length if head.length != UNKNOWN else _ENDLESS
        """Bytes of the body that have not come yet."""
        self._timeout_s = server.request_timeout_s
        self._timeout_ns = server.request_timeout_ns
        # Not class values: the compiler leaves those of classes that it does not compile unset.
        self._timer: asyncio.TimerHandle | None = None
        self._partial: PartialBody | None = None

    @abstractmethod
    def body_came(self) -> None:
        """It is whole: in the arena, or in `body`. Raises: ServiceError."""

    @abstractmethod
    def refuse(self, error: ServiceError) -> None:
        """Fail, whatever it is at. Does nothing when it is done."""

    @abstractmethod
    def fault(self) -> Internal:
        """The error for a bug of ours, whose exception is being handled; logs it."""

    def step(self, step: Callable[[], None]) -> None:
        """Run `step` from the event loop, so that its error ends this request alone."""
        try:
            step()
        except ServiceError as error:
            self.refuse(error)
        except Exception:
            self.refuse(self.fault())

    def begin(self) -> None:
        """Refuse at once what cannot be served now. Nothing is allocated for a body of which nothing has come."""
        head, dispatcher, queue = self.head, self.server.dispatcher, self.queue
        try:
            if head.timeout_ms:
                self._timeout_s = allowed_s(head.timeout_ms.decode("latin-1"), self._timeout_s)
                self._timeout_ns = nanoseconds(self._timeout_s)
            if not dispatcher.ready(queue):
                raise NotReady(
                    f"model {queue.model!r} version {queue.version} is not ready; try again when "
                    "/v2/health/ready answers 200"
                )
            if head.is_rows:
                self.rows = head.length // self.plan.row_bytes
                if head.length > LARGE_COPY_BYTES:  # what can never be served is refused before it is sent
                    dispatcher.check_fits(self, *self._capacity())
        except ServiceError as error:
            self.refuse(error)

    def feed(self, chunk: bytes) -> None:
        """The next part of the body, at most what is missing. With the last part the request goes on."""
        self.missing -= len(chunk)
        if self.done:
            return  # refused already: what still comes is dropped
        try:
            if self._partial is not None or (self.missing and chunk):
                self._feed_part(chunk)
                return
            if self.missing:
                return
            if self._timer is not None:
                self.end_waiting()  # from now on the memory is not ours to free
            if self.head.is_rows:
                input_bytes, output_bytes = self._capacity()
                self.server.dispatcher.reserve(self, input_bytes, output_bytes)[:] = chunk
                self.body_came()
            else:
                self.body = chunk
                self.body_came()
        except ServiceError as error:
            self.refuse(error)
        except Exception:
            self.refuse(self.fault())

    def feed_last(self, chunk: bytes) -> None:
        """The last part of a body of unknown length."""
        self.length = self.received() + len(chunk)
        self.missing = len(chunk)
        if self.length > self.plan.limit.nbytes:
            self.missing = 0
            self.refuse(self._too_large())
        else:
            self.feed(chunk)

    def rest(self, nbytes: int) -> memoryview | None:
        """Where the next bytes of the body may be written, as many at most; None when feed() is to be given them."""
        if self._partial is None or self.done:
            return None
        return self._partial.rest(min(nbytes, self.missing))

    def filled(self, nbytes: int) -> None:
        """So many bytes were written to rest(). With the last the request goes on."""
        partial = self._partial
        assert partial is not None
        self.missing -= nbytes
        try:
            partial.filled(nbytes)
            if not self.missing:
                self._end_parts(partial)
        except ServiceError as error:
            self.refuse(error)
        except Exception:
            self.refuse(self.fault())

    def await_body(self) -> None:
        """More of the body is to come: start the timer that bounds the time for it."""
        if self._timer is None and not self.done:
            left_s = (self.latest_ns() - monotonic_ns()) / 1e9
            self._timer = self.server.loop.call_later(max(0.0, left_s), self._on_deadline)

    def _capacity(self) -> tuple[int, int]:
        """Bytes of inputs and of outputs to allocate for the body."""
        head, dispatcher, queue = self.head, self.server.dispatcher, self.queue
        if head.is_rows:
            return self.length, dispatcher.output_capacity(queue, self.rows, (), self.length)
        if head.envelope_bytes:
            nbytes = self.length - head.envelope_bytes
            rows = nbytes // queue.layout.input_row_bytes
            return head.begin + self.length, dispatcher.output_capacity(queue, rows, (), nbytes)
        return rounded(max(self.length, 0)), 0  # rounded, because the arena keeps allocations by their sizes

    def _feed_part(self, part: bytes) -> None:
        """A part of a body that comes in several. Raises ServiceError."""
        partial = self._partial
        if self.length == UNKNOWN and self.received() > self.plan.limit.nbytes:
            raise self._too_large()
        if partial is None:
            self.input_offset = self.head.begin
            partial = self._partial = self.server.bodies.begin(
                self, self.length, self._capacity(), self._on_evicted
            )
        partial.add(part)
        if not self.missing:
            self._end_parts(partial)

    def _end_parts(self, partial: PartialBody) -> None:
        """The body is whole. Raises ServiceError."""
        if self.allocation is not None:
            self.end_waiting()
            self.body_came()
            return
        # It was kept in memory of its own.
        input_bytes, output_bytes = self._capacity()
        dispatcher = self.server.dispatcher
        memory = dispatcher.reserve(self, input_bytes, output_bytes)[self.input_offset :]

        def go_on(at: int) -> None:
            if self.done:
                dispatcher.release(self)  # expired, or the client is gone
                return
            rest = partial.copy_some(memory, at)
            if rest:
                self.server.loop.call_soon(go_on, rest)
                return
            self.end_waiting()
            self.step(self.body_came)

        go_on(0)

    def received(self) -> int:
        """Bytes of the body that have come."""
        return (_ENDLESS if self.length == UNKNOWN else self.length) - self.missing

    def _too_large(self) -> BodyTooLarge:
        limit = self.plan.limit
        return BodyTooLarge.than(limit.nbytes, limit.setting, self.plan.reads.shorter)

    def _on_evicted(self) -> None:
        """The body was evicted, because the budget of bodies is full."""
        self.refuse(self.server.bodies.budget.evicted())

    def end_waiting(self) -> None:
        """The body is whole, or the rest of it is not wanted."""
        if self._timer is not None:
            self._timer.cancel()
        if self._partial is not None:
            self._partial.end()
            self._partial = None

    def latest_ns(self) -> int:
        """CLOCK_MONOTONIC of its deadline."""
        return self.began_ns + self._timeout_ns

    def _on_deadline(self) -> None:
        """The deadline has passed, and the body is not whole."""
        self.refuse(DeadlinePassed.after(self._timeout_s))
