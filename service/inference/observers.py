"""Called with every finished request: the metrics, and other observers (the access log)."""

from collections.abc import Callable

from foldserve.service.inference.context import RequestContext
from foldserve.service.metrics.recorder import Metrics

Observer = Callable[[RequestContext, int, float], None]
"""Given a finished request, its status (499: the client left before its answer) and its seconds."""


class Observers:
    """Of one API server. others: besides the metrics."""

    def __init__(self, metrics: Metrics, *others: Observer) -> None:
        self._metrics = metrics
        self.others = others

    def finished(self, context: RequestContext, status: int, duration_s: float) -> None:
        """Count a request, and notify the other observers."""
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
        self.notify(context, status, duration_s)

    def notify(self, context: RequestContext, status: int, duration_s: float) -> None:
        """Notify the other observers of a request that is counted already, or does not count."""
        for observer in self.others:
            observer(context, status, duration_s)
