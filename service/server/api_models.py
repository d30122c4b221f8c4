"""One API server's part in the models that the table holds: a queue for each, and the targets of the fast path.

The table says what is to be there; changed() brings one row in line with it. Owned by the event loop thread.
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from foldserve.service.codecs import BodyType
from foldserve.service.codecs.protocol import InferenceProtocol, SharedRegions
from foldserve.service.engine.admission import Bounds
from foldserve.service.engine.dispatcher import Dispatcher
from foldserve.service.engine.model_queue import ModelQueue
from foldserve.service.engine.models import Models, QueuedVersion
from foldserve.service.engine.served import ServedVersion
from foldserve.service.frontend.http1.heads.cache import JsonRoute, OipRoute, PredictRoute, Route
from foldserve.service.inference.plan import BodyLimit, RequestPlan
from foldserve.service.ipc.control import CONTROL_STRUCT, ControlMessage
from foldserve.service.ipc.model_table import LEAVING, SERVED, MappedModelTable, ModelKey
from foldserve.service.ipc.resources import Transport
from foldserve.service.ipc.slots.tensor_layout import TensorLayout
from foldserve.service.ipc.ticket_queue import TicketWriter
from foldserve.service.metrics.recorder import Metrics
from foldserve.service.protocols import PROTOCOLS
from foldserve.service.protocols.kserve_v1 import V1_PATHS, plan_of
from foldserve.service.protocols.lookup import only_model
from foldserve.service.protocols.oip.calls import INFER_PATHS
from foldserve.service.protocols.oip.infer import OIP_BINARY, OIP_JSON
from foldserve.service.protocols.predict import PREDICT, PREDICT_PATHS
from foldserve.service.repository.model_version import ModelVersion, read_version
from foldserve.service.settings import ServeSettings

_REPORT_S: Final = 0.1
"""Until a report is sent again that found the pipe to the supervisor full."""

_log = logging.getLogger("foldserve.api_server")


class ApiModels:
    """What there is for each version is made when its row says so, and is gone when the last request has left it."""

    def __init__(
        self,
        transport: Transport,
        dispatcher: Dispatcher,
        metrics: Metrics,
        settings: ServeSettings,
        regions: SharedRegions | None = None,
    ) -> None:
        self.models = Models()
        self.plans: dict[tuple[str, str], dict[str, RequestPlan]] = {}
        """What becomes of requests to each version, by the keys of their bodies' protocols."""
        self._settings = settings
        self._regions = regions
        self._transport = transport
        self._table: MappedModelTable = transport.models.map()
        self._dispatcher = dispatcher
        self._metrics = metrics
        metrics.rows.clear()
        for row in range(self._table.capacity):
            self._check(row)

    def changed(self, row: int) -> bool:
        """The row is not as it was: have the version that it holds, and no other. Returns: whether that is news."""
        before = self.models.changes
        version = self.models.of_row(row)
        if version is None:
            self._check(row)
        elif not self._table.holds(version.queue.key, SERVED):
            self._close(version)
        return self.models.changes != before

    def _check(self, row: int) -> None:
        key = self._table.find(row, SERVED)
        version = None if key is None else read_version(self._table, key)
        if key is None or version is None:
            gone = self._table.find(row, LEAVING)
            if gone is not None and row not in self._dispatcher.queues:  # where it is, it still has requests
                self._let_go(row, gone.generation)
            return
        queue = make_queue(key, version, self._transport)
        self._dispatcher.add_queue(queue)
        self._metrics.rows[key.model, key.version] = row
        self.plans[key.model, key.version] = make_plans(queue, self._settings, self._metrics, self._regions)
        self.models.add(QueuedVersion(queue, served_version(version), version.config.batch_buckets))

    def _close(self, version: QueuedVersion) -> None:
        queue = version.queue
        self.models.remove(version)
        del self._metrics.rows[queue.model, queue.version], self.plans[queue.model, queue.version]
        self._dispatcher.close_queue(queue, lambda: self._let_go(queue.row, queue.generation))

    def _let_go(self, row: int, generation: int) -> None:
        self._dispatcher.board.let_go(False, self._dispatcher.index, row, generation)
        self._report(row)

    def _report(self, row: int) -> None:
        if not self._transport.report(CONTROL_STRUCT.pack(ControlMessage.MODEL_CHANGED, row)):
            asyncio.get_running_loop().call_later(_REPORT_S, self._report, row)

    def routes(self, default_model: str | None, broken: Iterable[str] = ()) -> list[Route]:
        """The targets of the fast path: each version, by path or query; each model's default version; the default
        model."""
        by_model = self.models.by_model
        if default_model is None and len(by_model) == 1 and only_model(by_model, broken):
            (default_model,) = by_model
        routes: list[Route] = []
        for name, versions in by_model.items():
            default = versions[-1].queue.version
            plans = {one.queue.version: self.plans[name, one.queue.version] for one in versions}
            named = {"": plans[default], **{f"/versions/{version}": of for version, of in plans.items()}}
            routes += _predict_routes(name, plans, default, name == default_model)
            routes += [
                OipRoute(
                    f"/v2/models/{name}{version}/infer",
                    INFER_PATHS[bool(version)],
                    of[OIP_JSON.key],
                    of[OIP_BINARY.key],
                )
                for version, of in named.items()
            ]
            routes += [
                JsonRoute(f"/v1/models/{name}{version}:predict", V1_PATHS[bool(version)], plan_of(of))
                for version, of in named.items()
            ]
            if name == default_model:
                routes.append(JsonRoute(V1_PATHS[2], V1_PATHS[2], plan_of(plans[default])))
        return routes


def _predict_routes(
    name: str, plans: Mapping[str, Mapping[str, RequestPlan]], default: str, first: bool
) -> Iterator[Route]:
    """A model's targets of /predict: each version, by path or query, and its default version.

    first: whether it is the model of requests that name none.
    """
    paths = [(f"/predict/{name}", PREDICT_PATHS[1])]
    if first:
        paths.append(("/predict", PREDICT_PATHS[0]))
    for path, pattern in paths:
        yield PredictRoute(path, "", pattern, predict_plans(plans[default]))
    for version, of in plans.items():
        path, pattern = f"/predict/{name}/versions/{version}", PREDICT_PATHS[2]
        yield PredictRoute(path, "", pattern, predict_plans(of))
        for path, pattern in paths:
            yield PredictRoute(path, f"?version={version}", pattern, predict_plans(of))


def predict_plans(plans: Mapping[str, RequestPlan]) -> dict[BodyType, RequestPlan]:
    """Those of /predict, by the type of the body."""
    return {kind: plans[protocol.key] for kind, protocol in PREDICT.items()}


def make_plans(
    queue: ModelQueue, settings: ServeSettings, metrics: Metrics, regions: SharedRegions | None = None
) -> dict[str, RequestPlan]:
    """What becomes of requests to a version, by the keys of their bodies' protocols."""
    body = BodyLimit(settings.max_body_bytes, "--max-body-bytes")
    json = min(body, BodyLimit(settings.max_json_bytes, "--max-json-bytes"), key=lambda limit: limit.nbytes)

    def plan(protocol: InferenceProtocol) -> RequestPlan:
        counter = metrics.answered_counter(protocol.name, queue.row)
        limit = json if protocol.is_json else body
        return RequestPlan(queue, protocol, protocol, counter, limit, regions=regions)

    return {protocol.key: plan(protocol) for protocol in PROTOCOLS}


def make_queue(key: ModelKey, version: ModelVersion, transport: Transport) -> ModelQueue:
    """An API server's queue for a version."""
    config, artifact = version.config, version.artifact
    return ModelQueue(
        key,
        TensorLayout(artifact.signature),
        Bounds(config.queue.max_rows, config.queue.max_bytes, config.queue.max_rows_per_request),
        config.queue.timeout_s,
        config.instances * transport.dimensions.workers,
        artifact.max_batch_size,
        [TicketWriter(pipe) for pipe in transport.queues[key.row].levels[: config.queue.priority_levels]],
        artifact.labels,
        artifact.image,
        config.queue.default_priority_level - 1,
    )


def served_version(version: ModelVersion) -> ServedVersion:
    """What a version looks like to the frontend; nothing is ready yet."""
    artifact, queue = version.artifact, version.config.queue
    return ServedVersion(
        version=artifact.version,
        signature=artifact.signature,
        backend=artifact.backend,
        max_batch_size=artifact.max_batch_size if artifact.signature.counts_rows else 0,
        ready=False,
        manifest=artifact.summary(),
        priority_levels=queue.priority_levels,
        default_priority_level=queue.default_priority_level,
    )
