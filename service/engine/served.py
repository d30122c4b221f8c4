"""What is served, as those see it who ask about it: routes, pages, health. Plain data, and where it comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Protocol

from foldserve.service.artifact.signature import Signature

NOTHING_BROKEN: Final[Mapping[str, str]] = MappingProxyType({})
"""Of Status.broken()."""


@dataclass(frozen=True)
class ServedVersion:
    """One version of a model, as its callers see it.

    backend: "onnxruntime" or "torchscript".
    max_batch_size: rows that one run takes at most (a bigger request is split by the worker); 0 = the model counts
        no rows, and a run takes one request.
    ready: loaded, warmed and in agreement with its reference.
    priority_levels, default_priority_level: of its queue; levels count from 1, which is served first.
    restarting: it was ready, its worker died and is being started again; requests are taken and wait.
    manifest: what /info tells of the artifact (JSON values only); empty when foldserve did not export it.
    """

    version: str
    signature: Signature
    backend: str
    max_batch_size: int
    ready: bool
    manifest: Mapping[str, Any] = field(default_factory=dict)
    restarting: bool = False
    priority_levels: int = 1
    default_priority_level: int = 1


@dataclass(frozen=True)
class ServedBy:
    """One worker's side of a model version; for /info.

    device: "cpu", "cuda:0".
    ready: it has the version loaded, warmed and in agreement with its reference.
    batch_buckets: the batch sizes that it runs, ascending; empty = any up to the batch limit.
    batch_ceiling_rows: rows that a batch may have: max_batch_size, or less where the device had no room for more.
    notes: what an operator should know of how it runs.
    """

    device: str
    ready: bool
    batch_buckets: tuple[int, ...]
    batch_ceiling_rows: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServedModel:
    """A model: its versions by their names, and the one that is used when a request names none."""

    name: str
    default_version: str
    versions: Mapping[str, ServedVersion]

    @property
    def ready(self) -> bool:
        """Whether every version to be served is ready."""
        return all(version.ready for version in self.versions.values())


class Status(Protocol):
    """What is served, at this moment. All methods are called on the event loop of one API server."""

    def ready(self) -> bool:
        """Whether every model to be served is ready and the server is not draining."""
        ...

    def draining(self) -> bool:
        """Whether shutdown has begun: readiness is off, requests may still be served for the grace time."""
        ...

    def models(self) -> Mapping[str, ServedModel]:
        """Every model, by name. May be a new mapping at each call; must be cheap."""
        ...

    def broken(self) -> Mapping[str, str]:
        """Why what is to be served and cannot be is not: by "model", or "model/version" where others are served."""
        ...

    def served_by(self, model: str, version: str) -> Sequence[ServedBy]:
        """Every worker's side of a model version."""
        ...
