"""The parts of one API server, put together in its own process on its event loop.

    fast path   frontend/http1/connection.py -> http1/exchange.py ─┐
                                                            ├─> inference/request.py -> engine/dispatcher.py -> queues
    ASGI path   frontend/asgi.py -> asgi_exchange.py ───────┘

Also listens to the parent: what died, when to stop.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from foldserve.service.codecs import BodyType
from foldserve.service.engine import recovery
from foldserve.service.engine.admission import Bounds
from foldserve.service.engine.codec_process.client import CodecProcess
from foldserve.service.engine.dispatcher import Dispatcher
from foldserve.service.engine.request import Lane
from foldserve.service.engine.served import NOTHING_BROKEN
from foldserve.service.engine.status import BoardStatus, served_models
from foldserve.service.frontend.asgi import PREDICT_PATHS, AsgiApp
from foldserve.service.frontend.connections.shares import Shares
from foldserve.service.frontend.http1.answer_lines import AnswerLines
from foldserve.service.frontend.http1.exchange import Http1Context
from foldserve.service.frontend.http1.flow.throttle import RefusalThrottle
from foldserve.service.frontend.http1.flow.unread import Unread
from foldserve.service.frontend.http1.heads.cache import Route
from foldserve.service.inference.access_log import log_access, open_access_log
from foldserve.service.inference.body_budget import BodyBudget
from foldserve.service.inference.observers import Observers, RequestMetrics
from foldserve.service.inference.partial_body import PartialBodies
from foldserve.service.inference.plan import BodyLimit, RequestPlan
from foldserve.service.inference.server_context import ServerContext
from foldserve.service.ipc.control import MESSAGE, Word
from foldserve.service.ipc.resources import Transport
from foldserve.service.ipc.slots.tensor_layout import Layout
from foldserve.service.ipc.ticket_queue import TicketWriter
from foldserve.service.metrics.exporter import ExporterPlan
from foldserve.service.metrics.recorder import Metrics
from foldserve.service.metrics.scrapes import Scrapes
from foldserve.service.protocols.predict import PREDICT, Plans, PredictCalls, only_model
from foldserve.service.repository.index import ModelEntry
from foldserve.service.settings import ServeSettings

_log = logging.getLogger("foldserve.api_server")


@dataclass(frozen=True)
class ServedDevices:
    """of_workers: each worker's device. uuids: those of the GPUs among them, as the driver names them."""

    of_workers: Sequence[str]
    uuids: Mapping[str, str]


@dataclass(frozen=True)
class ApiServer:
    """What an API server's process holds. app: the ASGI path; http: the fast path; shares: who has how many
    connections."""

    dispatcher: Dispatcher
    app: AsgiApp
    http: Http1Context
    shares: Shares
    metrics: Metrics

    def listen(self, fd: int, stop: Callable[[], None]) -> None:
        """Act on what the parent writes into this pipe, and end when the parent is gone."""
        asyncio.get_running_loop().add_reader(fd, self._on_messages, fd, stop)

    def _on_messages(self, fd: int, stop: Callable[[], None]) -> None:
        data = os.read(fd, MESSAGE.size * 64)
        if not data:
            _log.error("the parent process is gone: ending")
            os._exit(1)
        for word, number in MESSAGE.iter_unpack(data):
            try:
                self._act(word, number, stop)
            except Exception:
                _log.exception("message %d, %d of the supervisor could not be acted on", word, number)

    def _act(self, word: int, number: int, stop: Callable[[], None]) -> None:
        if word == Word.WORKER_DIED:
            again = recovery.after_worker_death(self.dispatcher, number)
            _log.warning("a worker died: %d of its requests are run again", len(again))
            for request in again:
                self.metrics.retried(request.lane.model, request.lane.version, 1)
        elif word == Word.ARE_YOU_ALIVE:
            self.dispatcher.board.answer(False, self.dispatcher.index)
        elif word == Word.STOP:
            stop()


def make_api_server(
    index: int,
    transport: Transport,
    entries: Sequence[ModelEntry],
    settings: ServeSettings,
    metrics: Metrics,
    devices: ServedDevices,
    broken: Mapping[str, str] = NOTHING_BROKEN,
) -> ApiServer:
    """Put an API server together; called in its process, on its event loop. broken: see engine/served.py."""
    board = transport.board.map()
    lanes = make_lanes(entries, settings, workers=transport.dimensions.workers)
    writers = [TicketWriter(queue) for queue in transport.queues]

    def report_hang(worker: int) -> None:
        transport.report(MESSAGE.pack(Word.WORKER_HANGS, worker))

    def report_stall(lane: int) -> None:
        transport.report(MESSAGE.pack(Word.MODEL_STALLS, lane))

    dispatcher = Dispatcher(
        index,
        lanes,
        transport.arenas[index].map(),
        board,
        writers,
        transport.done[index].reader.fd,
        settings.run_limit_s,
        report_hang,
        report_stall,
    )
    memory = transport.arenas[index].memory
    codecs = CodecProcess(
        dispatcher,
        list(PREDICT.values()),
        memory.handle.fd,
        memory.nbytes,
        settings.log_level,
        settings.run_limit_s,
    )
    buckets = [entry.config.batch_buckets for entry in entries for _ in entry.artifacts]
    status = BoardStatus(dispatcher, served_models(entries), devices.of_workers, buckets, broken)
    unread = Unread(settings.receive_bytes)
    bodies = PartialBodies(BodyBudget(settings.receive_bytes), dispatcher)
    arena_bytes = dispatcher.arena.data_bytes
    dispatcher.make_room = lambda nbytes: bodies.make_room() or unread.free_place(nbytes, arena_bytes)
    if settings.access_log:
        open_access_log()
    observers = Observers(metrics, *([log_access] if settings.access_log else []))
    server = ServerContext(dispatcher, codecs, bodies, observers, settings.request_timeout_s)
    plans = make_plans(lanes, settings, metrics)
    scrapes = Scrapes(
        ExporterPlan(
            metrics.store.memory,
            metrics.plan,
            transport.arenas,
            transport.board,
            [lane.max_batch_size for lane in lanes],
            devices.uuids,
            os.getppid(),
            settings.log_level,
        )
    )
    app = AsgiApp(status, server, PredictCalls(status, plans, settings.default_model), settings, scrapes)
    routes = make_routes(entries, plans, settings.default_model, broken)
    http = Http1Context(server, routes, RefusalThrottle(), unread, AnswerLines())
    return ApiServer(dispatcher, app, http, Shares(board, index), metrics)


def make_lanes(entries: Sequence[ModelEntry], settings: ServeSettings, workers: int) -> list[Lane]:
    """One lane per model version, in the order of the repository, which is the same in every process."""
    lanes: list[Lane] = []
    for entry in entries:
        queue = entry.config.queue
        for artifact in entry.artifacts:
            lanes.append(
                Lane(
                    index=len(lanes),
                    model=entry.name,
                    version=artifact.version,
                    layout=Layout(artifact.signature),
                    bounds=Bounds(queue.max_rows, queue.max_bytes, queue.max_rows_per_request),
                    timeout_s=queue.timeout_s,
                    instances=entry.config.instances * workers,
                    max_batch_size=artifact.max_batch_size,
                )
            )
    return lanes


def make_plans(lanes: Sequence[Lane], settings: ServeSettings, metrics: RequestMetrics) -> Plans:
    """What becomes of requests to each model version, by the types of their bodies."""
    body = BodyLimit(settings.max_body_bytes, "--max-body-bytes")
    json = BodyLimit(settings.max_json_bytes, "--max-json-bytes")
    limits = dict.fromkeys(BodyType, body)
    limits[BodyType.JSON] = min(body, json, key=lambda limit: limit.nbytes)
    return {
        (lane.model, lane.version): {
            kind: RequestPlan(
                lane,
                protocol,
                protocol,
                metrics.answered_counter(protocol.name, lane.model, lane.version),
                limits[kind],
            )
            for kind, protocol in PREDICT.items()
        }
        for lane in lanes
    }


def make_routes(
    entries: Sequence[ModelEntry], plans: Plans, default_model: str | None, broken: Iterable[str] = ()
) -> list[Route]:
    """The targets of the fast path: each version, by path or query; each model's default version; the default model."""
    if default_model is None and len(entries) == 1 and only_model([entries[0].name], broken):
        default_model = entries[0].name
    routes = []
    for entry in entries:
        paths = [(f"/predict/{entry.name}", PREDICT_PATHS[1])]
        if entry.name == default_model:
            paths.append(("/predict", PREDICT_PATHS[0]))
        targets = [(path, "", pattern, entry.default_version) for path, pattern in paths]
        for artifact in entry.artifacts:
            version = artifact.version
            targets.append((f"/predict/{entry.name}/versions/{version}", "", PREDICT_PATHS[2], version))
            targets += [(path, f"?version={version}", pattern, version) for path, pattern in paths]
        routes += [
            Route(path, query, pattern, plans[entry.name, version])
            for path, query, pattern, version in targets
        ]
    return routes
