"""The models that one API server takes requests for: views of the model table's rows, by row and by name.

Owned by the event loop thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from foldserve.service.engine.model_queue import ModelQueue
from foldserve.service.engine.served import ServedVersion


@dataclass(frozen=True)
class QueuedVersion:
    """One version: its queue, what the frontend shows of it but for its state, and its batch_buckets as configured."""

    queue: ModelQueue
    served: ServedVersion
    buckets: Sequence[int]


class Models:
    """by_model: each model's versions, ascending: the last is used when a request names none.

    changes: how often it changed; whoever keeps what is made of it looks at that.
    """

    def __init__(self) -> None:
        self.changes = 0
        self.by_model: dict[str, list[QueuedVersion]] = {}
        self._rows: dict[int, QueuedVersion] = {}
        self._names: dict[tuple[str, str], QueuedVersion] = {}

    def add(self, version: QueuedVersion) -> None:
        """Have a version in its row."""
        self._rows[version.queue.row] = version
        self._changed()

    def remove(self, version: QueuedVersion) -> None:
        """Have it no longer."""
        del self._rows[version.queue.row]
        self._changed()

    def of_row(self, row: int) -> QueuedVersion | None:
        """The version in a row."""
        return self._rows.get(row)

    def of_name(self, model: str, version: str) -> QueuedVersion | None:
        """A model's version."""
        return self._names.get((model, version))

    def queues(self) -> list[ModelQueue]:
        """Of every version."""
        return [version.queue for version in self._rows.values()]

    def _changed(self) -> None:
        self.changes += 1
        self._names = {(one.queue.model, one.queue.version): one for one in self._rows.values()}
        self.by_model = {}
        for version in sorted(self._rows.values(), key=lambda one: int(one.queue.version)):
            self.by_model.setdefault(version.queue.model, []).append(version)
