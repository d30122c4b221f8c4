"""The one file that knows LitServe: its LitServer, LitAPI and batching loop, with our parts put in.

    FoldServer.run (supervisor.py) starts, watches, restarts and ends:
      manager                    LitServe's queues
      workers (spawned)          per model version, device, instance: ModelApi in RowLoop -> instance.py
      API servers (forked)       uvicorn -> FrontMiddleware -> http.py -> litserve_engine.py -> queue

Seams of LitServe 0.2.19 that are used, and held by tests/service/test_litserve_shell.py: the methods
overridden below; LitServer.{app, devices, response_buffer, litapi_connector, _transport, _start_server,
launch_inference_worker, launch_single_inference_worker}; the shape of queue items and of answers. Not used:
its routes, GZip, timeouts, worker monitor, signal handling and log output.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.managers import SyncManager
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import Empty
from typing import Any

from fastapi import FastAPI
from litserve import LitAPI, LitServer
from litserve.loops.base import _StopLoopError
from litserve.loops.simple_loops import BatchedLoop
from litserve.transport.factory import create_transport_from_config
from litserve.utils import LitAPIStatus, LoopResponseType

from service.artifact import Artifact
from service.backends import LoadError, SessionOptions
from service.body import Receive
from service.http import Front, Scope, Send
from service.instance import Instance
from service.litserve_engine import LitServeEngine, Queued
from service.loading import load_model
from service.logs import configure_logging
from service.metrics import BatchReason, Metrics, Plan
from service.model_config import ModelConfig
from service.outcome import Outcome
from service.processes import StopSignals, die_with_parent, stop_signals_blocked
from service.supervisor import API_SERVER_DRAIN_S, Supervisor, Worker
from service.worker_report import WorkerReport, write_report

log = logging.getLogger(__name__)

# A worker asks the queue again after so long: the manager gives up a waiting read of a dead worker by then.
_QUEUE_READ_S = 1.0


@dataclass(frozen=True)
class WorkerPlan:
    """What every worker of one model version is given. writers: its metrics rows, by worker number."""

    artifact: Artifact
    config: ModelConfig
    options: SessionOptions
    metrics_path: Path
    metrics_plan: Plan
    writers: tuple[str, ...]
    runtime: Path
    log_level: str


class ModelApi(LitAPI):  # type: ignore[misc]  # LitServe is untyped
    """One model version, as LitServe sees it. Made in the supervisor, pickled into the workers."""

    def __init__(self, plan: WorkerPlan) -> None:
        # A window of 0 makes LitServe's own loop spin; ours blocks, and reads the window from the config.
        super().__init__(
            max_batch_size=max(2, plan.artifact.max_batch_size),
            batch_timeout=0.0,
            api_path=api_path(plan.artifact.model, plan.artifact.version),
            loop=RowLoop(),
        )
        self.plan = plan
        self.reason: BatchReason = "drained"
        self._instance: Instance | None = None

    def setup(self, device: str) -> None:
        """Load the model; in the worker. A model that cannot be served ends the process, after a report."""
        die_with_parent()
        configure_logging(self.plan.log_level)
        plan, artifact = self.plan, self.plan.artifact
        writer = plan.writers[int(os.environ["LITSERVE_WORKER_ID"])]
        metrics = Metrics.attach(plan.metrics_path, plan.metrics_plan, writer)
        started_s = time.monotonic()
        problem = ""
        try:
            session = load_model(artifact, plan.config, device, plan.options)
            self._instance = Instance(artifact, plan.config, session, metrics)
        except LoadError as error:
            problem = str(error)
        except Exception as error:
            log.exception("loading %s/%s failed unexpectedly", artifact.model, artifact.version)
            problem = f"loading failed unexpectedly: {error!r}; the log tells more"
        load_s = time.monotonic() - started_s
        write_report(plan.runtime, writer, WorkerReport(load_s, problem))
        metrics.model_loaded(artifact.model, artifact.version, not problem, load_s)
        if problem:
            raise SystemExit(0)

    def batch(self, inputs: list[Queued]) -> list[Queued]:
        """Requests stay apart: instance.py decides which rows run together."""
        return inputs

    def predict(self, taken: list[tuple[float, Queued]]) -> list[Outcome]:
        """Run what the loop took from the queue."""
        assert self._instance is not None
        return self._instance.run([queued.as_request(at_s) for at_s, queued in taken], self.reason)

    def unbatch(self, output: list[Outcome]) -> list[Outcome]:
        """One outcome per request already."""
        return output


class RowLoop(BatchedLoop):  # type: ignore[misc]
    """LitServe's batched loop, taking requests so that rows count and an idle worker sleeps."""

    @property
    def worker_id(self) -> int:
        """Goes with every answer: the process id, which unlike LitServe's number no restart repeats."""
        return os.getpid()

    def get_batch_requests(
        self, lit_api: ModelApi, request_queue: Any, transport: Any
    ) -> tuple[list[Any], list[Any]]:
        """Take what waits, up to a full batch; wait for more only within the window after the first."""
        window_s = lit_api.plan.config.max_queue_delay_s
        room = lit_api.plan.artifact.max_batch_size
        taken: list[Any] = []
        wait_s, until_s = _QUEUE_READ_S, 0.0
        lit_api.reason = "waited" if window_s else "drained"
        while room > 0:
            try:
                item = request_queue.get(timeout=wait_s) if wait_s > 0 else request_queue.get_nowait()
            except Empty:
                break
            except (OSError, EOFError):  # the manager is gone: the server is ending
                raise _StopLoopError from None
            response_queue_id, uid, queued_s, queued = item
            self.put_response(
                transport, response_queue_id, uid, (), LitAPIStatus.START, LoopResponseType.REGULAR
            )
            if not taken:
                until_s = time.monotonic() + window_s
            taken.append((response_queue_id, uid, (queued_s, queued)))
            room -= queued.rows
            wait_s = until_s - time.monotonic()
        return taken, []


class FrontMiddleware:
    """The outermost ASGI layer: requests go to our front, uvicorn's lifespan messages to LitServe's app."""

    def __init__(self, app: Any, front: Front) -> None:
        self._app = app
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry."""
        await (self._app if scope["type"] == "lifespan" else self._front)(scope, receive, send)


class FoldServer(LitServer):  # type: ignore[misc]
    """LitServe's server with our front, engine, loop and supervision. run() may be called once."""

    def __init__(
        self,
        plans: list[WorkerPlan],
        devices: tuple[str, ...],
        engine: LitServeEngine,
        front: Front,
        metrics: Metrics,
    ) -> None:
        """
        Args:
            plans: one per model version; its writers tell how many workers it gets, the same on each device.
        """
        per_device = {
            api_path(plan.artifact.model, plan.artifact.version): len(plan.writers) // len(devices)
            for plan in plans
        }
        super().__init__(
            [ModelApi(plan) for plan in plans],
            accelerator="cpu",  # LitServe's own choice of devices is not used
            workers_per_device=per_device,
            timeout=False,
            restart_workers=True,  # has workers say which requests they took
            disable_openapi_url=True,
        )
        self.devices = list(devices)
        self.uvicorn_graceful_timeout = API_SERVER_DRAIN_S
        self.engine = engine
        self.response_buffer = engine.buffer
        self.metrics = metrics
        self._notice_pipes: list[tuple[int, int]] = []
        self.app.add_middleware(FrontMiddleware, front=front)  # last added is outermost

    def run(
        self,
        sockets: list[socket.socket],
        api_servers: int,
        drain_grace_s: float,
        on_loaded: Callable[[], bool],
        stop: StopSignals,
    ) -> int:
        """Serve on bound sockets until SIGINT or SIGTERM; a second one ends it at once.

        Args:
            on_loaded: called when every worker has loaded its model or given up; False ends the server.
        Returns: the exit code: 0 after a signal; 1 when no model can be served or a part died that cannot be
            started again.
        """
        self._notice_pipes = [os.pipe() for _ in range(api_servers)]
        with contextlib.ExitStack() as at_end:
            for fd in (fd for pipe in self._notice_pipes for fd in pipe):
                at_end.callback(os.close, fd)
            manager = self._init_manager(api_servers)
            at_end.callback(manager.shutdown)
            supervisor = Supervisor(
                workers=[worker for api in self.litapi_connector for worker in self._launch(api)],
                others=[manager._process],  # type: ignore[attr-defined]
                api_servers=self._fork_api_servers(sockets),
                api_pipes=[write_end for _, write_end in self._notice_pipes],
                metrics=self.metrics,
                runtime=self.engine.runtime,
            )
            at_end.callback(supervisor.end)
            code = supervisor.watch(stop, on_loaded)
            if stop.count == 1:
                supervisor.drain(stop, drain_grace_s)
        return code

    # What LitServe calls --------------------------------------------------------------------------------

    def _init_manager(self, num_api_servers: int) -> SyncManager:
        """LitServe's own, but for a manager that does not outlive us and the queues handed to the engine."""
        manager = SyncManager()
        with stop_signals_blocked():
            manager.start(initializer=die_with_parent)
        self.transport_config.manager = manager
        self.transport_config.num_consumers = num_api_servers
        self.workers_setup_status = manager.dict()
        for api in self.litapi_connector:
            queue = self.litapi_request_queues[api.api_path] = manager.Queue()
            self.engine.queues[(api.plan.artifact.model, api.plan.artifact.version)] = queue
        self._transport = create_transport_from_config(self.transport_config)
        return manager

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Runs in each API server, around LitServe's own, which reads the answers."""
        die_with_parent()
        number: int = app.response_queue_id  # type: ignore[attr-defined]  # LitServe sets it
        self.metrics.write_as(api_writer(number))
        self.engine.response_queue_id = number
        self.engine.stop = _stop_this_process
        read_end = self._notice_pipes[number][0]
        asyncio.get_running_loop().add_reader(read_end, self.engine.read_notices, read_end)
        async with super().lifespan(app):
            yield

    # Starting processes -----------------------------------------------------------------------------------

    def _launch(self, api: ModelApi) -> list[Worker]:
        """Start the workers of one model version."""
        resource_tracker.ensure_running()  # started later, by the launch, it would unblock the signals
        with stop_signals_blocked():
            processes = self.launch_inference_worker(api)
        devices = self._inference_workers_config_for_api(api.api_path)
        artifact = api.plan.artifact
        return [
            Worker(
                label=f"worker {number} of {artifact.model}/{artifact.version} on {device}",
                writer=api.plan.writers[number],
                device=device,
                start=partial(self._relaunch, api, number),
                process=process,
                started_s=time.monotonic(),
            )
            for number, (process, device) in enumerate(zip(processes, devices, strict=True))
        ]

    def _relaunch(self, api: ModelApi, number: int) -> BaseProcess:
        """Start one worker again."""
        resource_tracker.ensure_running()
        with stop_signals_blocked():
            process: BaseProcess = self.launch_single_inference_worker(api, number)
        return process

    def _fork_api_servers(self, sockets: list[socket.socket]) -> list[BaseProcess]:
        with stop_signals_blocked():
            started = self._start_server(
                None,
                len(self._notice_pipes),
                "warning",
                sockets,
                "process",
                log_config=None,
                access_log=False,
                server_header=False,
                ws="none",
                lifespan="on",
            )
        return list(started.values())


def api_path(model: str, version: str) -> str:
    """LitServe's name for a model version: a path that nobody can call."""
    return f"/{model}@{version}"


def api_writer(number: int) -> str:
    """The metrics row of an API server."""
    return f"api-{number}"


def worker_writer(model: str, version: str, number: int) -> str:
    """The metrics row of a worker."""
    return f"worker-{model}-{version}-{number}"


def _stop_this_process() -> None:
    """Have uvicorn end this API server as at SIGTERM, which is blocked: only the supervisor decides."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.kill(os.getpid(), signal.SIGTERM)
