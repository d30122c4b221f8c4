"""What the protocol's calls tell besides inference, as documents: the same over REST (calls.py) and over gRPC
(frontend/grpc/calls.py)."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version as distribution_version
from typing import Any, Final

from foldserve.service.engine.served import ServedModel, ServedVersion, Status
from foldserve.service.errors import NotReady
from foldserve.service.metrics.counts import ModelCounts, nothing_counted
from foldserve.service.protocols.lookup import check_not_draining, find_model, find_version
from foldserve.service.protocols.oip.documents import model_config, model_metadata
from foldserve.service.protocols.oip.shared_memory import EXTENSION as SHARED_MEMORY
from foldserve.service.protocols.oip.statistics import statistics

_EXTENSIONS: Final = (
    "classification",
    "schedule_policy",
    "model_configuration",
    SHARED_MEMORY,
    "binary_tensor_data",
    "parameters",
    "statistics",
)
"""Those of Triton's that are served, in its order."""

Counts = Callable[[], Awaitable[Mapping[tuple[str, str], ModelCounts]]]
"""What was counted, by model and version."""


@dataclass(frozen=True)
class Information:
    """Of one API server. model: by name; version: None for the default one. Methods raise ServiceError.

    shared_memory: whether that of clients is read and written.
    """

    status: Status
    counts: Counts
    shared_memory: bool = False

    def find(self, model: str, version: str | None) -> tuple[ServedModel, ServedVersion]:
        """The model version that a call asks for."""
        found = find_model(self.status, model, None)
        return found, find_version(self.status, found, version)

    def server(self) -> dict[str, Any]:
        """Metadata of the server."""
        return {
            "name": "foldserve",
            "version": distribution_version("foldserve"),
            "extensions": [one for one in _EXTENSIONS if self.shared_memory or one != SHARED_MEMORY],
        }

    def check_model_ready(self, model: str, version: str | None) -> str:
        """The model's name. Raises: NotReady, Draining unless it is ready."""
        found, chosen = self.find(model, version)
        check_not_draining(self.status)
        if not chosen.ready:
            why = chosen.manifest.get("problem", "loading")
            raise NotReady(f"version {chosen.version} of model {found.name!r} is not ready: {why}")
        return found.name

    def metadata(self, model: str, version: str | None) -> dict[str, Any]:
        """Metadata of a model."""
        return model_metadata(*self.find(model, version))

    def config(self, model: str, version: str | None) -> dict[str, Any]:
        """Its ModelConfig."""
        found, chosen = self.find(model, version)
        return model_config(found, chosen, self.status.served_by(found.name, chosen.version))

    async def statistics(self, model: str | None, version: str | None) -> dict[str, Any]:
        """Statistics of every model, of every version of a model, or of one."""
        if model is None:
            asked = [
                (name, one)
                for name, served in sorted(self.status.models().items())
                for one in served.versions
            ]
        else:
            found = find_model(self.status, model, None)
            chosen = (
                found.versions if version is None else (find_version(self.status, found, version).version,)
            )
            asked = [(found.name, one) for one in chosen]
        counted = await self.counts()
        return {"model_stats": [statistics(counted.get(key) or nothing_counted(*key)) for key in asked]}

    def index(self, ready_only: bool) -> list[dict[str, Any]]:
        """Every version, its state and the reason for it."""
        listed: list[dict[str, Any]] = []
        for name, model in sorted(self.status.models().items()):
            for version in model.versions.values():
                state = "READY" if version.ready else "LOADING"
                reason = "" if version.ready else str(version.manifest.get("problem", ""))
                listed.append({"name": name, "version": version.version, "state": state, "reason": reason})
        for broken, problem in sorted(self.status.broken().items()):
            name, _, number = broken.partition("/")
            of_version = {"version": number} if number else {}
            listed.append({"name": name, **of_version, "state": "UNAVAILABLE", "reason": problem})
        return [one for one in listed if not ready_only or one["state"] == "READY"]
