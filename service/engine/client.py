"""The Engine that the front awaits, over this API server's dispatcher: the long way of a request."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from service.codecs import BodyType, Encoded, TensorHeaders, lay_out
from service.engine.codec_process import LARGE_ANSWER_BYTES, PIECE_BYTES
from service.engine.codec_process.client import CodecProcess, Job
from service.engine.dispatcher import Dispatcher
from service.engine.interface import NOTHING_BROKEN, Filled, ServedBy, ServedModel, ServedVersion
from service.engine.model_queue import ModelQueue
from service.engine.models import Models, QueuedVersion
from service.engine.outcome import Outcome, StageTimes
from service.engine.request import NO_BOUND_S, Ticketed
from service.errors import NotReady, ServiceError
from service.ipc.scoreboard import READY
from service.repository.buckets import buckets_for


class DispatchEngine:
    """Implements engine.Engine.

    Args:
        models: every model as it would be if it were ready; what is ready now stands on the board.
        devices: each worker's.
        broken: see engine.Engine.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        codecs: CodecProcess,
        models: Models,
        devices: Sequence[str],
        broken: Mapping[str, str] = NOTHING_BROKEN,
    ) -> None:
        self._dispatcher = dispatcher
        self._codecs = codecs
        self._broken = broken
        self._models = models
        self._devices = tuple(devices)
        self._seen: tuple[object, ...] = ()
        self._view: dict[str, ServedModel] = {}

    async def fill(
        self,
        model: str,
        version: str,
        kind: BodyType,
        parts: list[bytes | bytearray],
        headers: TensorHeaders | None,
        timeout_s: float | None,
        request_id: str,
    ) -> "_Awaited":
        """See engine.Engine."""
        dispatcher, queue = self._dispatcher, self._queue(model, version)
        request = _Awaited(queue, request_id)
        nbytes = sum(map(len, parts))
        memory = dispatcher.reserve(request, nbytes, 0)
        at = copied = 0
        try:
            for number, part in enumerate(parts):
                memory[at : at + len(part)] = part
                at += len(part)
                parts[number] = b""
                if at - copied >= PIECE_BYTES:
                    copied = at
                    await asyncio.sleep(0)
            parts.clear()
            await _done(
                lambda then: self._codecs.decode(
                    request, kind, nbytes, headers, _deadline_ns(timeout_s), then
                )
            )
        except BaseException:
            dispatcher.release(request)
            raise
        request.give_up = lambda: dispatcher.release(request)
        return request

    async def encode(
        self, held: Outcome, kind: BodyType, names: Sequence[str], timeout_s: float | None
    ) -> Encoded:
        """See engine.Engine."""
        dispatcher, request = self._dispatcher, held.held
        assert isinstance(request, _Awaited)
        assert held.outputs is not None
        try:
            if kind is BodyType.JSON:
                await _done(lambda then: self._codecs.encode(request, names, _deadline_ns(timeout_s), then))
                assert request.place is not None
                return Encoded(kind, b"", (), await _pieces(request.place.inputs))
            outputs = {name: held.outputs[name] for name in names}
            laid = lay_out(kind, outputs, request.queue.layout.signature)
            return Encoded(kind, laid.prefix, laid.headers, await _pieces(laid.numbers))
        finally:
            dispatcher.release(request)

    def _queue(self, model: str, version: str) -> ModelQueue:
        """The queue of a version that takes requests. Raises NotReady."""
        found = self._models.of_name(model, version)
        if found is None or not self._dispatcher.ready(found.queue):
            raise NotReady(f"model {model!r} version {version} is not ready; GET /info tells its state")
        return found.queue

    async def infer(
        self,
        model: str,
        version: str,
        inputs: "dict[str, np.ndarray] | Filled",
        rows: int,
        timeout_s: float | None,
        request_id: str,
    ) -> Outcome:
        """Run one request, as engine.Engine says. The model's own timeout bounds it too."""
        dispatcher, queue = self._dispatcher, self._queue(model, version)
        if isinstance(inputs, dict):
            request = _Awaited(queue, request_id)
            dispatcher.put(request, inputs, rows)
            inputs.clear()
        else:
            assert isinstance(inputs, _Awaited)
            request = inputs
        try:
            dispatcher.submit(request, time.monotonic_ns(), _deadline_ns(timeout_s, queue.timeout_s))
        except ServiceError:
            dispatcher.release(request)
            raise
        try:
            error = await request.over
        except asyncio.CancelledError:
            dispatcher.cancel(request)
            raise
        stages = StageTimes(*request.stages_s)
        if error is not None:
            return Outcome(None, error, stages, request.batch_rows)
        views = dispatcher.outputs(request)
        if sum(array.nbytes for array in views.values()) > LARGE_ANSWER_BYTES:
            return Outcome(views, None, stages, request.batch_rows, held=request)
        outputs = {name: array.copy() for name, array in views.items()}
        dispatcher.release(request)
        return Outcome(outputs, None, stages, request.batch_rows)

    def ready(self) -> bool:
        """Whether every model is ready and the server is not draining."""
        return (
            not self.draining()
            and not self._broken
            and all(map(self._dispatcher.loaded, self._models.queues()))
        )

    def draining(self) -> bool:
        """Whether shutdown has begun."""
        return bool(self._dispatcher.board.draining[0])

    def models(self) -> Mapping[str, ServedModel]:
        """Every model, with what is ready now."""
        models = self._models
        seen = (models.changes, *map(self._state, models.queues()))
        if seen != self._seen:
            self._seen = seen
            self._view = {
                name: ServedModel(
                    name,
                    versions[-1].queue.version,
                    {version.queue.version: self._as_of_now(version) for version in versions},
                )
                for name, versions in models.by_model.items()
            }
        return self._view

    def broken(self) -> Mapping[str, str]:
        """See engine.Engine."""
        return self._broken

    def _as_of_now(self, version: QueuedVersion) -> ServedVersion:
        state = self._state(version.queue)
        if state is None:
            return replace(version.served, ready=True)
        returning, problem = state
        manifest = {**version.served.manifest, "problem": problem}
        return replace(version.served, ready=False, returning=returning, manifest=manifest)

    def _state(self, queue: ModelQueue) -> tuple[bool, str] | None:
        """Whether requests wait for it, and why no worker serves it; None where one does."""
        if self._dispatcher.loaded(queue):
            return None
        return self._dispatcher.ready(queue), self._problem(queue)

    def _problem(self, queue: ModelQueue) -> str:
        """Why no worker serves it."""
        board = self._dispatcher.board
        notes = [board.load_error(worker, queue.row) for worker in range(board.dimensions.workers)]
        return next((note for note in notes if note), "loading")

    def served_by(self, model: str, version: str) -> list[ServedBy]:
        """See engine.Engine."""
        found = self._models.of_name(model, version)
        if found is None:
            return []  # it was unloaded a moment ago
        board, queue = self._dispatcher.board, found.queue
        return [
            ServedBy(
                device=device,
                ready=board.ready[worker, queue.row] == READY,
                batch_buckets=buckets_for(device, found.buckets, queue.max_batch_size),
                batch_ceiling_rows=board.ceiling_rows[worker, queue.row] or queue.max_batch_size,
                notes=tuple(board.notes(worker, queue.row)),
            )
            for worker, device in enumerate(self._devices)
        ]


def _deadline_ns(timeout_s: float | None, bound_s: float = NO_BOUND_S) -> int:
    """CLOCK_MONOTONIC when the time of a request is over that has so many seconds from now, and no more than
    bound_s."""
    allowed_s = bound_s if timeout_s is None else min(timeout_s, bound_s)
    return time.monotonic_ns() + int(allowed_s * 1e9)


async def _done(begin: Callable[[Callable[[Exception | None], None]], Job]) -> None:
    """Wait for a job of the codec process. Cancelled, the job is given up."""
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def then(error: Exception | None) -> None:
        if over.done():
            return
        if error is None:
            over.set_result(None)
        else:
            over.set_exception(error)

    job = begin(then)
    try:
        await over
    except asyncio.CancelledError:
        job.give_up()
        raise


async def _pieces(memory: memoryview) -> deque[bytes]:
    """A copy, of which each turn of the event loop makes a piece."""
    pieces: deque[bytes] = deque()
    for at in range(0, len(memory), PIECE_BYTES):
        pieces.append(bytes(memory[at : at + PIECE_BYTES]))
        await asyncio.sleep(0)
    return pieces


class _Awaited(Ticketed):
    """A request whose owner is a coroutine."""

    __slots__ = ("_id", "give_up", "over")

    def __init__(self, queue: ModelQueue, request_id: str) -> None:
        super().__init__(queue)
        self._id = request_id
        self.give_up: Callable[[], None]
        """Set by fill()."""
        self.over: asyncio.Future[ServiceError | None] = asyncio.get_running_loop().create_future()

    @property
    def request_id(self) -> str:
        """For logs."""
        return self._id

    def settled(self, error: ServiceError | None) -> None:
        """See Ticketed."""
        if not self.over.done():
            self.over.set_result(error)
