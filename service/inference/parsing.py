"""A request whose body has come: its inputs put into the arena by its protocol, and the request into the queue.

What would hold the event loop for too long is parsed in the codec process (engine/codec_process/).

Owned by the event loop thread.
"""

from abc import abstractmethod
from time import monotonic_ns
from typing import Any

from foldserve.service.codecs.fast.codec import NO_SCHEDULE, Schedule
from foldserve.service.codecs.protocol import TakesLong
from foldserve.service.engine.codec_process.job import Job
from foldserve.service.engine.codec_process.messages import Body
from foldserve.service.errors import ServiceError
from foldserve.service.inference.receiving import ReceivingRequest


class ParsingRequest(ReceivingRequest):
    """One request, until it is queued."""

    # Values until they are set, as in PendingRequest.
    decode_s = -1.0
    """Seconds of parsing; negative until the body is parsed."""
    _outputs: tuple[str, ...] = ()
    """Those that its body asks for; none for the plan's."""
    _reply: Any = None
    """What its body says to the protocol that renders the answer."""
    _queue_timeout_us = 0
    """The longest from being queued to the answer that its body allows; 0 for the plan's."""

    _job: Job | None
    """Its body or its answer is in the codec process."""

    @abstractmethod
    def codec_error(self, error: Exception | None) -> ServiceError:
        """The error for the client when the codec process has failed; logs what is not the client's."""

    def body_came(self) -> None:
        """See ReceivingRequest: put the inputs into the arena and queue the request."""
        started_ns = monotonic_ns()
        if self.head.is_rows:
            self.decode_s = 0.0
            self._enter_queue(started_ns)
        elif self._rows_lie_in_place():
            self._enter_queue(self._decoded(started_ns))
        elif self.length > self.plan.large_bytes or self.head.encoding:
            self._parse_elsewhere(started_ns)
        else:
            self._parse_here(started_ns)

    def _rows_lie_in_place(self) -> bool:
        """Whether the body is an envelope that is known, and rows that are read where they lie in the arena."""
        envelope, fast = self._envelope(), self.plan.parse
        if not envelope or fast is None:
            return False
        known = fast.read_envelope(envelope, self.length - len(envelope))
        if known is None:
            return False
        self.rows, self._reply, schedule = known
        if schedule is not None:
            self._heed_schedule(schedule)
        self.input_offset += len(envelope)
        return True

    def _envelope(self) -> bytes:
        """What stands before the rows of a body that lies in the arena; nothing when that is not known."""
        nbytes, allocation = self.head.envelope_bytes, self.allocation
        if not nbytes or allocation is None:
            return b""
        return bytes(allocation.inputs[self.input_offset : self.input_offset + nbytes])

    def _parse_here(self, started_ns: int) -> None:
        """Put the inputs of a body of ordinary length into the arena. Raises: ServiceError."""
        plan, dispatcher = self.plan, self.server.dispatcher
        body = self.body
        if self.allocation is not None:
            begin = self.input_offset
            body = bytes(self.allocation.inputs[begin : begin + self.length])
            dispatcher.release(self)
            self.input_offset = 0
        options = self.head.options
        taken = None if plan.parse is None else plan.parse.decode(body, options)
        if taken is not None:
            self.rows, data, self._reply, schedule = taken
            if schedule is not None:
                self._heed_schedule(schedule)
            now_ns = self._decoded(started_ns)
            room = self.queue.layout.output_capacity(self.rows)
            assert room is not None
            dispatcher.reserve(self, len(data), room)[:] = data
        else:
            try:
                parsed = plan.reads.parse(body, plan.served, options)
            except TakesLong:
                self.body = body
                self._parse_elsewhere(started_ns)
                return
            self.rows = plan.served.signature.check_inputs(parsed.inputs)
            self._heed(parsed.outputs, parsed.reply, parsed.schedule)
            if plan.parse is not None and parsed.repeats:
                schedule = parsed.schedule if parsed.schedule != NO_SCHEDULE else None
                plan.parse.learn(body, options, parsed.inputs, parsed.reply, schedule)
            now_ns = self._decoded(started_ns)
            dispatcher.put(self, parsed.inputs, self.rows)
        self.body = b""
        self._enter_queue(now_ns)

    def _heed(self, outputs: tuple[str, ...], reply: Any, schedule: Schedule) -> None:
        """Keep what the body asks for besides its inputs: see ParsedRequest. Raises: BadRequest."""
        self._outputs = outputs
        self._reply = reply
        self._heed_schedule(schedule)

    def _heed_schedule(self, schedule: Schedule) -> None:
        """Keep what the body says of its place in the queue. Raises: BadRequest."""
        self._queue_timeout_us = schedule.queue_timeout_us
        if schedule.priority:
            self.level = self.queue.level_of(schedule.priority, "parameter 'priority' of the request")

    def _parse_elsewhere(self, started_ns: int) -> None:
        """Have the codec process make the inputs of a body that would hold the event loop for too long.

        Raises: ServiceError.
        """
        plan, server = self.plan, self.server
        if self.allocation is None:
            server.dispatcher.reserve(self, self.length, 0)[:] = self.body
            self.body = b""
        envelope = self._envelope()

        def parsed(error: Exception | None) -> None:
            sized = None if self._job is None else self._job.sized
            self._job = None
            if error is None and sized is not None:

                def go_on() -> None:
                    self._heed(sized.outputs, sized.reply, sized.schedule)
                    if envelope and plan.parse is not None:
                        schedule = sized.schedule if sized.schedule != NO_SCHEDULE else None
                        nbytes = self.length - len(envelope)
                        plan.parse.learn_envelope(envelope, nbytes, self.rows, sized.reply, schedule)
                    self._enter_queue(self._decoded(started_ns))

                self.step(go_on)
            else:
                self.refuse(self.codec_error(error))

        head = self.head
        body = Body(self.length, head.options, head.encoding, plan.limit.nbytes)
        self._job = server.codecs.parse(self, plan.reads, body, self.latest_ns(), parsed)

    def _decoded(self, started_ns: int) -> int:
        """The time, CLOCK_MONOTONIC, at which parsing has ended."""
        now_ns = monotonic_ns()
        self.decode_s = (now_ns - started_ns) / 1e9
        return now_ns

    def _enter_queue(self, now_ns: int) -> None:
        """Queue the request, whose inputs are in its memory. Raises ServiceError."""
        dispatcher = self.server.dispatcher
        if self.done:
            dispatcher.release(self)  # its own connection was evicted to make room for it
            return
        queue_ns = self.plan.queue_ns
        if self._queue_timeout_us:
            queue_ns = min(queue_ns, self._queue_timeout_us * 1000)
        self.quota = self.head.quota
        dispatcher.submit(self, now_ns, min(self.latest_ns(), now_ns + queue_ns))
