"""What is served at this moment: the repository's models with what the board says of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from foldserve.service.engine.dispatcher import Dispatcher
from foldserve.service.engine.served import NOTHING_BROKEN, ServedBy, ServedModel, ServedVersion
from foldserve.service.ipc.scoreboard import READY
from foldserve.service.repository.buckets import buckets_for
from foldserve.service.repository.index import ModelEntry


class BoardStatus:
    """Implements served.Status.

    Args:
        models: every model as it would be if it were ready; what is ready now stands on the board.
        devices: each worker's.
        buckets: each lane's batch_buckets as configured.
        broken: see served.Status.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        models: Sequence[ServedModel],
        devices: Sequence[str],
        buckets: Sequence[Sequence[int]],
        broken: Mapping[str, str] = NOTHING_BROKEN,
    ) -> None:
        self._dispatcher = dispatcher
        self._broken = broken
        self._models = {model.name: model for model in models}
        self._devices = tuple(devices)
        self._buckets = tuple(buckets)
        self._lanes = {(lane.model, lane.version): lane for lane in dispatcher.lanes}
        self._seen: tuple[tuple[bool, bool], ...] = ()
        self._view: dict[str, ServedModel] = {}

    def ready(self) -> bool:
        """Whether every model is ready and the server is not draining."""
        return not self.draining() and not self._broken and all(self.ready_lanes())

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

    def broken(self) -> Mapping[str, str]:
        """See served.Status."""
        return self._broken

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
        """See served.Status."""
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


def served_models(entries: Sequence[ModelEntry]) -> list[ServedModel]:
    """A repository's models; nothing is ready yet."""
    return [
        ServedModel(
            entry.name,
            entry.default_version,
            {
                artifact.version: ServedVersion(
                    version=artifact.version,
                    signature=artifact.signature,
                    backend=artifact.backend,
                    max_batch_size=artifact.max_batch_size if artifact.signature.counts_rows else 0,
                    ready=False,
                    manifest=artifact.summary(),
                )
                for artifact in entry.artifacts
            },
        )
        for entry in entries
    ]
