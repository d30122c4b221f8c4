"""One version of one model as the server's processes are given it: through the model table, whole and checked.

The supervisor reads a version's folder once; what every process then loads and serves is what was read, whatever
becomes of the folder.
"""

import pickle
from collections.abc import Iterable
from dataclasses import dataclass

from foldserve.service.ipc.model_table import MappedModelTable, ModelKey
from foldserve.service.repository.artifact import Artifact
from foldserve.service.repository.index import ModelEntry
from foldserve.service.repository.model_config import ModelConfig


@dataclass(frozen=True)
class ModelVersion:
    """A version that is to be served, with its model's config."""

    config: ModelConfig
    artifact: Artifact

    def add_to(self, table: MappedModelTable) -> ModelKey:
        """Put it into the table. Raises: what ModelTable.add raises."""
        artifact = self.artifact
        return table.add(artifact.model, artifact.version, pickle.dumps(self), artifact.max_batch_size)


def read_version(table: MappedModelTable, key: ModelKey) -> ModelVersion | None:
    """What the table has of a version; None when its row is another's by now."""
    spec = table.spec(key)
    if spec is None:
        return None
    version: ModelVersion = pickle.loads(spec)  # our own supervisor's
    return version


def versions_of(entries: Iterable[ModelEntry]) -> list[ModelVersion]:
    """Every version of these models, in their order."""
    return [ModelVersion(entry.config, artifact) for entry in entries for artifact in entry.artifacts]
