"""Numpy functions as models, the ASGI application over them, and ways to call that application."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.engine.codec_process.client import CodecProcess
from foldserve.service.engine.served import ServedBy, ServedModel, ServedVersion
from foldserve.service.frontend.asgi import AsgiApp
from foldserve.service.inference.access_log import log_access, open_access_log
from foldserve.service.inference.body_budget import BodyBudget
from foldserve.service.inference.observers import Observers
from foldserve.service.inference.partial_body import PartialBodies
from foldserve.service.inference.server_context import ServerContext
from foldserve.service.logs.lines import LogStyle
from foldserve.service.metrics.catalog import STAGES
from foldserve.service.metrics.counts import ModelCounts
from foldserve.service.protocols import PROTOCOLS
from foldserve.service.protocols.kserve_v1 import KserveV1Calls
from foldserve.service.protocols.oip.calls import OipCalls
from foldserve.service.protocols.oip.information import Information
from foldserve.service.protocols.oip.region_calls import RegionCalls
from foldserve.service.protocols.predict import PredictCalls
from foldserve.service.protocols.routes import Route
from foldserve.service.protocols.torchserve import TorchServeCalls
from foldserve.service.server.api_models import make_plans
from foldserve.service.settings import ServeSettings
from tests.service.engine_rig import Rig

DOUBLE = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),))
"""y = 2 x."""
PAIR = Signature(
    (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "INT64", (-1,))),
    (TensorSpec("sum", "FP32", (-1, 2)), TensorSpec("count", "INT64", (-1,))),
)
"""sum = a + b by rows; count = b + 1."""
SEQUENCE = Signature((TensorSpec("tokens", "INT64", (-1, -1)),), (TensorSpec("total", "INT64", (-1, 1)),))
"""total = the sum of a row of any length."""
PICTURE = Signature((TensorSpec("image", "UINT8", (-1, 3, 8, 8)),), (TensorSpec("mean", "FP32", (-1, 1)),))
"""mean = the mean of a picture."""

Function = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


def double(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"y": inputs["x"] * np.float32(2)}


def triple(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"y": inputs["x"] * np.float32(3)}


def pair(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"sum": inputs["a"] + inputs["b"][:, None].astype("f4"), "count": inputs["b"] + 1}


def sequence(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"total": inputs["tokens"].sum(axis=1, keepdims=True)}


def picture(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"mean": inputs["image"].reshape(len(inputs["image"]), -1).mean(axis=1, keepdims=True, dtype="f4")}


def served(name: str, *versions: tuple[str, Signature], ready: bool = True) -> ServedModel:
    """A model with these versions, of which the last is the default."""
    made = {
        version: ServedVersion(version, signature, "onnxruntime", 32, ready, {"opset": 20})
        for version, signature in versions
    }
    return ServedModel(name, versions[-1][0], made)


class NumpySession:
    """Runs a function, and notes the rows of each run."""

    notes: Sequence[str] = ()
    keeps_outputs = True

    def __init__(self, models: "NumpyModels", model: str, version: str) -> None:
        self._models = models
        self._version = (model, version)

    def host_buffers(self, rows: int) -> None:
        return None

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._models.calls.append((*self._version, len(next(iter(inputs.values())))))
        return self._models.functions[self._version](inputs)


@dataclass
class NumpyModels:
    """Functions served by a worker in the calling process, over the engine's real queues and memory.

    Implements engine.served.Status by what it is told. held: while True, nothing is taken from the queues; arrived is
    set when something is there to take.
    calls: model, version and rows of every run.
    """

    functions: dict[tuple[str, str], Function]
    served: dict[str, ServedModel]
    is_ready: bool = True
    is_draining: bool = False
    held: bool = False
    arrived: threading.Event = field(default_factory=threading.Event)
    calls: list[tuple[str, str, int]] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    queue: dict[str, Any] = field(default_factory=dict)
    """What differs from Rig's defaults."""

    def ready(self) -> bool:
        return self.is_ready

    def draining(self) -> bool:
        return self.is_draining

    def models(self) -> dict[str, ServedModel]:
        return self.served

    def broken(self) -> dict[str, str]:
        return self.problems

    def served_by(self, model: str, version: str) -> list[ServedBy]:
        rows = self.served[model].versions[version].max_batch_size
        return [
            ServedBy("cuda:0", True, (8, rows), 8, ("plain runs: no graph can be captured",)),
            ServedBy("cuda:1", False, (8, rows), rows),
        ]


def models() -> NumpyModels:
    """The four models; `double` has a version 2 that triples."""
    models = (
        served("double", ("1", DOUBLE), ("2", DOUBLE)),
        served("pair", ("1", PAIR)),
        served("sequence", ("1", SEQUENCE)),
        served("picture", ("1", PICTURE)),
    )
    functions = {
        ("double", "1"): double,
        ("double", "2"): triple,
        ("pair", "1"): pair,
        ("sequence", "1"): sequence,
        ("picture", "1"): picture,
    }
    return NumpyModels(functions, {model.name: model for model in models})


def one_model() -> NumpyModels:
    """Only `double`, in one version."""
    return NumpyModels({("double", "1"): double}, {"double": served("double", ("1", DOUBLE))})


@dataclass
class CountingMetrics:
    """Keeps what is counted of requests. Has what Observers and plans ask of metrics.recorder.Metrics.

    names: of the model versions, by row.
    """

    finished: list[dict[str, Any]] = field(default_factory=list)
    names: Sequence[tuple[str, str]] = ()

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
        self.finished.append(
            {
                "protocol": protocol,
                "model": model,
                "version": version,
                "status": status,
                "duration_s": duration_s,
                "rows": rows,
                "stages": dict(stages_s or {}),
                "error_code": error_code,
            }
        )

    def answered_counter(self, protocol: str, model_row: int) -> Callable[..., None]:
        model, version = self.names[model_row]

        def count(duration_s: float, rows: int, *stages_s: float) -> None:
            stages = dict(zip(STAGES, stages_s, strict=True))
            self.request_finished(protocol, model, version, 200, duration_s, rows=rows, stages_s=stages)

        return count


SETTINGS = ServeSettings(
    repository=Path("repository"),
    host="127.0.0.1",
    port=8000,
    grpc_port=0,
    keys=None,
    tls_certificate=None,
    tls_key=None,
    tls_client_ca=None,
    cors_origins=None,
    device="cpu",
    api_servers=1,
    workers_per_device=1,
    default_model="double",
    max_models=None,
    max_body_bytes=2**20,
    max_json_bytes=2**20,
    max_in_flight=64,
    run_limit_s=60.0,
    load_limit_s=600.0,
    strict=False,
    receive_bytes=16 * 2**20,
    arena_bytes=16 * 2**20,
    request_timeout_ms=30_000,
    drain_grace_s=0.0,
    access_log=False,
    client_shared_memory=False,
    check_moves=False,
    log_level="info",
    log_format="text",
)


async def counts() -> dict[tuple[str, str], ModelCounts]:
    return {}


async def exposition(accept: str) -> tuple[bytes, str]:
    """Stands for the metrics page; says what was accepted."""
    return f"# accept {accept}\n".encode(), "text/plain; version=0.0.4"


class Served:
    """The ASGI application over these models; all that needs an event loop is made on the first one that calls it."""

    def __init__(self, models: NumpyModels, metrics: CountingMetrics, settings: ServeSettings) -> None:
        self.models = models
        self.metrics = metrics
        self.settings = settings
        self._apps: dict[asyncio.AbstractEventLoop, AsgiApp] = {}
        self._codecs: dict[asyncio.AbstractEventLoop, CodecProcess] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app()(scope, receive, send)

    def app(self) -> AsgiApp:
        """The running loop's."""
        loop = asyncio.get_running_loop()
        if loop not in self._apps:
            self._apps[loop] = self._made(loop)
        return self._apps[loop]

    async def end(self) -> None:
        """End the running loop's codec process, if there is one."""
        codecs = self._codecs.get(asyncio.get_running_loop())
        if codecs is None or codecs.pid is None:
            return
        os.kill(codecs.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            while codecs.pid is not None:
                await asyncio.sleep(0.005)  # until its end is read

    def routes(self) -> tuple[Route, ...]:
        """All that are answered."""

        async def main() -> tuple[Route, ...]:
            return self.app().routes.routes

        return asyncio.run(main())

    def _made(self, loop: asyncio.AbstractEventLoop) -> AsgiApp:
        models = self.models.served
        names = [
            (model, version)
            for model, version in self.models.functions
            if model in models and version in models[model].versions
        ]
        signatures = [models[model].versions[version].signature for model, version in names]
        manifests = {(model, version): models[model].versions[version].manifest for model, version in names}
        rig = Rig(
            *signatures,
            names=names,
            manifests=manifests,
            workers=1,
            **{"data_bytes": 1 << 23, **self.models.queue},
        )
        worker = rig.new_worker(sessions=[NumpySession(self.models, *name) for name in names])
        for row, (model, version) in enumerate(names):
            rig.board.ready[0, row] = models[model].versions[version].ready

        def turn(row: int) -> None:
            self.models.arrived.set()
            while not self.models.held and worker.loops[row].step(wait=False):
                pass

        for row in range(len(names)):
            loop.add_reader(rig.transport.queues[row].levels[0].reader.fd, turn, row)
        dispatcher = rig.dispatcher
        memory = rig.transport.arenas[0].memory
        codecs = CodecProcess(
            *(dispatcher, rig.transport.models, PROTOCOLS),
            *(memory.handle.fd, memory.nbytes, LogStyle("info"), 60.0),
        )
        self._codecs[loop] = codecs
        settings = self.settings
        if settings.access_log:
            open_access_log()
        observers = Observers(self.metrics, *([log_access] if settings.access_log else []))
        bodies = PartialBodies(BodyBudget(settings.receive_bytes), dispatcher)
        dispatcher.evict = lambda nbytes: bodies.evict()
        context = ServerContext(dispatcher, codecs, bodies, observers, settings.request_timeout_s)
        self.metrics.names = names
        plans = {
            names[row]: make_plans(queue, settings, self.metrics)
            for row, queue in rig.dispatcher.queues.items()
        }
        return AsgiApp(
            self.models,
            context,
            (
                PredictCalls(self.models, plans, settings.default_model),
                OipCalls(Information(self.models, counts), plans),
                RegionCalls(None),
                KserveV1Calls(self.models, plans, settings.default_model),
                TorchServeCalls(self.models, plans),
            ),
            settings,
            exposition,
        )


def app_of(
    behind: NumpyModels | None = None, metrics: CountingMetrics | None = None, **settings: Any
) -> Served:
    """An application over the models, with these settings changed."""
    return Served(behind or models(), metrics or CountingMetrics(), replace(SETTINGS, **settings))


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def error(self) -> tuple[int, str]:
        """Status and code, after a check that the answer has the one shape of errors."""
        content = self.json()
        assert self.headers["content-type"] == "application/json"
        assert content.keys() == {"error", "code"}
        assert content["error"]
        return self.status, content["code"]


Headers = Mapping[str, str]
JSON = {"content-type": "application/json"}
RAW = {"content-type": "application/octet-stream"}
NPY = {"content-type": "application/x-npy"}


async def call_async(
    app: Any,
    method: str,
    path: str,
    body: bytes | list[bytes] = b"",
    headers: Headers | list[tuple[str, str]] = (),
    *,
    then_gone: bool = False,
) -> Reply | None:
    """One request to the ASGI application; None when it answered nothing.

    body: a list is sent chunk by chunk, without Content-Length.
    then_gone: the client closes before the last chunk.
    """
    chunks = body if isinstance(body, list) else [body]
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    if not then_gone:
        messages[-1]["more_body"] = False
    if then_gone:
        messages.append({"type": "http.disconnect"})
    pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
    if not isinstance(body, list):
        pairs.append(("content-length", str(len(body))))
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in pairs],
        "scheme": "http",
    }
    sent: list[Any] = []

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        return await asyncio.Event().wait()  # a client that stays says nothing more

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    if not sent:
        return None
    answer_headers = {name.decode(): value.decode("latin-1") for name, value in sent[0]["headers"]}
    return Reply(
        sent[0]["status"], answer_headers, b"".join(message.get("body", b"") for message in sent[1:])
    )


def call(app: Any, method: str, path: str, body: bytes | list[bytes] = b"", headers: Any = ()) -> Reply:
    """call_async() outside of a loop, for a request that is answered."""
    reply = asyncio.run(call_async(app, method, path, body, headers))
    assert reply is not None
    return reply


def post(app: Any, path: str, value: Any, **headers: str) -> Reply:
    """POST a JSON value; keyword X_Timeout_Ms="5" is the header X-Timeout-Ms."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return call(app, "POST", path, json.dumps(value).encode(), {**JSON, **named})


@contextlib.contextmanager
def running(app: Any) -> Iterator[int]:
    """Serve the application with uvicorn on a free port of the loopback; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, timeout_graceful_shutdown=5, http="httptools"
        )
        server = uvicorn.Server(config)
        started = threading.Event()
        thread = threading.Thread(target=_serve, args=(app, server, listener, started), daemon=True)
        thread.start()
        assert started.wait(timeout=20)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()


def _serve(app: Any, server: uvicorn.Server, listener: socket.socket, started: threading.Event) -> None:
    async def main() -> None:
        begin = server.startup

        async def startup(sockets: Any = None) -> None:
            await begin(sockets=sockets)
            started.set()

        server.startup = startup  # type: ignore[method-assign]
        await server.serve(sockets=[listener])
        if isinstance(app, Served):
            await app.end()

    asyncio.run(main())
