"""The parts of one API server, put together in its own process on its event loop.

    fast path   frontend/http1/connection.py -> http1/exchange.py ─┐
                                                            ├─> inference/request.py -> engine/dispatcher.py -> queues
    ASGI path   frontend/asgi.py -> asgi_exchange.py ───────┘

Also listens to the parent: what died, when to stop.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foldserve.service.engine import recovery
from foldserve.service.engine.codec_process import LARGE_COPY_BYTES
from foldserve.service.engine.codec_process.client import CodecProcess
from foldserve.service.engine.dispatcher import Dispatcher
from foldserve.service.engine.served import NOTHING_BROKEN
from foldserve.service.engine.status import BoardStatus
from foldserve.service.frontend.asgi import AsgiApp
from foldserve.service.frontend.connections.shares import Shares
from foldserve.service.frontend.http1.exchange import Http1Context
from foldserve.service.frontend.http1.flow.send_buffers import SendBuffers
from foldserve.service.frontend.http1.flow.throttle import RefusalThrottle
from foldserve.service.frontend.http1.response_lines import ResponseLines
from foldserve.service.inference.access_log import log_access, open_access_log
from foldserve.service.inference.body_budget import BodyBudget
from foldserve.service.inference.observers import Observers
from foldserve.service.inference.partial_body import PartialBodies
from foldserve.service.inference.server_context import ServerContext
from foldserve.service.ipc.control import CONTROL_STRUCT, ControlMessage
from foldserve.service.ipc.resources import Transport
from foldserve.service.ipc.shared_regions import SharedRegions
from foldserve.service.metrics.exporter import ExporterPlan
from foldserve.service.metrics.recorder import Metrics
from foldserve.service.metrics.scrapes import Scrapes
from foldserve.service.protocols import PROTOCOLS
from foldserve.service.protocols.kserve_v1 import KserveV1Calls
from foldserve.service.protocols.oip.calls import OipCalls
from foldserve.service.protocols.oip.information import Information
from foldserve.service.protocols.oip.region_calls import RegionCalls
from foldserve.service.protocols.predict import PredictCalls
from foldserve.service.protocols.torchserve import TorchServeCalls
from foldserve.service.server.access.control import Access, ApiAccess
from foldserve.service.server.api_models import ApiModels
from foldserve.service.settings import ServeSettings

if TYPE_CHECKING:
    from foldserve.service.frontend.grpc.server import GrpcServer

_log = logging.getLogger("foldserve.api_server")


@dataclass(frozen=True)
class ServedDevices:
    """of_workers: each worker's device. uuids: those of the GPUs among them, as the driver names them."""

    of_workers: Sequence[str]
    uuids: Mapping[str, str]


@dataclass(frozen=True)
class ApiServer:
    """What an API server's process holds. app: the ASGI path; http: the fast path; shares: who has how many
    connections; model_changed: called with a row of the model table; door: who may ask; grpc: None where it is off."""

    dispatcher: Dispatcher
    app: AsgiApp
    http: Http1Context
    shares: Shares
    metrics: Metrics
    model_changed: Callable[[int], None]
    door: ApiAccess
    grpc: "GrpcServer | None" = None

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
        elif word == ControlMessage.KEYS_CHANGED:
            if self.door.take_keys():
                self.http.keys_changed()
        elif word == ControlMessage.CERTIFICATE_CHANGED:
            self.door.take_certificate()
        elif word == ControlMessage.STOP:
            stop()


def make_api_server(
    index: int,
    transport: Transport,
    settings: ServeSettings,
    metrics: Metrics,
    devices: ServedDevices,
    broken: Mapping[str, str] = NOTHING_BROKEN,
    grpc_addresses: Sequence[str] = (),
    access: Access | None = None,
) -> ApiServer:
    """Put an API server together; called in its process, on its event loop. broken: see engine/served.py;
    grpc_addresses: see frontend/grpc/ports.py; access: None where everybody may ask."""
    board = transport.board.map()

    def report_hang(worker: int) -> None:
        transport.report(CONTROL_STRUCT.pack(ControlMessage.RUN_TIMEOUT, worker))

    def report_stall(row: int) -> None:
        transport.report(CONTROL_STRUCT.pack(ControlMessage.QUEUE_STALLED, row))

    dispatcher = Dispatcher(
        index,
        transport.arenas[index].map(),
        board,
        transport.done[index].reader.fd,
        settings.run_limit_s,
        report_hang,
        report_stall,
    )
    regions = None
    if transport.regions is not None:
        regions = SharedRegions(transport.regions.map(), LARGE_COPY_BYTES, settings.max_body_bytes)
    api_models = ApiModels(transport, dispatcher, metrics, settings, regions)
    memory = transport.arenas[index].memory
    codecs = CodecProcess(
        dispatcher,
        transport.models,
        PROTOCOLS,
        memory.handle.fd,
        memory.nbytes,
        settings.log_style,
        settings.run_limit_s,
        transport.regions,
        settings.max_body_bytes,
    )
    status = BoardStatus(dispatcher, api_models.models, devices.of_workers, broken)
    unread = SendBuffers(settings.receive_bytes)
    bodies = PartialBodies(BodyBudget(settings.receive_bytes), dispatcher)
    arena_bytes = dispatcher.arena.data_bytes
    dispatcher.evict = lambda nbytes: bodies.evict() or unread.evict_slow(nbytes, arena_bytes)
    if settings.access_log:
        open_access_log()
    observers = Observers(metrics, *([log_access] if settings.access_log else []))
    server = ServerContext(dispatcher, codecs, bodies, observers, settings.request_timeout_s)
    scrapes = Scrapes(
        ExporterPlan(
            metrics.store.memory,
            metrics.spec,
            transport.arenas,
            transport.board,
            transport.models,
            devices.uuids,
            os.getppid(),
            settings.log_style,
        )
    )
    information = Information(status, scrapes.counts, shared_memory=regions is not None)
    region_calls = RegionCalls(regions)
    calls = (
        PredictCalls(status, api_models.plans, settings.default_model),
        OipCalls(information, api_models.plans),
        region_calls,
        KserveV1Calls(status, api_models.plans, settings.default_model),
        TorchServeCalls(status, api_models.plans),
    )
    door = ApiAccess(access or Access(settings, board.dimensions), index)
    app = AsgiApp(status, server, calls, settings, scrapes, door.gate)
    routes = api_models.routes(settings.default_model, broken)
    http = Http1Context(server, routes, RefusalThrottle(), unread, ResponseLines(), door.gate)

    def model_changed(row: int) -> None:
        if api_models.changed(row):
            http.serve(api_models.routes(settings.default_model, broken))

    grpc = None
    if grpc_addresses:
        from foldserve.service.frontend.grpc.server import GrpcServer  # not before: see frontend/grpc/

        bounds = (settings.max_body_bytes, settings.max_in_flight)
        given = (*bounds, door.gate, door.tls)
        grpc = GrpcServer(server, information, region_calls, api_models.plans, grpc_addresses, *given)
    return ApiServer(dispatcher, app, http, Shares(board, index), metrics, model_changed, door, grpc)
