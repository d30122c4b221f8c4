"""A loaded model at work: requests in, one Outcome per request out, in their order.

A run that raises is halved and run again until only the guilty request fails: the others never notice.
Decides nothing about which rows run together (batching.py) and nothing about loading (loading.py). Knows
neither queues nor processes nor HTTP: whoever owns the queue calls run(), from one thread per instance.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from service import batching
from service.artifact import Artifact
from service.backends import Session
from service.batching import Arrays, Batch
from service.errors import DeadlinePassed, ModelFailed, ServiceError
from service.metrics import BatchReason, Metrics
from service.model_config import ModelConfig
from service.outcome import Outcome, StageTimes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """A request taken from the queue. Times are of time.monotonic(), which all processes share.

    inputs: checked against the signature. queued_s: when it was queued. deadline_s: None = no bound.
    """

    inputs: Arrays
    queued_s: float
    deadline_s: float | None = None


@dataclass(frozen=True)
class _Ran:
    """What came of one piece of a request: its outputs or the error, and the batch it ran in."""

    outputs: dict[str, np.ndarray] | None
    error: ServiceError | None
    stages: StageTimes
    batch_rows: int


class Instance:
    """One session of one model. Owned by the thread that calls run()."""

    def __init__(
        self,
        artifact: Artifact,
        config: ModelConfig,
        session: Session,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.artifact = artifact
        self._buckets = config.batch_buckets
        self._session = session
        self._metrics = metrics
        self._clock = clock

    def run(self, requests: Sequence[Request], reason: BatchReason) -> list[Outcome]:
        """Run requests and return what came of each, in their order. Never raises for a request's fault.

        Args:
            requests: whatever was taken from the queue together; late ones are answered DeadlinePassed and
                take no place in a batch.
            reason: why they left the queue, for batches that are not full.
        """
        outcomes: list[Outcome | None] = [self._late(request) for request in requests]
        live = [index for index, outcome in enumerate(outcomes) if outcome is None]
        inputs = [requests[index].inputs for index in live]
        queued = [requests[index].queued_s for index in live]
        ran: list[list[_Ran]] = [[] for _ in live]
        for batch in batching.plan(inputs, self.artifact.max_batch_size) if live else ():
            for piece, result in zip(batch.pieces, self._run(inputs, queued, batch, reason), strict=True):
                ran[piece.request].append(result)
        for index, pieces in zip(live, ran, strict=True):
            outcomes[index] = _joined(pieces)
        return [outcome for outcome in outcomes if outcome is not None]

    def _late(self, request: Request) -> Outcome | None:
        now_s = self._clock()
        if request.deadline_s is None or now_s < request.deadline_s:
            return None
        waited = now_s - request.queued_s
        error = DeadlinePassed(
            f"the request waited {waited * 1000:.0f} ms for its turn, past its deadline; allow more time "
            "with X-Timeout-Ms, or send less at once"
        )
        return Outcome(None, error, StageTimes(queue=waited))

    def _run(
        self, requests: Sequence[Arrays], queued_s: Sequence[float], batch: Batch, reason: BatchReason
    ) -> list[_Ran]:
        """Run one batch; on failure its halves. Returns one result per piece."""
        artifact = self.artifact
        bucket = batching.bucket_for(batch.rows, self._buckets)
        started_s = self._clock()
        try:
            inputs = batching.gather(requests, batch, bucket)
            gathered_s = self._clock()
            outputs = self._session.run(inputs)
            ran_s = self._clock()
            parts = batching.scatter(outputs, batch, bucket)
            ended_s = self._clock()
        except Exception as error:
            if len(batch.pieces) > 1:
                self._metrics.retried(artifact.model, artifact.version, len(batch.pieces))
                log.warning(
                    "%s failed on a batch of %d rows, halving it: %s", self, batch.rows, _first_line(error)
                )
                return [
                    result
                    for half in batch.halves()
                    for result in self._run(requests, queued_s, half, reason)
                ]
            log.error("%s failed on a request of %d rows", self, batch.rows, exc_info=error)
            failed = ModelFailed(
                f"model {artifact.model} failed on this request: {_first_line(error)}; the request fits the "
                "model's signature, so look at its values"
            )
            now_s = self._clock()
            stages = StageTimes(queue=started_s - queued_s[batch.pieces[0].request], run=now_s - started_s)
            return [_Ran(None, failed, stages, batch.rows)]
        full = batch.rows == artifact.max_batch_size
        self._metrics.batch_finished(
            artifact.model, artifact.version, batch.rows, bucket - batch.rows, "full" if full else reason
        )
        return [
            _Ran(
                part,
                None,
                StageTimes(
                    queue=started_s - queued_s[piece.request],
                    gather=gathered_s - started_s,
                    run=ran_s - gathered_s,
                    scatter=ended_s - ran_s,
                ),
                batch.rows,
            )
            for piece, part in zip(batch.pieces, parts, strict=True)
        ]

    def __str__(self) -> str:
        return f"{self.artifact.model}/{self.artifact.version}"


def _joined(pieces: Sequence[_Ran]) -> Outcome:
    """One request's outcome out of its pieces': stages summed, but queued only until the first piece ran."""
    stages = StageTimes(
        queue=pieces[0].stages.queue,
        gather=sum(piece.stages.gather for piece in pieces),
        run=sum(piece.stages.run for piece in pieces),
        scatter=sum(piece.stages.scatter for piece in pieces),
    )
    batch_rows = max(piece.batch_rows for piece in pieces)
    for piece in pieces:
        if piece.error is not None:
            return Outcome(None, piece.error, stages, batch_rows)
    parts = [piece.outputs for piece in pieces if piece.outputs is not None]
    return Outcome(batching.join(parts), None, stages, batch_rows)


def _first_line(error: Exception) -> str:
    """An exception's first line: runtimes append their own stack traces, which are not for clients."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
