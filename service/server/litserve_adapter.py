"""The one file that knows LitServe and uvicorn: their classes, with our parts put in.

    FoldServer(LitServer).run      our transport, supervised by supervisor.py
      workers (spawned)            LitServe's inference_worker -> WorkerLoop -> worker/main.py
      API servers (forked)         LitServe's app and uvicorn -> Http1Protocol, or AppMiddleware -> frontend/asgi.py

Seams of LitServe 0.2.19 and uvicorn 0.54 that are used, and held by tests/service/server/test_litserve_adapter.py:
LitServer.{app, devices, lifespan, launch_single_inference_worker, _get_request_queue, _transport,
workers_setup_status}; litserve.server._Server.run; LitLoop.__call__ in the worker; uvicorn's Config(http=class),
Server.{startup, servers, main_loop, shutdown, capture_signals} and what connection.py, flow/control.py and
asgi_cycle.py of frontend/http1/ override of HttpToolsProtocol, FlowControl and RequestResponseCycle. Not used:
LitServe's routes, queues, manager process, GZip, timeouts, worker monitor, signal handling and log output, and
uvicorn's accepting (frontend/connections/).
"""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

import uvicorn
from fastapi import FastAPI
from litserve import LitAPI, LitServer
from litserve.loops.base import LitLoop
from litserve.server import _Server

from foldserve.service.frontend.asgi_channel import Receive, Scope, Send
from foldserve.service.frontend.connections import descriptors
from foldserve.service.frontend.connections.acceptor import Acceptor
from foldserve.service.frontend.http1.connection import Http1Protocol
from foldserve.service.host.processes import (
    die_with_parent,
    freeze_garbage,
    leave_removed_folder,
    stop_signals_blocked,
)
from foldserve.service.ipc.handles import Handle
from foldserve.service.ipc.resources import Transport
from foldserve.service.logs.records import configure_logging, flush_logs
from foldserve.service.server.api_server import ApiServer
from foldserve.service.server.children import Role
from foldserve.service.server.listeners import stop_accepting
from foldserve.service.server.supervisor import Supervisor
from foldserve.service.worker.main import WorkerIdentity, WorkerPlan, serve

_log = logging.getLogger("foldserve.api_server")

_WORKERS_PATH = "/workers"
"""LitServe wants a path for what it serves; no request reaches it."""


LINGER_S = 1.0
"""Then its connections stay open for so long, each until its next answer, which says that it closes: a request that was
sent before the end is answered, and a client learns of the end by an answer, not by losing one."""


class WorkerApi(LitAPI):  # type: ignore[misc]  # LitServe is untyped
    """All models together, as LitServe sees them. Made in the parent, pickled into the workers."""

    def __init__(self, plan: WorkerPlan) -> None:
        super().__init__(api_path=_WORKERS_PATH, loop=WorkerLoop())
        self.plan = plan

    def setup(self, device: str) -> None:
        """Nothing yet: models are loaded where the transport is at hand, in the loop."""

    def predict(self, x: Any) -> Any:
        """LitServe asks for it; WorkerLoop never calls it."""
        raise RuntimeError("requests do not pass through LitServe's predict")


class WorkerLoop(LitLoop):  # type: ignore[misc]
    """Runs in the worker in place of LitServe's loops."""

    def __call__(
        self,
        lit_api: WorkerApi,
        device: str,
        worker_id: int,
        request_queue: WorkerIdentity,
        transport: Transport,
        *_: Any,
    ) -> None:
        """Serve until the lifeline ends. `request_queue` is where LitServe passes what _get_request_queue gave."""
        die_with_parent()  # loading may take minutes, in which nobody looks at the lifeline
        configure_logging(lit_api.plan.log_style)
        serve(request_queue, device, transport, lit_api.plan)


class AppMiddleware:
    """The outermost ASGI layer: requests go to our application, uvicorn's lifespan messages to LitServe's app."""

    def __init__(self, app: Any, server: "FoldServer") -> None:
        self._app = app
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry."""
        await (self._app if scope["type"] == "lifespan" else self._server.api_server.app)(
            scope, receive, send
        )


OpenDoor = Callable[[Sequence[socket.socket], Callable[[], asyncio.Protocol]], Acceptor]


async def nothing_else() -> None:
    """Nothing is served beside HTTP."""


class UvicornServer(_Server):  # type: ignore[misc]
    """uvicorn's server without its ten wake-ups a second, without its signal handlers, and with our own accepting.

    Args:
        open_door: makes what takes connections off the sockets; called when the lifespan has begun.
        end_others: ends what is served beside HTTP, at the same time.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        stop: asyncio.Event,
        open_door: OpenDoor,
        end_others: Callable[[], Coroutine[None, None, None]] = nothing_else,
    ) -> None:
        super().__init__(config=config)
        self._end_others = end_others
        self._stop = stop
        self._open_door = open_door

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take connections off these sockets."""
        await super().startup(sockets=[])
        self.servers = [self._open_door(sockets or [], self._protocol)]

    def _protocol(self) -> asyncio.Protocol:
        """As uvicorn's own startup makes it."""
        protocol: asyncio.Protocol = self.config.http_protocol_class(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    async def main_loop(self) -> None:
        """Sleep until it is time to end. The Date header is kept by Http1Protocol."""
        await self._stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take what waits and close the listeners; give those who ask without a pause the time to be told with an
        answer; then as uvicorn does."""
        others = asyncio.ensure_future(self._end_others())
        stop_accepting(sockets or [])
        for server in self.servers:
            server.close()
            await server.wait_connected()
        loop = asyncio.get_running_loop()
        until_s = loop.time() + LINGER_S
        while self.server_state.connections and loop.time() < until_s:
            await asyncio.sleep(0.02)  # between two looks
        await others  # before the lifespan ends
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the parent's; it says through the lifeline when to end."""
        yield


@dataclass(frozen=True)
class _Launch:
    """The API server that is being forked: read in the child."""

    index: int
    lifeline: Handle


class FoldServer(LitServer):  # type: ignore[misc]
    """LitServe's server with our front, transport, loop and supervision.

    Args:
        plan: what every worker is given.
        devices: one per worker.
        make_api_server: makes the parts of an API server in its own process, on its event loop.
        drain_s: how long an API server may take to finish its requests once it has to stop.
    """

    def __init__(
        self,
        plan: WorkerPlan,
        devices: list[str],
        transport: Transport,
        make_api_server: Callable[[int], ApiServer],
        drain_s: int,
    ) -> None:
        super().__init__(
            WorkerApi(plan),
            accelerator="cpu",  # LitServe's own choice of devices is not used
            timeout=False,
            disable_openapi_url=True,
        )
        self.devices = devices
        self.uvicorn_graceful_timeout = drain_s
        self.workers_setup_status: dict[str, str] = {}
        self._transport = transport
        self._make_api_server = make_api_server
        self._identity: WorkerIdentity | None = None
        self._launch: _Launch | None = None
        self._sockets: list[socket.socket] = []
        self.supervisor: Supervisor | None = None
        self.api_server: ApiServer  # in an API server, from its lifespan on
        self.app.add_middleware(AppMiddleware, server=self)  # last added is outermost

    def run(
        self,
        sockets: list[socket.socket],
        supervisor: Supervisor,
        api_servers: int,
        on_loaded: Callable[[], bool],
    ) -> int:
        """Serve on bound sockets until the supervisor has to end.

        Args:
            on_loaded: called when every worker has loaded its models or given up; False ends the server.
        Returns: the exit code: 0 after a signal, 1 when no model can be served.
        """
        self._sockets = sockets
        self.supervisor = supervisor
        try:
            supervisor.start_workers(len(self.devices))
            supervisor.start_api_servers(api_servers)
            if supervisor.wait_until_loaded() and not on_loaded():
                return 1
            supervisor.wait()
        finally:
            supervisor.end()
        return 0

    def start(self, role: Role, index: int, incarnation: int, lifeline: Handle) -> BaseProcess:
        """Start a child for the supervisor."""
        leave_removed_folder()
        resource_tracker.ensure_running()  # started later, by the launch, it would unblock the signals
        with stop_signals_blocked():
            if role is Role.WORKER:
                self._identity = WorkerIdentity(index, incarnation, lifeline)
                process: BaseProcess = self.launch_single_inference_worker(
                    self.litapi_connector.lit_apis[0], index
                )
                return process
            self._launch = _Launch(index, lifeline)
            process = multiprocessing.get_context("fork").Process(
                target=self._run_api_server, name=f"api-server-{index}"
            )
            process.start()
            return process

    # -- what LitServe calls

    def _get_request_queue(self, api_path: str) -> Any:
        """LitServe passes this to the worker it starts."""
        return self._identity

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Around the serving of one API server, in its own process."""
        assert self._launch is not None
        self.api_server = self._make_api_server(self._launch.index)
        Http1Protocol.http = self.api_server.http
        self.api_server.listen(self._launch.lifeline.fd, self._stop.set)
        if self.api_server.grpc is not None:
            await self.api_server.grpc.start()
        freeze_garbage()
        yield

    # -- in an API server

    def _run_api_server(self) -> None:
        assert self._launch is not None
        assert self.supervisor is not None
        self.supervisor.close_in_child()
        config = uvicorn.Config(
            self.app,
            http=Http1Protocol,
            lifespan="on",
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,  # longer than the usual 60 s of load balancers, who must be the first to close
            timeout_graceful_shutdown=self.uvicorn_graceful_timeout,
        )
        self._stop = asyncio.Event()
        UvicornServer(config, self._stop, self._open_door, self._end_grpc).run(
            self._launch.index, self._sockets
        )
        flush_logs()
        os._exit(0)  # not multiprocessing's own ending, which would wait for the parent's other children

    async def _end_grpc(self) -> None:
        if self.api_server.grpc is not None:
            await self.api_server.grpc.stop(self.uvicorn_graceful_timeout)

    def _open_door(
        self, listeners: Sequence[socket.socket], make_protocol: Callable[[], asyncio.Protocol]
    ) -> Acceptor:
        free = descriptors.limit() - descriptors.open_now()
        room = descriptors.connection_limits(free)
        if room is None:
            _log.error("only %d files more can be opened, too few for connections; %s", free, descriptors.FIX)
            flush_logs()
            os._exit(1)
        refused = self.api_server.metrics.connection_refused
        shares, tls = self.api_server.shares, self.api_server.door.tls
        door = Acceptor(listeners, make_protocol, shares, room, refused, tls)
        Http1Protocol.left = door.left
        return door
