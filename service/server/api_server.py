"""The parts of one API server, put together in its own process on its event loop.

    the short way   FastProtocol -> frontend/http1/exchange.py ─┐
                                                 ├─> engine/dispatcher.py -> queues -> workers
    the long way    frontend/asgi.py -> protocols/predict.py -> engine/client.py ─┘

Also listens to the parent: what died, when to stop.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from service.codecs import BodyType
from service.engine import recovery
from service.engine.admission import Bounds
from service.engine.client import DispatchEngine, served_models
from service.engine.codec_process.client import CodecProcess
from service.engine.dispatcher import Dispatcher
from service.engine.interface import NOTHING_BROKEN
from service.engine.model_queue import ModelQueue
from service.frontend.asgi import PREDICT_PATHS, Front
from service.frontend.connections.shares import Shares
from service.frontend.http1.answer_lines import AnswerLines
from service.frontend.http1.exchange import RequestIds, Shop
from service.frontend.http1.head_cache import Limits, Route
from service.frontend.http1.head_reader import HeadReader
from service.frontend.http1.throttle import Pace
from service.frontend.http1.unread import Unread
from service.frontend.receiving import Receiving
from service.inference.access_log import log_access
from service.inference.context import PROTOCOL_OF
from service.ipc.control import MESSAGE, Word
from service.ipc.resources import Transport
from service.ipc.slots.tensor_layout import Layout
from service.ipc.ticket_queue import TicketWriter
from service.metrics.exporter import ExporterPlan
from service.metrics.recorder import Metrics
from service.metrics.scrapes import Scrapes
from service.protocols.predict import only_model
from service.repository.index import ModelEntry
from service.settings import ServeSettings

_log = logging.getLogger("foldserve.api_server")


@dataclass(frozen=True)
class ServedDevices:
    """of_workers: each worker's device. uuids: those of the GPUs among them, as the driver names them."""

    of_workers: Sequence[str]
    uuids: Mapping[str, str]


@dataclass(frozen=True)
class ApiServer:
    """What an API server's process holds. front: the long way; shop: the short way; shares: who has how many
    connections."""

    dispatcher: Dispatcher
    front: Front
    shop: Shop
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
                self.metrics.retried(request.queue.model, request.queue.version, 1)
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
    """Put an API server together; called in its process, on its event loop. broken: see engine.Engine."""
    board = transport.board.map()
    lanes = make_lanes(entries, transport)

    def report_hang(worker: int) -> None:
        transport.report(MESSAGE.pack(Word.WORKER_HANGS, worker))

    def report_stall(row: int) -> None:
        transport.report(MESSAGE.pack(Word.MODEL_STALLS, row))

    dispatcher = Dispatcher(
        index,
        transport.arenas[index].map(),
        board,
        transport.done[index].reader.fd,
        settings.run_limit_s,
        report_hang,
        report_stall,
    )
    for lane in lanes:
        dispatcher.add_queue(lane)
    buckets = [entry.config.batch_buckets for entry in entries for _ in entry.artifacts]
    memory = transport.arenas[index].memory
    codecs = CodecProcess(
        dispatcher, memory.handle.fd, memory.nbytes, settings.log_level, settings.run_limit_s
    )
    engine = DispatchEngine(dispatcher, codecs, served_models(entries), devices.of_workers, buckets, broken)

    routes = make_routes(lanes, entries, settings.default_model, metrics, broken)
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
    front = Front(engine, settings, metrics, scrapes)
    unread = Unread(settings.receive_bytes)
    receiving = Receiving(front.bodies, dispatcher)
    arena_bytes = dispatcher.arena.data_bytes
    dispatcher.make_room = lambda nbytes: receiving.make_room() or unread.free_place(nbytes, arena_bytes)
    shop = Shop(
        routes={route.target: route for route in routes},
        dispatcher=dispatcher,
        codecs=codecs,
        metrics=metrics,
        receiving=receiving,
        log_access=log_access if settings.access_log else None,
        heads=HeadReader(routes, Limits(settings.max_body_bytes, settings.max_json_bytes)),
        ids=RequestIds(),
        pace=Pace(),
        unread=unread,
        lines=AnswerLines(),
        request_timeout_s=settings.request_timeout_s,
    )
    return ApiServer(dispatcher, front, shop, Shares(board, index), metrics)


def make_lanes(entries: Sequence[ModelEntry], transport: Transport) -> list[ModelQueue]:
    """One lane per model version, in the order of the repository, which is the same in every process."""
    lanes: list[ModelQueue] = []
    for entry in entries:
        queue = entry.config.queue
        for artifact in entry.artifacts:
            lanes.append(
                ModelQueue(
                    row=len(lanes),
                    generation=0,
                    model=entry.name,
                    version=artifact.version,
                    layout=Layout(artifact.signature),
                    bounds=Bounds(queue.max_rows, queue.max_bytes, queue.max_rows_per_request),
                    timeout_s=queue.timeout_s,
                    instances=entry.config.instances * transport.dimensions.workers,
                    max_batch_size=artifact.max_batch_size,
                    writer=TicketWriter(transport.queues[len(lanes)]),
                )
            )
    return lanes


def make_routes(
    lanes: Sequence[ModelQueue],
    entries: Sequence[ModelEntry],
    default_model: str | None,
    metrics: Metrics,
    broken: Iterable[str] = (),
) -> list[Route]:
    """The targets of the short way: each version, by path or query; each model's default version; the default model."""
    by_version = {(lane.model, lane.version): lane for lane in lanes}
    if default_model is None and len(entries) == 1 and only_model([entries[0].name], broken):
        default_model = entries[0].name
    routes = []
    for entry in entries:
        default = by_version[entry.name, entry.default_version]
        paths = [(f"/predict/{entry.name}", PREDICT_PATHS[1])]
        if entry.name == default_model:
            paths.append(("/predict", PREDICT_PATHS[0]))
        targets = [(path, "", pattern, default) for path, pattern in paths]
        for artifact in entry.artifacts:
            lane = by_version[entry.name, artifact.version]
            targets.append((f"/predict/{entry.name}/versions/{artifact.version}", "", PREDICT_PATHS[2], lane))
            targets += [(path, f"?version={artifact.version}", pattern, lane) for path, pattern in paths]
        for path, query, pattern, lane in targets:
            counters = {
                kind: metrics.answered_counter(PROTOCOL_OF[kind], lane.model, lane.version)
                for kind in BodyType
            }
            routes.append(Route(path, query, pattern, lane, lane.layout.signature, counters))
    return routes
