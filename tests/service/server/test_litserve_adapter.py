"""The seams of LitServe and uvicorn that server/litserve_adapter.py and frontend/http1/connection.py lean on.

An update that moves one must fail here, with its name, and not in a server at work. When a digest differs: read
what changed, mend our part where it must be, and put the new digest in.
"""

import asyncio
import hashlib
import inspect
import os
import socket
import textwrap
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop
from fastapi import FastAPI
from litserve import LitAPI, LitServer
from litserve.loops.base import LitLoop
from litserve.loops.loops import inference_worker
from litserve.server import _Server
from uvicorn.lifespan.on import LifespanOn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from foldserve.service.frontend.connections.acceptor import Acceptor
from foldserve.service.frontend.connections.descriptors import ConnectionLimits
from foldserve.service.frontend.connections.shares import Shares
from foldserve.service.frontend.http1.asgi_cycle import AsgiCycle
from foldserve.service.frontend.http1.connection import Http1Protocol
from foldserve.service.frontend.http1.flow.control import Flow
from foldserve.service.ipc.resources import Sizes, Transport
from foldserve.service.ipc.scoreboard import Dimensions, Scoreboard
from foldserve.service.logs.lines import LogStyle
from foldserve.service.server import litserve_adapter as shell
from foldserve.service.server.children import Role
from foldserve.service.server.litserve_adapter import (
    AppMiddleware,
    FoldServer,
    UvicornServer,
    WorkerApi,
    WorkerLoop,
)
from foldserve.service.worker.main import WorkerPlan
from tests.service.repositories import metrics_of

VERSIONS = {"litserve": "0.2.19", "uvicorn": "0.54.0", "httptools": "0.9.0"}

DIGESTS: dict[Callable[..., Any], str] = {
    inference_worker: "f7d46425b66a2aff",
    LitServer.launch_single_inference_worker: "24825b58eba15353",
    LitServer._inference_workers_config_for_api: "57b03e14f5679196",
    _Server.run: "ec8c8508b89249e4",
    uvicorn.Server.run: "9f361c0a9632f744",
    uvicorn.Server.serve: "20557f5f925b5a3c",
    uvicorn.Server._serve: "808a98031a4105f5",
    uvicorn.Server.startup: "61dd959a73fc3de8",
    uvicorn.Server.shutdown: "9f8a90ed456dcfee",
    uvicorn.Server._wait_tasks_to_complete: "1a1914c408f5b2d6",
    LifespanOn.startup: "1d03bf3448042c0a",
    FlowControl: "126debcdaa894c83",
    HttpToolsProtocol: "18fdf324b11bf160",
    RequestResponseCycle: "e67d470d435dcc1c",
}
"""What we override, call, or count on to call us: the source as it was read."""

LONG_S = 20
"""Nothing here takes so long unless it waits for what does not come."""

OURS = [
    (FoldServer, LitServer),
    (WorkerApi, LitAPI),
    (WorkerLoop, LitLoop),
    (UvicornServer, uvicorn.Server),
    (Http1Protocol, HttpToolsProtocol),
    (Flow, FlowControl),
    (AsgiCycle, RequestResponseCycle),
]


def open_door(listeners: Sequence[socket.socket], make_protocol: Callable[[], asyncio.Protocol]) -> Acceptor:
    """What takes the connections of the only API server."""
    shares = Shares(Scoreboard(Dimensions(1, 1, 1, 1)).map(), 0)
    return Acceptor(
        listeners, make_protocol, shares, ConnectionLimits(connections=100, guests=4), lambda why: None
    )


def digest(of: Callable[..., Any]) -> str:
    """Of the source, whatever its indentation."""
    return hashlib.sha256(textwrap.dedent(inspect.getsource(of)).encode()).hexdigest()[:16]


def parameters(of: Callable[..., Any]) -> list[str]:
    """The names of all but **those."""
    found = inspect.signature(of).parameters.values()
    return [parameter.name for parameter in found if parameter.kind is not parameter.VAR_KEYWORD]


@pytest.mark.parametrize("package", VERSIONS)
def test_installed_version_is_the_one_that_was_read(package: str) -> None:
    assert version(package) == VERSIONS[package]
    assert f"{package}=={VERSIONS[package]}\n" in (Path(__file__).parents[3] / "constraints.txt").read_text()


@pytest.mark.parametrize("seam", DIGESTS, ids=lambda seam: seam.__qualname__)
def test_source_that_is_leaned_on_is_the_one_that_was_read(seam: Callable[..., Any]) -> None:
    assert digest(seam) == DIGESTS[seam], f"{seam.__module__}.{seam.__qualname__} has changed: {digest(seam)}"


@pytest.mark.parametrize(("ours", "theirs"), OURS, ids=lambda kind: kind.__name__)
def test_methods_that_both_have_take_the_same_number_of_arguments(ours: type, theirs: type) -> None:
    shared = {
        name: method
        for name, method in vars(ours).items()
        if inspect.isfunction(method) and callable(getattr(theirs, name, None)) and name != "__init__"
    }
    # Ours with a life of their own: FoldServer.run is called by server/main.py alone, a loop is called with more.
    own = {(FoldServer, "run"), (WorkerLoop, "__call__")}
    assert shared
    for name, method in shared.items():
        if (ours, name) not in own:
            assert len(parameters(method)) == len(parameters(getattr(theirs, name))), name


# What our files count on, one by one --------------------------------------------------------------------


def test_litserve_calls_a_loop_with_the_seat_and_the_transport_where_ours_expects_them() -> None:
    source = inspect.getsource(inference_worker)
    arguments = source[source.rindex("    loop(") :].split("loop(")[1].split(")")[0]
    passed = [word.strip() for word in arguments.split(",") if word.strip()]
    ours = parameters(WorkerLoop.__call__)[1:-1]
    assert passed[: len(ours)] == ours


def test_methods_of_ours_that_uvicorn_must_call_are_called_by_it() -> None:
    assert "self.main_loop()" in inspect.getsource(uvicorn.Server._serve)
    assert "self.capture_signals()" in inspect.getsource(uvicorn.Server.serve)
    assert "uvicorn.server.Server" in inspect.getsource(_Server)
    assert {"http", "lifespan", "timeout_keep_alive", "timeout_graceful_shutdown", "server_header"} < set(
        parameters(uvicorn.Config)
    )


def test_class_given_as_http_is_the_one_that_connections_get() -> None:
    config = uvicorn.Config(app=FastAPI(), http=Http1Protocol, ws="none", log_config=None)
    config.load()
    assert config.http_protocol_class is Http1Protocol


@pytest.fixture
def server() -> FoldServer:
    metrics = metrics_of()
    plan = WorkerPlan(metrics.store.memory, metrics.spec, ("one",), LogStyle("info"), False)
    transport = Transport(Dimensions(1, 2, 1, 1), Sizes(16, 2**20))
    return FoldServer(plan, ["cpu", "cuda:1"], transport, lambda index: pytest.fail("not here"), drain_s=7)


def test_every_request_meets_our_front_first_and_the_lifespan_is_ours(server: FoldServer) -> None:
    outermost = server.app.user_middleware[0]
    assert (outermost.cls, outermost.kwargs["server"]) == (AppMiddleware, server)
    assert server.app.router.lifespan_context == server.lifespan


def test_worker_is_launched_with_its_own_device_seat_and_our_transport(
    server: FoldServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[tuple[Any, ...]] = []

    class Process:
        def __init__(self, target: Callable[..., None], args: tuple[Any, ...], name: str) -> None:
            launched.append((target, *args))

        def start(self) -> None:
            pass

    monkeypatch.setattr("multiprocessing.context.SpawnContext.Process", Process)
    lifeline = server._transport.reports.reader
    server.start(Role.WORKER, 1, 42, lifeline)
    ((target, api, device, worker_id, identity, transport, *_),) = launched
    assert target is inference_worker
    assert (device, worker_id, transport) == ("cuda:1", 1, server._transport)
    assert (identity.index, identity.incarnation, identity.lifeline) == (1, 42, lifeline)
    assert isinstance(api.loop, WorkerLoop)


def test_worker_dies_with_its_parent_from_the_first_moment_of_loading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    monkeypatch.setattr(shell, "die_with_parent", lambda: done.append("die_with_parent"))
    monkeypatch.setattr(shell, "configure_logging", lambda level: None)
    monkeypatch.setattr(shell, "serve", lambda *args: done.append("serve"))
    metrics = metrics_of()
    plan = WorkerPlan(metrics.store.memory, metrics.spec, ("one",), LogStyle("info"), False)
    nothing: Any = None
    WorkerLoop()(WorkerApi(plan), "cpu", 0, nothing, nothing)
    assert done == ["die_with_parent", "serve"]


def test_main_loop_sleeps_until_it_is_told_to_stop_and_wakes_for_nothing_else() -> None:
    async def scenario() -> None:
        stop = asyncio.Event()
        config = uvicorn.Config(FastAPI(), log_config=None)
        running = asyncio.ensure_future(UvicornServer(config, stop, open_door).main_loop())
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)
        assert not running.done()
        assert loop._scheduled == []  # type: ignore[attr-defined]  # no timer: uvicorn's own has one every 0.1 s
        stop.set()
        await running

    asyncio.run(scenario())


@pytest.mark.parametrize("order", ["connect stop", "stop connect"])
def test_connection_that_comes_in_the_same_turn_as_the_end_holds_nothing_up(order: str) -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        """Nobody asks."""

    async def ends(listener: socket.socket) -> bool:
        """Whether the server ends while the client holds its end open."""
        loop, stop, clients = asyncio.get_running_loop(), asyncio.Event(), []
        config = uvicorn.Config(
            app,
            http=HttpToolsProtocol,
            lifespan="off",
            log_config=None,
            timeout_keep_alive=LONG_S,
            timeout_graceful_shutdown=LONG_S,
        )
        server = UvicornServer(config, stop, open_door)
        read, write = os.pipe()
        loop.add_reader(read, stop.set)
        serving = loop.create_task(server.serve([listener]))
        while not server.started:
            await asyncio.sleep(0)

        def both() -> None:  # within one turn, so that the loop's next look at its descriptors finds both
            for what in order.split():
                if what == "stop":
                    os.write(write, b"x")
                else:
                    clients.append(socket.create_connection(listener.getsockname()))

        loop.call_soon(both)
        ended, _ = await asyncio.wait([serving], timeout=LONG_S / 2)
        clients[0].close()
        await serving
        loop.remove_reader(read)
        os.close(read)
        os.close(write)
        return bool(ended)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        assert uvloop.run(ends(listener))
