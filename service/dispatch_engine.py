"""The Engine that the front awaits, over this API server's dispatcher: the long way of a request."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from service.buckets import buckets_for
from service.dispatch import Dispatcher
from service.engine import ServedBy, ServedModel, ServedVersion
from service.errors import NotReady, ServiceError
from service.outcome import Outcome, StageTimes
from service.repository import ModelEntry
from service.ticketed import Lane, Ticketed
from service.transport.board import READY


class DispatchEngine:
    """Implements engine.Engine.

    Args:
        models: every model as it would be if it were ready; what is ready now stands on the board.
        devices: each worker's.
        buckets: each lane's batch_buckets as configured.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        models: Sequence[ServedModel],
        devices: Sequence[str],
        buckets: Sequence[Sequence[int]],
    ) -> None:
        self._dispatcher = dispatcher
        self._models = {model.name: model for model in models}
        self._devices = tuple(devices)
        self._buckets = tuple(buckets)
        self._lanes = {(lane.model, lane.version): lane for lane in dispatcher.lanes}
        self._seen: tuple[tuple[bool, bool], ...] = ()
        self._view: dict[str, ServedModel] = {}

    async def infer(
        self, model: str, version: str, inputs: dict[str, np.ndarray], rows: int, timeout_s: float | None
    ) -> Outcome:
        """Run one request, as engine.Engine says. The model's own timeout bounds it too."""
        dispatcher, lane = self._dispatcher, self._lanes[model, version]
        if not dispatcher.ready(lane):
            raise NotReady(f"model {model!r} version {version} is not ready; GET /info tells its state")
        request = _Awaited(lane)
        dispatcher.put(request, inputs, rows)
        allowed_s = lane.timeout_s if timeout_s is None else min(timeout_s, lane.timeout_s)
        try:
            now_ns = time.monotonic_ns()
            dispatcher.submit(request, now_ns, now_ns + int(allowed_s * 1e9))
        except ServiceError:
            dispatcher.release(request)
            raise
        try:
            error = await request.over
        except asyncio.CancelledError:
            dispatcher.cancel(request)
            raise
        if error is not None:
            return Outcome(None, error, StageTimes(*request.stages_s), request.batch_rows)
        outputs = {name: array.copy() for name, array in dispatcher.outputs(request).items()}
        dispatcher.release(request)
        return Outcome(outputs, None, StageTimes(*request.stages_s), request.batch_rows)

    def ready(self) -> bool:
        """Whether every model is ready and the server is not draining."""
        return not self.draining() and all(self.ready_lanes())

    def draining(self) -> bool:
        """Whether shutdown has begun."""
        return bool(self._dispatcher.board.draining[0])

    def models(self) -> Mapping[str, ServedModel]:
        """Every model, with what is ready now."""
        lanes = self._dispatcher.lanes
        seen = tuple((self._dispatcher.loaded(lane), self._dispatcher.ready(lane)) for lane in lanes)
        if seen != self._seen or not self._view:
            self._seen = seen
            now = dict(zip(self._lanes, seen, strict=True))
            self._view = {model.name: self._as_of(model, now) for model in self._models.values()}
        return self._view

    def _as_of(self, model: ServedModel, now: Mapping[tuple[str, str], tuple[bool, bool]]) -> ServedModel:
        versions = {
            name: replace(version, ready=True)
            if now[model.name, name][0]
            else replace(
                version,
                ready=False,
                returning=now[model.name, name][1],
                manifest={**version.manifest, "problem": self._problem(model.name, name)},
            )
            for name, version in model.versions.items()
        }
        return replace(model, versions=versions)

    def _problem(self, model: str, version: str) -> str:
        """Why no worker serves it."""
        board, lane = self._dispatcher.board, self._lanes[model, version]
        notes = [board.note(worker, lane.index) for worker in range(board.dimensions.workers)]
        return next((note for note in notes if note), "loading")

    def served_by(self, model: str, version: str) -> list[ServedBy]:
        """See engine.Engine."""
        board, lane = self._dispatcher.board, self._lanes[model, version]
        return [
            ServedBy(
                device=device,
                ready=board.ready[worker, lane.index] == READY,
                batch_buckets=buckets_for(device, self._buckets[lane.index], lane.max_batch_size),
                batch_ceiling_rows=board.ceiling_rows[worker, lane.index] or lane.max_batch_size,
                notes=tuple(board.remarks(worker, lane.index)),
            )
            for worker, device in enumerate(self._devices)
        ]

    def ready_lanes(self) -> tuple[bool, ...]:
        """Whether some worker serves each lane at this moment."""
        return tuple(self._dispatcher.loaded(lane) for lane in self._dispatcher.lanes)


class _Awaited(Ticketed):
    """A request whose owner is a coroutine."""

    __slots__ = ("over",)

    def __init__(self, lane: Lane) -> None:
        super().__init__(lane)
        self.over: asyncio.Future[ServiceError | None] = asyncio.get_running_loop().create_future()

    @property
    def request_id(self) -> str:
        """The long way keeps the id to itself."""
        return "(of the long way)"

    def settled(self, error: ServiceError | None) -> None:
        """See Ticketed."""
        if not self.over.done():
            self.over.set_result(error)


def served_models(entries: Sequence[ModelEntry]) -> list[ServedModel]:
    """What a repository's models look like to the front; nothing is ready yet."""
    return [
        ServedModel(
            entry.name,
            entry.default_version,
            {
                artifact.version: ServedVersion(
                    version=artifact.version,
                    signature=artifact.signature,
                    backend=artifact.backend,
                    max_batch_size=artifact.max_batch_size,
                    ready=False,
                    manifest=artifact.summary(),
                )
                for artifact in entry.artifacts
            },
        )
        for entry in entries
    ]
