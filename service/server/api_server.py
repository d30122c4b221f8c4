"""The parts of one API server, put together in its own process on its event loop.

    the short way   FastProtocol -> frontend/http1/exchange.py ─┐
                                                 ├─> engine/dispatcher.py -> queues -> workers
    the long way    frontend/asgi.py -> protocols/predict.py -> engine/client.py ─┘

Also listens to the parent: what died, when to stop.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from service.engine import recovery
from service.engine.client import DispatchEngine
from service.engine.codec_process.client import CodecProcess
from service.engine.dispatcher import Dispatcher
from service.engine.interface import NOTHING_BROKEN
from service.frontend.asgi import Front
from service.frontend.connections.shares import Shares
from service.frontend.http1.answer_lines import AnswerLines
from service.frontend.http1.exchange import RequestIds, Shop
from service.frontend.http1.head_cache import Limits, Route
from service.frontend.http1.head_reader import HeadReader
from service.frontend.http1.throttle import Pace
from service.frontend.http1.unread import Unread
from service.frontend.receiving import Receiving
from service.inference.access_log import log_access
from service.ipc.control import CONTROL_STRUCT, ControlMessage
from service.ipc.resources import Transport
from service.metrics.exporter import ExporterPlan
from service.metrics.recorder import Metrics
from service.metrics.scrapes import Scrapes
from service.server.api_models import ApiModels
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
    connections; model_changed: called with a row of the model table."""

    dispatcher: Dispatcher
    front: Front
    shop: Shop
    shares: Shares
    metrics: Metrics
    model_changed: Callable[[int], None]

    def listen(self, fd: int, stop: Callable[[], None]) -> None:
        """Act on what the parent writes into this pipe, and end when the parent is gone."""
        asyncio.get_running_loop().add_reader(fd, self._on_messages, fd, stop)

    def _on_messages(self, fd: int, stop: Callable[[], None]) -> None:
        data = os.read(fd, CONTROL_STRUCT.size * 64)
        if not data:
            _log.error("the parent process is gone: ending")
            os._exit(1)
        for word, number in CONTROL_STRUCT.iter_unpack(data):
            try:
                self._act(word, number, stop)
            except Exception:
                _log.exception("message %d, %d of the supervisor could not be acted on", word, number)

    def _act(self, word: int, number: int, stop: Callable[[], None]) -> None:
        if word == ControlMessage.WORKER_DIED:
            again = recovery.after_worker_death(self.dispatcher, number)
            _log.warning("a worker died: %d of its requests are run again", len(again))
            for request in again:
                self.metrics.retried(request.queue.row, 1)
        elif word == ControlMessage.MODEL_CHANGED:
            self.model_changed(number)
        elif word == ControlMessage.ARE_YOU_ALIVE:
            self.dispatcher.board.answer(False, self.dispatcher.index)
        elif word == ControlMessage.STOP:
            stop()


def make_api_server(
    index: int,
    transport: Transport,
    settings: ServeSettings,
    metrics: Metrics,
    devices: ServedDevices,
    broken: Mapping[str, str] = NOTHING_BROKEN,
) -> ApiServer:
    """Put an API server together; called in its process, on its event loop. broken: see engine.Engine."""
    board = transport.board.map()

    def report_hang(worker: int) -> None:
        transport.report(CONTROL_STRUCT.pack(ControlMessage.WORKER_HANGS, worker))

    def report_stall(row: int) -> None:
        transport.report(CONTROL_STRUCT.pack(ControlMessage.MODEL_STALLS, row))

    dispatcher = Dispatcher(
        index,
        transport.arenas[index].map(),
        board,
        transport.done[index].reader.fd,
        settings.run_limit_s,
        report_hang,
        report_stall,
    )
    api_models = ApiModels(transport, dispatcher, metrics)
    memory = transport.arenas[index].memory
    codecs = CodecProcess(
        dispatcher,
        transport.models,
        memory.handle.fd,
        memory.nbytes,
        settings.log_level,
        settings.run_limit_s,
    )
    engine = DispatchEngine(dispatcher, codecs, api_models.models, devices.of_workers, broken)
    scrapes = Scrapes(
        ExporterPlan(
            metrics.store.memory,
            metrics.spec,
            transport.arenas,
            transport.board,
            transport.models,
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
    routes: dict[bytes, Route] = {}
    heads = HeadReader((), Limits(settings.max_body_bytes, settings.max_json_bytes))

    def set_routes() -> None:
        found = api_models.routes(settings.default_model, broken)
        routes.clear()
        routes.update((route.target, route) for route in found)
        heads.serve(found)

    set_routes()
    shop = Shop(
        routes=routes,
        dispatcher=dispatcher,
        codecs=codecs,
        metrics=metrics,
        receiving=receiving,
        log_access=log_access if settings.access_log else None,
        heads=heads,
        ids=RequestIds(),
        pace=Pace(),
        unread=unread,
        lines=AnswerLines(),
        request_timeout_s=settings.request_timeout_s,
    )

    def model_changed(row: int) -> None:
        if api_models.changed(row):
            set_routes()

    return ApiServer(dispatcher, front, shop, Shares(board, index), metrics, model_changed)
