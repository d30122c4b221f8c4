"""One connection of the fast protocol over a fake socket, with a real dispatcher over real memory behind it.

The worker is turned by hand, so that a test decides when answers come.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from foldserve.service.engine.codec_process.client import CodecProcess
from foldserve.service.engine.models import Models, QueuedVersion
from foldserve.service.engine.status import BoardStatus
from foldserve.service.frontend.asgi import AsgiApp
from foldserve.service.frontend.http1.connection import Http1Protocol
from foldserve.service.frontend.http1.exchange import Http1Context
from foldserve.service.frontend.http1.flow.send_buffers import SendBuffers
from foldserve.service.frontend.http1.flow.throttle import RefusalThrottle
from foldserve.service.frontend.http1.heads.cache import JsonRoute, OipRoute, PredictRoute
from foldserve.service.frontend.http1.parsing import MessageParsing
from foldserve.service.frontend.http1.response_lines import ResponseLines
from foldserve.service.inference.body_budget import BodyBudget
from foldserve.service.inference.context import RequestContext
from foldserve.service.inference.observers import Observers
from foldserve.service.inference.partial_body import PartialBodies
from foldserve.service.inference.server_context import ServerContext
from foldserve.service.logs.lines import LogStyle
from foldserve.service.metrics.counts import ModelCounts
from foldserve.service.protocols import PROTOCOLS
from foldserve.service.protocols.kserve_v1 import V1_PATHS, KserveV1Calls, plan_of
from foldserve.service.protocols.oip.calls import INFER_PATHS, OipCalls
from foldserve.service.protocols.oip.infer import OIP_BINARY, OIP_JSON
from foldserve.service.protocols.oip.information import Information
from foldserve.service.protocols.predict import PredictCalls
from foldserve.service.protocols.torchserve import TorchServeCalls
from foldserve.service.server.api_models import make_plans, predict_plans
from tests.service.engine_rig import FIXED, Rig
from tests.service.repositories import metrics_of
from tests.service.support import SETTINGS, served

PATH = "/predict/m0"
JSON = "application/json"
RAW = "application/octet-stream"
ASGI = "Content-Encoding: identity"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n"
"""A header that only the ASGI path knows, and that changes nothing."""
LIMIT_BYTES = 100_000
WORK_LIMIT_S = 60.0


def call(body: bytes, kind: str = JSON, *headers: str, path: str = PATH, method: str = "POST") -> bytes:
    """One request as it goes over the wire."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: test",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def rows(*values: float) -> bytes:
    """A JSON body of one row per value; the model answers with value + 1."""
    return json.dumps({"inputs": [[value, value] for value in values]}).encode()


class Socket(asyncio.Transport):
    """A transport whose other side is the test."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.largest_write = 0
        self.unsent_bytes = 0
        self.closing = self.aborted = False
        self.reading = True
        self.protocol: Any = None

    def write(self, data: Any) -> None:
        self.written += data
        self.largest_write = max(self.largest_write, len(data))

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.aborted = True
        self.close()

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def receive(self, data: bytes) -> None:
        """Bytes come, and are read at once, as event loops do it."""
        while data:
            if not isinstance(self.protocol, asyncio.BufferedProtocol):
                self.protocol.data_received(data)
                return
            buffer = memoryview(self.protocol.get_buffer(-1))
            nbytes = min(len(buffer), len(data))
            assert nbytes, "nothing could be read"
            buffer[:nbytes] = data[:nbytes]
            self.protocol.buffer_updated(nbytes)
            data = data[nbytes:]

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def values(self) -> list[float]:
        """What the model made of each row."""
        return [row[0] for row in json.loads(self.body)["outputs"]["y"]]

    @property
    def code(self) -> str:
        """An error's word."""
        return str(json.loads(self.body)["code"])


async def no_metrics(accept: str) -> tuple[bytes, str]:
    return b"", ""


async def nothing_counted() -> dict[tuple[str, str], ModelCounts]:
    return {}


class ApiServerHarness:
    """An API server without sockets. Make it on a running event loop."""

    def __init__(
        self, limit_bytes: int = LIMIT_BYTES, request_timeout_s: float | None = None, **rig: Any
    ) -> None:
        self.rig = Rig(**{"workers": 1, **rig})
        self.worker = self.rig.new_worker()
        self.metrics = metrics_of(("m0", "1"), writers=("one",))
        self.lines: list[tuple[RequestContext, int]] = []
        settings = replace(
            SETTINGS,
            max_body_bytes=limit_bytes,
            max_json_bytes=limit_bytes,
            default_model="m0",
            request_timeout_ms=int((request_timeout_s or 0.0) * 1000),
        )
        dispatcher = self.rig.dispatcher
        memory = self.rig.transport.arenas[0].memory
        self.codecs = CodecProcess(
            *(dispatcher, self.rig.transport.models, PROTOCOLS),
            *(memory.handle.fd, memory.nbytes, LogStyle("info"), WORK_LIMIT_S),
        )
        self.bodies = PartialBodies(BodyBudget(max(1 << 20, limit_bytes)), dispatcher)
        self.now_s = 1000.0
        self.unread = SendBuffers(1 << 20, lambda: self.now_s)
        dispatcher.evict = lambda nbytes: (
            self.bodies.evict() or self.unread.evict_slow(nbytes, dispatcher.arena.data_bytes)
        )
        observers = Observers(self.metrics, lambda context, status, _: self.lines.append((context, status)))
        context = ServerContext(dispatcher, self.codecs, self.bodies, observers, request_timeout_s)
        queue, models = dispatcher.queues[0], Models()
        models.add(QueuedVersion(queue, served("m0", ("1", FIXED)).versions["1"], ()))
        status = BoardStatus(dispatcher, models, ("cpu", "cpu"))
        plans = {("m0", "1"): make_plans(queue, settings, self.metrics)}
        self.app = AsgiApp(
            status,
            context,
            (
                PredictCalls(status, plans, "m0"),
                OipCalls(Information(status, nothing_counted), plans),
                KserveV1Calls(status, plans, "m0"),
                TorchServeCalls(status, plans),
            ),
            settings,
            no_metrics,
        )
        of_model = plans["m0", "1"]
        routes = [
            PredictRoute(PATH, "", "/predict/{model}", predict_plans(of_model)),
            OipRoute("/v2/models/m0/infer", INFER_PATHS[0], of_model[OIP_JSON.key], of_model[OIP_BINARY.key]),
            JsonRoute("/v1/models/m0:predict", V1_PATHS[0], plan_of(of_model)),
        ]
        throttle = RefusalThrottle(time.monotonic)  # a thread that never has time to spare
        self.http = Http1Context(context, routes, throttle, self.unread, ResponseLines())
        Http1Protocol.http = self.http
        MessageParsing._chunks, MessageParsing._next_turn = 0, False  # of a loop that is gone
        self.config = uvicorn.Config(
            self.app, http=Http1Protocol, ws="none", log_config=None, access_log=False
        )
        self.config.load()
        self.state = ServerState()

    def connect(self) -> "Connection":
        """A new connection."""
        return Connection(self)

    async def turn(self, until: Callable[[], bool] = lambda: False, most: int = 50) -> None:
        """Let the loop and the worker run until the condition holds, or all has come to rest."""
        for _ in range(most):
            if until():
                return
            await asyncio.sleep(0)
            self.rig.dispatcher.flush()
            self.worker.loops[0].step(wait=False)
            self.rig.dispatcher.receive()

    async def rest(self) -> None:
        """Let the loop run; the worker takes nothing."""
        for _ in range(20):
            await asyncio.sleep(0)

    @property
    def free(self) -> bool:
        """Whether no request holds anything any more."""
        return (
            self.rig.all_free()
            and not self.bodies.budget.used_bytes
            and not self.unread.used_bytes
            and not self.rig.dispatcher.lent_bytes
        )


class Connection:
    """One client."""

    def __init__(self, server: ApiServerHarness) -> None:
        self.socket = Socket()
        self.protocol = Http1Protocol(server.config, server.state, {}, asyncio.get_running_loop())
        self.socket.protocol = self.protocol
        self.protocol.connection_made(self.socket)

    def send(self, data: bytes) -> None:
        """Bytes that the server reads at once."""
        self.socket.receive(data)

    def end(self) -> None:
        """The client sends no more, and reads on."""
        if not self.socket.closing and not self.socket.protocol.eof_received():
            self.socket.close()

    def leave(self) -> None:
        """The client goes."""
        self.socket.closing = True
        self.socket.protocol.connection_lost(ConnectionResetError())

    def answers(self) -> list[Answer]:
        """Every whole answer so far; asserts that nothing stands between or behind them."""
        found, data, at = [], bytes(self.socket.written), 0
        while at < len(data):
            end = data.find(b"\r\n\r\n", at)
            assert end >= 0, f"no whole answer: {data[at:]!r}"
            status, *lines = data[at:end].decode("latin-1").split("\r\n")
            headers = {
                name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines)
            }
            body, at = end + 4, end + 4 + int(headers.get("content-length", 0))
            assert len(data) >= at
            found.append(Answer(int(status.split()[1]), headers, data[body:at]))
        return found


def run(test: Callable[[ApiServerHarness], Awaitable[Any]], **rig: Any) -> Any:
    """Run a test's body with a server on an event loop of its own."""

    async def main() -> Any:
        return await test(ApiServerHarness(**rig))

    return asyncio.run(main())


def statuses(connection: Connection) -> list[int]:
    return [answer.status for answer in connection.answers()]
