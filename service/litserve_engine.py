"""The Engine over LitServe's queues: what an API server does with a request until its outcome is back.

    infer: admit (bounded) -> Waiting in LitServe's response buffer -> (id, uid, time, Queued) into the queue
           -> LitServe's task fills the Waiting in -> Outcome

LitServe never times out a request that a worker holds, and never tells an API server that a worker died: both
are done here. Owned by one API server's event loop; the object is made before the fork and then lives once in
each API server. Does not import litserve: the shell hands in what is needed of it.
"""

import asyncio
import logging
import os
import struct
import time
import uuid
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from service.engine import ServedModel, ServedVersion
from service.errors import (
    DeadlinePassed,
    Internal,
    ModelCrashed,
    NotReady,
    QueueFull,
    ServiceError,
    TooLarge,
)
from service.instance import Request
from service.metrics import Metrics
from service.model_config import QueueConfig
from service.outcome import Outcome
from service.repository import ModelEntry
from service.worker_report import read_report

log = logging.getLogger(__name__)

OK: Final = "OK"
"""LitServe's status of an answer that is no error."""

# What the supervisor tells every API server through its pipe: a kind and a process id.
_NOTICE = struct.Struct("<BI")
DRAIN: Final = 1
WORKER_DIED: Final = 2
REPORT_CHANGED: Final = 3
STOP: Final = 4

# Answers that a worker gave before it died are still on their way through LitServe's queue.
_LAST_ANSWERS_S = 1.0
_SMOOTHING = 0.1


class RequestQueue(Protocol):
    """A queue that workers read, such as multiprocessing's."""

    def put(self, item: Any) -> None:
        """Put an item in."""
        ...


@dataclass(frozen=True)
class Queued:
    """A request on its way to a worker. deadline_s is of time.monotonic(), which all processes share."""

    inputs: dict[str, np.ndarray]
    rows: int
    deadline_s: float | None

    def as_request(self, queued_s: float) -> Request:
        """The request for an instance."""
        return Request(self.inputs, queued_s, self.deadline_s)


class Waiting:
    """A request without an answer yet; LitServe keeps it by uid and fills in worker_id and response.

    Takes the place of LitServe's ResponseBufferItem, so that being taken by a worker can be noticed.
    """

    response_queue = None

    def __init__(
        self, engine: "LitServeEngine", version: tuple[str, str], rows: int, size_bytes: int
    ) -> None:
        self.event = asyncio.Event()
        self.response: tuple[Any, str] | None = None
        self.version = version
        self.rows = rows
        self.size_bytes = size_bytes
        self.taken = False
        self._engine = engine
        self._worker_id: int | None = None

    @property
    def worker_id(self) -> int | None:
        """The process id of the worker that took the request; None while it is queued."""
        return self._worker_id

    @worker_id.setter
    def worker_id(self, pid: int) -> None:
        self._worker_id = pid
        self.leave_queue()
        self._engine.taken_by(pid)

    def leave_queue(self) -> None:
        """Count the request as no longer queued, once."""
        if not self.taken:
            self.taken = True
            self._engine.metrics.taken(*self.version, self.rows, self.size_bytes)

    def fail(self, error: ServiceError) -> None:
        """Answer with an error, unless there is an answer."""
        if not self.event.is_set():
            self.response = (Outcome(None, error), OK)
            self.event.set()


class LitServeEngine:
    """service.engine.Engine over LitServe's queues."""

    def __init__(
        self,
        entries: tuple[ModelEntry, ...],
        metrics: Metrics,
        writers: Mapping[tuple[str, str], tuple[str, ...]],
        runtime: Path,
        buffer: MutableMapping[str, Any],
    ) -> None:
        """
        Args:
            entries: what is served.
            writers: the metrics writers (= workers) of each (model, version), for their reports.
            runtime: the folder with the workers' reports.
            buffer: LitServe's response buffer, uid -> Waiting.
        """
        self.metrics = metrics
        self.queues: dict[tuple[str, str], RequestQueue] = {}
        """By (model, version); set by the shell before the fork."""
        self.response_queue_id = 0
        """Which response queue this API server reads; set after the fork."""
        self.stop: Callable[[], None] = lambda: None
        """Ends this API server; set after the fork."""
        self._writers = writers
        self.runtime = runtime
        self.buffer = buffer
        self._models = _served(entries)
        self._queue_configs = {entry.name: entry.config.queue for entry in entries}
        self._shown: tuple[tuple[bool, ...], dict[str, ServedModel]] | None = None
        self._draining = False
        self._dead: set[int] = set()
        self._row_s: dict[tuple[str, str], float] = {}

    # service.engine.Engine ----------------------------------------------------------------------------

    async def infer(
        self,
        model: str,
        version: str,
        inputs: dict[str, np.ndarray],
        rows: int,
        timeout_s: float | None,
    ) -> Outcome:
        """See service.engine.Engine. The model's own queue.timeout_ms bounds it too."""
        key = (model, version)
        bounds = self._queue_configs[model]
        size_bytes = sum(array.nbytes for array in inputs.values())
        self._admit(key, bounds, rows, size_bytes)
        allowed_s = bounds.timeout_s if timeout_s is None else min(timeout_s, bounds.timeout_s)
        now_s = time.monotonic()
        uid = uuid.uuid4().hex
        waiting = Waiting(self, key, rows, size_bytes)
        self.buffer[uid] = waiting
        self.metrics.request_started(model, version)
        self.metrics.queued(model, version, rows, size_bytes)
        try:
            queued = Queued(inputs, rows, now_s + allowed_s)
            self.queues[key].put((self.response_queue_id, uid, now_s, queued))
            await asyncio.wait_for(waiting.event.wait(), allowed_s)
        except TimeoutError:
            raise DeadlinePassed(
                f"no answer within {allowed_s * 1000:.0f} ms; allow more time with X-Timeout-Ms, or raise "
                f"queue.timeout_ms of model {model}"
            ) from None
        except (OSError, EOFError) as error:
            log.error("the queue of %s cannot be reached: %r", model, error)
            raise Internal("the server lost its queue and is shutting down; try again soon") from None
        finally:
            del self.buffer[uid]
            waiting.leave_queue()
            self.metrics.request_ended(model, version)
        return self._outcome(waiting)

    def ready(self) -> bool:
        """See service.engine.Engine."""
        return not self._draining and all(self.metrics.ready_versions())

    def draining(self) -> bool:
        """See service.engine.Engine."""
        return self._draining

    def models(self) -> Mapping[str, ServedModel]:
        """See service.engine.Engine. Rebuilt only when a model became ready or unready."""
        ready = self.metrics.ready_versions()
        if self._shown is None or self._shown[0] != ready:
            self._shown = (ready, self._with_state(dict(zip(self.metrics.plan.versions, ready, strict=True))))
        return self._shown[1]

    # Called by the shell ------------------------------------------------------------------------------

    def read_notices(self, fd: int) -> None:
        """Act on what the supervisor wrote into this API server's pipe."""
        for kind, pid in _NOTICE.iter_unpack(os.read(fd, _NOTICE.size * 64)):
            if kind == DRAIN:
                self._draining = True
            elif kind == WORKER_DIED:
                self._dead.add(pid)
                self.taken_by(pid)
            elif kind == STOP:
                self.stop()
            self._shown = None

    def taken_by(self, pid: int) -> None:
        """A request is held by a worker; should that be dead, answer what it holds in a moment."""
        if pid in self._dead:
            asyncio.get_running_loop().call_later(_LAST_ANSWERS_S, self._fail_requests_of, pid)

    # Inside -------------------------------------------------------------------------------------------

    def _admit(self, key: tuple[str, str], bounds: QueueConfig, rows: int, size_bytes: int) -> None:
        """Raise unless the request may be queued now."""
        model, version = key
        if rows > bounds.max_rows or size_bytes > bounds.max_bytes:
            raise TooLarge(
                f"the request has {rows} rows and {size_bytes} bytes of inputs; model {model} takes at most "
                f"{bounds.max_rows} rows and {bounds.max_bytes} bytes at once: send it in parts"
            )
        if not self.metrics.model_is_ready(model, version):
            raise NotReady(f"model {model} version {version} is not ready; GET /info tells its state")
        queued = self.metrics.queue_rows(model, version)
        if (
            queued + rows > bounds.max_rows
            or self.metrics.queue_bytes(model, version) + size_bytes > bounds.max_bytes
        ):
            raise QueueFull(
                f"{queued:.0f} rows are waiting for model {model}, which lets {bounds.max_rows} rows and "
                f"{bounds.max_bytes} bytes wait; try again later",
                retry_after_s=queued * self._row_s.get(key, 0.0),
            )

    def _outcome(self, waiting: Waiting) -> Outcome:
        if waiting.response is None:
            raise Internal("the request was given up by the server; try again")
        outcome, status = waiting.response
        if status != OK or not isinstance(outcome, Outcome):
            log.error("a worker answered with status %s: %r", status, outcome)
            raise Internal("the server failed on this request; its log tells more")
        if outcome.error is None and outcome.batch_rows:
            # For Retry-After: seconds that a row takes, smoothed over the last batches.
            row_s = outcome.stages.run / outcome.batch_rows
            before = self._row_s.get(waiting.version, row_s)
            self._row_s[waiting.version] = before + _SMOOTHING * (row_s - before)
        return outcome

    def _fail_requests_of(self, pid: int) -> None:
        for waiting in list(self.buffer.values()):
            if waiting.worker_id == pid:
                model, version = waiting.version
                waiting.fail(
                    ModelCrashed(
                        f"the process that ran model {model} version {version} died with this request; try "
                        "again, and if it happens again look at the request's values"
                    )
                )

    def _with_state(self, ready: Mapping[tuple[str, str], bool]) -> dict[str, ServedModel]:
        """The models as they are now: readiness, and for those not ready the reason that a worker gave."""

        def state_of(model: str, version: ServedVersion) -> ServedVersion:
            key = (model, version.version)
            if ready[key]:
                return replace(version, ready=True)
            reports = [read_report(self.runtime, writer) for writer in self._writers[key]]
            problems = [report.problem for report in reports if report is not None and report.problem]
            return replace(version, manifest={**version.manifest, "problem": (problems or ["loading"])[0]})

        return {
            name: replace(
                model, versions={key: state_of(name, of_it) for key, of_it in model.versions.items()}
            )
            for name, model in self._models.items()
        }


def notice(kind: int, pid: int = 0) -> bytes:
    """What the supervisor writes into the pipe of an API server."""
    return _NOTICE.pack(kind, pid)


def _served(entries: tuple[ModelEntry, ...]) -> dict[str, ServedModel]:
    return {
        entry.name: ServedModel(
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
    }
