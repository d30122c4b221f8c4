"""The one door between the front (HTTP) and the back (queues, workers, models).

The front knows nothing of what is behind it: it checks a request, awaits infer(), answers. The back knows
nothing of HTTP. Tests of the front put a small engine of numpy functions here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Protocol

import numpy as np

from service.artifact.signature import Signature
from service.codecs import BodyType, Encoded, TensorHeaders
from service.engine.outcome import Outcome

NOTHING_BROKEN: Final[Mapping[str, str]] = MappingProxyType({})
"""Of Engine.broken()."""


@dataclass(frozen=True)
class ServedVersion:
    """One version of a model, as the front sees it.

    backend: "onnxruntime" or "torchscript".
    max_batch_size: rows that one run takes at most (a bigger request is split behind the engine); 0 = the model counts
        no rows, and a run takes one request.
    ready: loaded, warmed and in agreement with its reference.
    returning: it was ready, its worker died and is being started again; requests are taken and wait.
    manifest: what /info tells of the artifact (JSON values only); empty when foldserve did not export it.
    """

    version: str
    signature: Signature
    backend: str
    max_batch_size: int
    ready: bool
    manifest: Mapping[str, Any] = field(default_factory=dict)
    returning: bool = False


@dataclass(frozen=True)
class ServedBy:
    """One worker's side of a model version; for /info.

    device: "cpu", "cuda:0".
    ready: it has the version loaded, warmed and in agreement with its reference.
    batch_buckets: the batch sizes that it runs, ascending; empty = any up to the ceiling.
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


class Filled(Protocol):
    """The inputs of a large body, made by Engine.fill(); for Engine.infer(), or to be given up."""

    rows: int

    def give_up(self) -> None:
        """It will not be run."""
        ...


class Engine(Protocol):
    """Runs requests. All methods are called on the event loop of one API server.

    What is large (codec_process/) takes a way of its own, on which nothing of its size is done at once: its
    inputs are made by fill(), and outputs that infer() leaves held become an answer by encode().
    """

    async def fill(
        self,
        model: str,
        version: str,
        kind: BodyType,
        parts: list[bytes | bytearray],
        headers: TensorHeaders | None,
        timeout_s: float | None,
        request_id: str,
    ) -> Filled:
        """Make the inputs of a body that came in these parts, and leave the list empty.

        Raises: ServiceError; what decoding and Signature.check_inputs raise too.
        """
        ...

    async def encode(
        self, held: Outcome, kind: BodyType, names: Sequence[str], timeout_s: float | None
    ) -> Encoded:
        """The answer of an outcome whose outputs are held; they are held no longer, however this ends."""
        ...

    async def infer(
        self,
        model: str,
        version: str,
        inputs: dict[str, np.ndarray] | Filled,
        rows: int,
        timeout_s: float | None,
        request_id: str,
    ) -> Outcome:
        """Run one request and return its outcome.

        Args:
            model, version: a name and a version out of models().
            inputs: arrays that Signature.check_inputs has passed, C-contiguous and little-endian; possibly
                read-only views of the request's body, so they must not be written to. The dict is emptied as soon as
                they are not needed, so that nothing of the body stays while the request waits. Or what fill() made.
            rows: what check_inputs returned.
            timeout_s: seconds from now in which the answer is wanted; None = no bound.
            request_id: the request's name in logs.
        Raises: ServiceError when the request is refused before it is queued (QueueFull, NotReady, Draining,
            DeadlinePassed). What goes wrong later is in the outcome's error; raising it is allowed too.
        Cancelling the call gives the request up.
        """
        ...

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
