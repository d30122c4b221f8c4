"""One inference request, on every path: from the dispatcher's record to the answer, and its end.

Whoever carries bytes between a client and the server (a Responder) makes one when a head is there, feeds it the body
(receiving.py, parsing.py) and is given one response. Its protocols decide what the bytes mean (codecs/protocol.py). To
the dispatcher it is what is queued. It may be cancelled at any time, and ends once: _finish().

Owned by the event loop thread.
"""

import logging
from collections.abc import Mapping
from time import monotonic_ns
from typing import Final, Protocol, final

import numpy as np

from foldserve.service.codecs.encoded import LaidOut
from foldserve.service.codecs.fast.codec import Answer
from foldserve.service.engine.codec_process import LARGE_COPY_BYTES
from foldserve.service.engine.codec_process.rendering_time import AT_ONCE_NS
from foldserve.service.errors import Internal, ServiceError
from foldserve.service.inference.context import CLIENT_GONE, RequestContext
from foldserve.service.inference.parsing import ParsingRequest
from foldserve.service.inference.plan import RequestHead
from foldserve.service.inference.response import Response, error_response
from foldserve.service.inference.server_context import ServerContext
from foldserve.service.logs.limits import with_id
from foldserve.service.metrics.catalog import STAGES

_log = logging.getLogger("foldserve.inference")


class Responder(Protocol):
    """What carries a request's response to its client."""

    def respond(self, request: "InferenceRequest", response: Response) -> None:
        """Send it. What has a `rest` is sent as quickly as the client takes it, and then request.sent() called."""
        ...


class _Nobody:
    """In the responder's place when the request is done."""

    def respond(self, request: "InferenceRequest", response: Response) -> None:
        """Nothing is sent twice."""
        raise AssertionError("the request is done")


_NOBODY: Final = _Nobody()


@final
class InferenceRequest(ParsingRequest):
    """One request, from its head to its end."""

    # Values until they are set, as in PendingRequest.
    encode_s = -1.0
    """Seconds of rendering; negative until the answer is rendered."""
    _id = b""
    _completed = False
    _renders = False
    """Its job is to make its answer."""

    def __init__(self, server: ServerContext, head: RequestHead, responder: Responder) -> None:
        super().__init__(server, head)
        self._responder = responder
        self._job = None

    @property
    def request_id(self) -> str:
        """The id that the response carries."""
        return self.id_bytes().decode()

    def id_bytes(self) -> bytes:
        """The client's own id where it gave a good one, else one of ours."""
        if not self._id:
            self._id = self.head.request_id or self.server.ids.make()
        return self._id

    # -- out of the queue

    def completed(self, error: ServiceError | None) -> None:
        """See PendingRequest."""
        self._completed = True
        if error is not None:
            self._fail(error)
            return
        started_ns = monotonic_ns()
        plan, dispatcher = self.plan, self.server.dispatcher
        answer: Answer | None = None
        try:
            outputs = dispatcher.outputs(self)
            names = self._outputs or plan.outputs
            if names:
                outputs = {name: outputs[name] for name in names}
            assert self.allocation is not None
            if len(self.allocation.outputs) > plan.at_once_bytes and self._respond_in_parts(
                outputs, started_ns
            ):
                return
            if plan.render is not None:
                (output,) = outputs.values()
                answer = plan.render.encode(output, self._reply)
            if answer is None:
                made = plan.writes.render(plan.served, outputs, self._reply)
                answer = (made.media_type, made.body, made.headers)
            media_type, body, headers = answer
        except ServiceError as unencodable:
            self.refuse(unencodable)
            return
        except Exception:
            self.refuse(self.fault())
            return
        dispatcher.release(self)
        self.encode_s = (monotonic_ns() - started_ns) / 1e9
        self._respond(Response(200, body, media_type, headers))
        self._finish(200, None)

    def _respond_in_parts(self, outputs: Mapping[str, np.ndarray], started_ns: int) -> bool:
        """Respond without a copy of the whole, or by way of the codec process, which writes the numbers anew. False for
        what can be written at once."""
        plan = self.plan
        if plan.writes.render_ns(plan.served, outputs, self._reply) <= AT_ONCE_NS:
            return False
        laid = plan.writes.lay_out(plan.served, outputs, self._reply)
        if laid is not None:
            if len(laid.numbers) <= LARGE_COPY_BYTES:
                return False
            self._respond_from_arena(laid, started_ns)
            return True

        def rendered(error: Exception | None) -> None:
            made = None if self._job is None else self._job.sized
            self._end_job()
            allocation = self.allocation
            if error is None and allocation is not None and made is not None:
                laid = LaidOut(made.media_type, b"", allocation.inputs, made.headers)
                self.step(lambda: self._respond_from_arena(laid, started_ns))
            else:
                self.refuse(self.codec_error(error))

        names, reply = list(outputs), self._reply
        self._job = self.server.codecs.render(self, plan.writes, names, reply, self.latest_ns(), rendered)
        self._renders = True
        self.queue.rendering += 1
        return True

    def _end_job(self) -> None:
        """The codec process has finished with it, or does not have to."""
        self._job = None
        if self._renders:
            self._renders = False
            self.server.dispatcher.rendered(self.queue)

    def _respond_from_arena(self, laid: LaidOut, started_ns: int) -> None:
        """Respond with what lies in the arena, which is kept until sent() or cancel()."""
        allocation = self.allocation
        assert allocation is not None
        self.encode_s = (monotonic_ns() - started_ns) / 1e9
        nbytes = len(allocation.inputs) + len(allocation.outputs)
        response = Response(200, laid.prefix, laid.media_type, laid.headers, False, laid.numbers, nbytes)
        self._responder.respond(self, response)

    def sent(self) -> None:
        """The last of the response's rest was given to the client's connection."""
        self.server.dispatcher.release(self)
        self._finish(200, None)

    # -- the end

    def cancel(self) -> None:
        """The client is gone."""
        if not self.done:
            self.end_waiting()
            if self._job is not None:
                self._job.cancel()
                self._end_job()
            self.server.dispatcher.cancel(self)
            self._finish(CLIENT_GONE, None)

    def refuse(self, error: ServiceError) -> None:
        """See ReceivingRequest."""
        if self.done:
            return  # its own connection was evicted to make room for it
        if self._job is not None:
            self._job.cancel()  # else its result would stay in memory that nobody frees
            self._end_job()
        self.server.dispatcher.cancel(
            self
        )  # not released: were it queued, a worker could still touch its memory
        self._fail(error)

    def _fail(self, error: ServiceError) -> None:
        self.end_waiting()
        self._respond(error_response(error, self.plan.writes.render_error(error)))
        self._finish(error.status, error.code)

    def _respond(self, response: Response) -> None:
        """Give the client's connection the whole response."""
        self.done = True
        self._responder.respond(self, response)

    def _finish(self, status: int, error_code: str | None) -> None:
        """Count the request, and notify the observers. Once."""
        self.done = True
        self._responder = _NOBODY
        duration_s = (monotonic_ns() - self.began_ns) / 1e9
        observers = self.server.observers
        gone = self.queue.closed and self.server.dispatcher.queues.get(self.queue.row) is not self.queue
        if status == 200 and not gone:  # counted in bulk, by its row: metrics/request_ring.py
            queue_s, gather_s, run_s, scatter_s = self.stages_s
            self.plan.counter(
                duration_s, self.rows, self.decode_s, queue_s, gather_s, run_s, scatter_s, self.encode_s
            )
            if observers.others:
                observers.notify(self.context(), status, duration_s)
            return
        context = self.context()
        context.error_code = error_code
        observers.finished(context, status, duration_s)

    def context(self) -> RequestContext:
        """What is known of it."""
        target, queue = self.head.target, self.queue
        context = RequestContext(target.method, target.path, target.query[1:], {}, request_id=self.request_id)
        context.route, context.model, context.version = target.pattern, queue.model, queue.version
        context.protocol = self.plan.reads.name
        context.key = self.head.key_name
        context.rows, context.batch_rows = self.rows, self.batch_rows
        context.body_bytes = 0 if self.missing else self.length
        if self.decode_s >= 0.0:
            context.stages_s["decode"] = self.decode_s
        if self._completed:
            context.stages_s.update(zip(STAGES[1:5], self.stages_s, strict=True))
        if self.encode_s >= 0.0:
            context.stages_s["encode"] = self.encode_s
        return context

    # -- errors

    def codec_error(self, error: Exception | None) -> ServiceError:
        """See ParsingRequest."""
        if isinstance(error, ServiceError):
            return error
        _log.error("request %s failed: %s", self.request_id, error, extra=with_id(self.request_id))
        return self._internal_error()

    def fault(self) -> Internal:
        """See ReceivingRequest."""
        _log.exception(
            "request %s failed: %s %s",
            *(self.request_id, self.head.target.method, self.head.target.path[:200]),
            extra=with_id(self.request_id),
        )
        return self._internal_error()

    def _internal_error(self) -> Internal:
        return Internal(f"the server failed on this request; its log says why, under id {self.request_id}")
