"""`foldserve serve`: from checked settings to a running server.

repository -> devices -> sockets -> metrics, transport -> shell and supervisor -> serve until a signal
"""

import contextlib
import logging
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from foldserve.service.backends.devices import Devices, choose_devices
from foldserve.service.did_you_mean import did_you_mean
from foldserve.service.engine.served import NOTHING_BROKEN
from foldserve.service.errors import ConfigError
from foldserve.service.frontend.connections import descriptors
from foldserve.service.frontend.connections.addresses import bind, urls
from foldserve.service.frontend.grpc.ports import GrpcPort
from foldserve.service.host.cgroups import read_limits
from foldserve.service.host.processes import StopSignals
from foldserve.service.ipc.fence import Fence
from foldserve.service.ipc.model_table import LOADED, MappedModelTable, ModelState
from foldserve.service.ipc.resources import Sizes, Transport
from foldserve.service.ipc.scoreboard import Dimensions
from foldserve.service.ipc.slots import slot_state
from foldserve.service.logs.pipes import LogPipes
from foldserve.service.logs.records import ALWAYS, configure_logging, print_lines
from foldserve.service.metrics.recorder import Metrics, MetricsLayoutSpec, build_info, is_compiled
from foldserve.service.repository.index import Repository, scan_repository
from foldserve.service.repository.model_version import read_version, versions_of
from foldserve.service.repository.travel import without_what_cannot_travel
from foldserve.service.server.access.control import Access, warn_of_open_door
from foldserve.service.server.api_server import ApiServer, ServedDevices, make_api_server
from foldserve.service.server.children import LOAD_ATTEMPTS, Child, Role
from foldserve.service.server.listeners import close_listeners
from foldserve.service.server.litserve_adapter import FoldServer
from foldserve.service.server.model_control import ModelControl
from foldserve.service.server.orphans import Orphans
from foldserve.service.server.supervisor import Supervisor
from foldserve.service.settings import ServeSettings
from foldserve.service.worker.main import WorkerPlan

log = logging.getLogger("foldserve.server")

SUPERVISOR = "supervisor"
API_SERVER_DRAIN_S = 30
"""How long an API server may take to finish its requests after it is asked to stop."""
SPARE_MODELS = 16
"""Rows of the model table beyond what the repository holds, unless --max-models says how many there are."""
SPARE_INSTANCES = 4
"""Instances for which a worker has room, for each of those."""


def run_server(settings: ServeSettings, stop: StopSignals) -> int:
    """Serve a repository until SIGINT or SIGTERM, which `stop` reports. Returns the exit code.

    Raises: ConfigError when the repository, the device, the default model or the address cannot be used.
    """
    configure_logging(settings.log_style)
    descriptors.raise_limit()
    settings = replace(settings, repository=_absolute(settings.repository))
    with LogPipes() as pipes:
        return _prepare(settings, stop, pipes)


def _prepare(settings: ServeSettings, stop: StopSignals, pipes: LogPipes) -> int:
    found = without_what_cannot_travel(scan_repository(settings.repository), settings.arena_bytes)
    if found.broken and (settings.strict or not found.entries):
        raise ConfigError(*found.problems())
    for one in found.broken:
        for problem in one.problems:
            log.error("%s is not served: %s", one, problem)
    names = [*(entry.name for entry in found.entries), *(one.model for one in found.broken)]
    if settings.default_model is not None and settings.default_model not in names:
        raise ConfigError(
            f"--default-model is {settings.default_model!r}, and {settings.repository} has no model of that name"
            f"{did_you_mean(settings.default_model, dict.fromkeys(names))}"
        )
    devices = choose_devices(settings.device)
    log.info("device: %s", devices.note)
    # Devices of a server are all of one kind.
    entries = tuple(replace(entry, config=entry.config.on(devices.names[0])) for entry in found.entries)
    found = replace(found, entries=entries)
    sockets = bind(settings.host, settings.port)
    warn_of_open_door(settings, sockets)
    try:
        with contextlib.closing(GrpcPort(settings.grpc_port, sockets)) as grpc:
            return _serve(settings, found, devices, sockets, grpc.addresses, stop, pipes)
    finally:
        for bound in sockets:
            bound.close()


def _absolute(repository: Path) -> Path:
    """The working folder may be taken away while the server runs."""
    try:
        return repository.absolute()
    except FileNotFoundError as error:
        raise ConfigError(
            f"{str(repository)!r} is relative to the working folder, which has been removed; change to a folder that "
            "is there, or give the repository's whole path"
        ) from error


def _serve(
    settings: ServeSettings,
    repository: Repository,
    devices: Devices,
    sockets: list[socket.socket],
    grpc_addresses: Sequence[str],
    stop: StopSignals,
    pipes: LogPipes,
) -> int:
    server = Server(settings, repository, devices, sockets, stop, grpc_addresses)
    if pipes.pumps:
        server.supervisor.watch(pipes)
    with Orphans(lambda: server.supervisor.pids() | pipes.pids) as orphans:
        server.supervisor.watch(orphans)
        return server.run()


class Server:
    """A server put together, before its first process is started.

    supervisor: of its processes and models. models: which there are. transport: what the processes share.

    Raises: ConfigError when there are too few rows for the repository's models.
    """

    def __init__(
        self,
        settings: ServeSettings,
        repository: Repository,
        devices: Devices,
        sockets: list[socket.socket],
        stop: StopSignals,
        grpc_addresses: Sequence[str] = (),
    ) -> None:
        self._settings = settings
        self._grpc_addresses = grpc_addresses
        self._devices = devices
        self._sockets = sockets
        self._broken = {str(one): "; ".join(one.problems) for one in repository.broken}
        self._worker_devices = list(devices.names) * settings.workers_per_device
        versions = versions_of(repository.entries)
        rows = model_rows(settings, len(versions))
        self._workers = tuple(f"worker-{number}" for number in range(len(self._worker_devices)))
        self._api_servers = tuple(f"api-{number}" for number in range(settings.api_servers))
        processes = f"{len(self._api_servers)} API servers and {len(self._workers)} workers"
        with descriptors.enough(f"{rows} model versions (--max-models), {processes}"):
            writers = (SUPERVISOR, *self._api_servers, *self._workers)
            self._metrics = Metrics.create(MetricsLayoutSpec(rows, devices.names, writers))
            instances = sum(version.config.instances for version in versions)
            self.transport = Transport(
                Dimensions(
                    api_servers=settings.api_servers,
                    workers=len(self._workers),
                    models=rows,
                    instances=instances + SPARE_INSTANCES * (rows - len(versions)),
                    levels=max((one.config.queue.priority_levels for one in versions), default=1),
                ),
                Sizes(settings.max_in_flight, settings.arena_bytes),
                client_shared_memory=settings.client_shared_memory,
            )
            self._access = Access(settings, self.transport.dimensions)
            connections = descriptors.for_connections(
                len(self._api_servers) + len(self._workers), len(self._api_servers)
            )
        warn_of_limits(settings, connections, read_limits().memory_bytes)
        self._board = self.transport.board.map()
        self.models = ModelControl(self.transport, self._board, self._metrics)
        for version in versions:
            self.models.add(version)
        slot_state.checking = settings.check_moves
        self._litserve = FoldServer(
            self._plan(), self._worker_devices, self.transport, self._make_api_server, API_SERVER_DRAIN_S
        )
        self.supervisor = Supervisor(
            start=self._litserve.start,
            board=self._board,
            models=self.models,
            reports=self.transport.reports.reader,
            stop=stop,
            fence=lambda index: Fence(self._board, self.transport.done[index].reader).passed,
            on_child_exit=self._on_child_exit,
            on_load_failed=self._on_load_failed,
            closing=lambda: close_listeners(sockets),
            run_limit_s=settings.run_limit_s,
            grace_s=settings.drain_grace_s,
            close_s=API_SERVER_DRAIN_S + 5.0,
        )
        files = self._access.watched(self.supervisor.tell_api_servers)
        if files is not None:
            self.supervisor.watch(files)

    def run(self) -> int:
        """Serve until a signal. Returns: the exit code."""
        return self._litserve.run(
            self._sockets, self.supervisor, self._settings.api_servers, self._print_startup_summary
        )

    def _plan(self) -> WorkerPlan:
        settings = self._settings
        return WorkerPlan(
            metrics_memory=self._metrics.store.memory,
            metrics_spec=self._metrics.spec,
            writers=self._workers,
            log_style=settings.log_style,
            check_moves=settings.check_moves,
            per_device=settings.workers_per_device,
            load_limit_s=settings.load_limit_s or None,
        )

    def _make_api_server(self, index: int) -> ApiServer:
        self._metrics.write_as(self._api_servers[index])
        served = ServedDevices(self._worker_devices, self._devices.uuids)
        made = (index, self.transport, self._settings, self._metrics, served, self._broken)
        return make_api_server(*made, self._grpc_addresses, self._access)

    def _on_child_exit(self, child: Child) -> None:
        if child.role is Role.WORKER:
            self._metrics.writer_died(self._workers[child.index])
            self._metrics.worker_restarted(self._worker_devices[child.index])
            self._board.worker_died(child.index)
            self.models.renew_turns()
        else:
            self._board.api_server_died(child.index)
            self._access.api_server_died(child.index)

    def _on_load_failed(self, child: Child) -> None:
        self._board.worker_cannot_load(
            child.index, f"its process died {LOAD_ATTEMPTS} times or more while loading"
        )

    def _print_startup_summary(self) -> bool:
        grpc = [f"grpc://{address}" for address in self._grpc_addresses]
        return print_startup_summary(
            self._settings,
            [*urls(self._sockets, self._access.tls is not None), *grpc],
            self._devices,
            self.models.table,
            self._metrics,
            self._broken,
        )


def model_rows(settings: ServeSettings, versions: int) -> int:
    """Rows of the model table. Raises: ConfigError when it would have too few for the repository's versions."""
    if settings.max_models is None:
        return versions + SPARE_MODELS
    if settings.max_models < versions:
        raise ConfigError(
            f"--max-models is {settings.max_models}, and {settings.repository} holds {versions} versions to serve; "
            f"set it to at least {versions}, or serve fewer (version_policy in config.yaml)"
        )
    return settings.max_models


def warn_of_limits(settings: ServeSettings, connections: int, memory_bytes: int | None) -> None:
    """Warn about limits of the settings that the machine may not be able to keep.

    Args:
        connections: how many each API server has file descriptors for.
        memory_bytes: limit of the container; None = no limit.
    """
    if connections < settings.max_in_flight:
        log.warning(
            "each API server can hold %d connections, fewer than its --max-in-flight %d; %s",
            connections,
            settings.max_in_flight,
            descriptors.FIX,
        )
    promised = settings.api_servers * (settings.arena_bytes + settings.receive_bytes)
    if memory_bytes is not None and promised > memory_bytes:
        log.warning(
            "--arena-bytes and --receive-bytes let %d API servers take %d MiB for requests, more than the container's "
            "limit of %d MiB for everything: lower them, or the server may be killed for memory under load",
            settings.api_servers,
            promised >> 20,
            memory_bytes >> 20,
        )


def print_startup_summary(
    settings: ServeSettings,
    addresses: Sequence[str],
    devices: Devices,
    models: MappedModelTable,
    metrics: Metrics,
    broken: Mapping[str, str] = NOTHING_BROKEN,
) -> bool:
    """Print the one block that says what runs where; False when no model can be served."""
    keys = models.find_all(LOADED)
    ready = {key for key in keys if models.state[key.row] == ModelState.READY}
    if not ready:
        log.error(
            "no model of %s can be served, for the reasons above; the server exits", settings.repository
        )
        return False
    compiled = f"compiled: {str(is_compiled()).lower()}"
    served_on = f"{' '.join(addresses)} on {', '.join(devices.names)}"
    lines = [f"foldserve {build_info()[0]} serves {served_on} ({compiled})"]
    width = max(len(name) for name in [*(f"{key.model}/{key.version}" for key in keys), *broken])
    for key in keys:
        state = f"NOT READY: {models.error(key.row) or 'not loaded'}"
        if key in ready:
            state = f"ready in {metrics.load_seconds(key.row):.1f} s"
        version = read_version(models, key)
        assert version is not None  # this process alone changes the table
        artifact = version.artifact
        name = f"{key.model}/{key.version}".ljust(width)
        batch = str(artifact.max_batch_size) if artifact.signature.counts_rows else "none"
        lines.append(f"  {name}  {artifact.backend:11}  batch {batch:<4}  {state}")
    lines += [f"  {name.ljust(width)}  NOT READY: {problem}" for name, problem in broken.items()]
    lines.append("  POST /predict/<model>   GET /info  /metrics  /docs  /v2/health/ready")
    if settings.log_format == "text":
        print_lines("\n".join(lines))
    else:
        for line in lines[:-1]:  # the routes are for people
            log.info("%s", " ".join(line.split()), extra=ALWAYS)
    return True
