"""What is served at this moment: the repository's models with what the scoreboard says of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from foldserve.service.engine.dispatcher import Dispatcher
from foldserve.service.engine.model_queue import ModelQueue
from foldserve.service.engine.models import Models, QueuedVersion
from foldserve.service.engine.served import NOTHING_BROKEN, ServedBy, ServedModel, ServedVersion
from foldserve.service.ipc.scoreboard import READY
from foldserve.service.repository.buckets import buckets_for


class BoardStatus:
    """Implements served.Status.

    Args:
        models: every version as it would be if it were ready; what is ready now stands on the scoreboard.
        devices: each worker's.
        broken: see served.Status.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        models: Models,
        devices: Sequence[str],
        broken: Mapping[str, str] = NOTHING_BROKEN,
    ) -> None:
        self._dispatcher = dispatcher
        self._broken = broken
        self._models = models
        self._devices = tuple(devices)
        self._seen: tuple[object, ...] = ()
        self._view: dict[str, ServedModel] = {}

    def ready(self) -> bool:
        """Whether every model is ready and the server is not draining."""
        loaded = self._dispatcher.loaded
        return not self.draining() and not self._broken and all(map(loaded, self._models.queues()))

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
        """See served.Status."""
        return self._broken

    def _as_of_now(self, version: QueuedVersion) -> ServedVersion:
        state = self._state(version.queue)
        if state is None:
            return replace(version.served, ready=True)
        restarting, problem = state
        manifest = {**version.served.manifest, "problem": problem}
        return replace(version.served, ready=False, restarting=restarting, manifest=manifest)

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
        """See served.Status."""
        found = self._models.of_name(model, version)
        if found is None:
            return []  # it was unloaded a moment ago
        board, queue = self._dispatcher.board, found.queue
        return [
            ServedBy(
                device=device,
                ready=board.ready[worker, queue.row] == READY,
                batch_buckets=buckets_for(device, found.buckets, queue.max_batch_size),
                batch_ceiling_rows=board.batch_limit_rows[worker, queue.row] or queue.max_batch_size,
                notes=tuple(board.notes(worker, queue.row)),
            )
            for worker, device in enumerate(self._devices)
        ]
