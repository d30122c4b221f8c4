"""Who learns of every request that is finished: the metrics, and whoever asked to (the access log)."""

from collections.abc import Callable, Mapping
from typing import Protocol

from foldserve.service.inference.context import RequestContext

Observer = Callable[[RequestContext, int, float], None]
"""Given a finished request, its status (499: the client left before its answer) and its seconds."""


class RequestMetrics(Protocol):
    """What is counted of requests (metrics/recorder.py has the real one)."""

    def request_finished(
        self,
        protocol: str,
        model: str,
        version: str,
        status: int,
        duration_s: float,
        *,
        rows: int = 0,
        stages_s: Mapping[str, float] | None = None,
        error_code: str | None = None,
    ) -> None:
        """Count one answered inference request."""

    def answered_counter(self, protocol: str, model_row: int) -> Callable[..., None]:
        """Counts answered requests (status 200) of one protocol and row of the model table. Called with
        duration_s, rows, and the seconds of each stage in order."""
        ...


class Observers:
    """Of one API server. others: besides the metrics."""

    def __init__(self, metrics: RequestMetrics, *others: Observer) -> None:
        self._metrics = metrics
        self.others = others

    def finished(self, context: RequestContext, status: int, duration_s: float) -> None:
        """Count a request, and tell of it."""
        self._metrics.request_finished(
            context.protocol,
            context.model,
            context.version,
            status,
            duration_s,
            rows=context.rows,
            stages_s=context.stages_s,
            error_code=context.error_code,
        )
        self.tell(context, status, duration_s)

    def tell(self, context: RequestContext, status: int, duration_s: float) -> None:
        """Tell of a request that is counted already, or does not count."""
        for observer in self.others:
            observer(context, status, duration_s)
