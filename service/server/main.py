"""`foldserve serve`: from checked settings to a running server.

repository -> devices -> sockets -> metrics, transport -> shell and supervisor -> serve until a signal
"""

import logging
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from foldserve.service.backends.base import SessionOptions, usable_cores
from foldserve.service.backends.devices import Devices, choose_devices
from foldserve.service.engine.served import NOTHING_BROKEN
from foldserve.service.errors import ConfigError
from foldserve.service.frontend.connections import descriptors
from foldserve.service.frontend.connections.addresses import bind, urls
from foldserve.service.host.cgroups import read_limits
from foldserve.service.host.processes import StopSignals
from foldserve.service.ipc.fence import Fence
from foldserve.service.ipc.resources import Sizes, Transport
from foldserve.service.ipc.scoreboard import READY, Dimensions, MappedBoard
from foldserve.service.ipc.slots import slot_state
from foldserve.service.logs.pipes import LogPipes
from foldserve.service.logs.records import configure_logging, tell
from foldserve.service.metrics.recorder import Metrics, Plan, build_info, is_compiled
from foldserve.service.repository.artifact import Artifact
from foldserve.service.repository.index import ModelEntry, Repository, look_through
from foldserve.service.repository.travel import without_what_cannot_travel
from foldserve.service.server.api_server import ApiServer, ServedDevices, make_api_server
from foldserve.service.server.listeners import close_ours
from foldserve.service.server.litserve_adapter import FoldServer
from foldserve.service.server.orphans import Orphans
from foldserve.service.server.supervisor import LOAD_ATTEMPTS, Child, Role, Supervisor
from foldserve.service.settings import ServeSettings
from foldserve.service.worker.main import WorkerPlan

log = logging.getLogger("foldserve.server")

SUPERVISOR = "supervisor"
API_SERVER_DRAIN_S = 30
"""How long an API server may take to finish its requests once it is told to stop."""
Version = tuple[str, str]


def run_server(settings: ServeSettings, stop: StopSignals) -> int:
    """Serve a repository until SIGINT or SIGTERM, which `stop` tells. Returns the exit code.

    Raises: ConfigError when the repository, the device, the default model or the address cannot be used.
    """
    configure_logging(settings.log_level)
    descriptors.raise_limit()
    settings = replace(settings, repository=_absolute(settings.repository))
    with LogPipes() as pipes:
        return _prepare(settings, stop, pipes)


def _prepare(settings: ServeSettings, stop: StopSignals, pipes: LogPipes) -> int:
    found = without_what_cannot_travel(look_through(settings.repository), settings.arena_bytes)
    if found.broken and (settings.strict or not found.entries):
        raise ConfigError(*found.problems())
    for one in found.broken:
        for problem in one.problems:
            log.error("%s is not served: %s", one, problem)
    names = [*(entry.name for entry in found.entries), *(one.model for one in found.broken)]
    if settings.default_model not in (None, *names):
        raise ConfigError(
            f"--default-model {settings.default_model!r} is not in {settings.repository}; expected one of "
            f"{', '.join(dict.fromkeys(names))}"
        )
    devices = choose_devices(settings.device)
    log.info("device: %s", devices.note)
    # Devices of a server are all of one kind.
    entries = tuple(replace(entry, config=entry.config.on(devices.names[0])) for entry in found.entries)
    found = replace(found, entries=entries)
    sockets = bind(settings.host, settings.port)
    try:
        return _serve(settings, found, devices, sockets, stop, pipes)
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
    stop: StopSignals,
    pipes: LogPipes,
) -> int:
    entries = repository.entries
    broken = {str(one): "; ".join(one.problems) for one in repository.broken}
    worker_devices = list(devices.names) * settings.workers_per_device
    versions = tuple(version_of(artifact) for entry in entries for artifact in entry.artifacts)
    workers = tuple(f"worker-{number}" for number in range(len(worker_devices)))
    api_servers = tuple(f"api-{number}" for number in range(settings.api_servers))
    with descriptors.enough(
        f"{len(versions)} models, {len(api_servers)} API servers and {len(workers)} workers"
    ):
        metrics = Metrics.create(Plan(versions, devices.names, (SUPERVISOR, *api_servers, *workers)))
        transport = Transport(
            Dimensions(
                api_servers=settings.api_servers,
                workers=len(workers),
                models=len(versions),
                instances=sum(entry.config.instances * len(entry.artifacts) for entry in entries),
            ),
            Sizes(settings.max_in_flight, settings.arena_bytes),
            readers=[entry.config.instances * len(workers) for entry in entries for _ in entry.artifacts],
        )
        connections = descriptors.for_connections(len(api_servers) + len(workers), len(api_servers))
    warn_of_limits(settings, connections, read_limits().memory_bytes)
    board = transport.board.map()
    slot_state.checking = settings.check_moves
    plan = WorkerPlan(
        entries=entries,
        options={entry.name: session_options(entry, settings.workers_per_device) for entry in entries},
        metrics_memory=metrics.store.memory,
        metrics_plan=metrics.plan,
        writers=workers,
        log_level=settings.log_level,
        check_moves=settings.check_moves,
        load_limit_s=settings.load_limit_s or None,
    )

    def make(index: int) -> ApiServer:
        metrics.write_as(api_servers[index])
        served = ServedDevices(worker_devices, devices.uuids)
        return make_api_server(index, transport, entries, settings, metrics, served, broken)

    def renew_turn(model: int) -> None:
        transport.queues[model].renew_turn(board, model)

    def died(child: Child) -> None:
        if child.role is Role.WORKER:
            metrics.writer_died(workers[child.index])
            metrics.worker_restarted(worker_devices[child.index])
            board.worker_died(child.index)
            for model in range(len(versions)):
                renew_turn(model)
        else:
            for model in range(len(versions)):
                board.queued_rows[child.index, model] = board.queued_bytes[child.index, model] = 0
            board.connections[child.index] = 0

    def cannot_load(child: Child) -> None:
        board.worker_cannot_load(child.index, f"its process died {LOAD_ATTEMPTS} times or more while loading")

    server = FoldServer(plan, worker_devices, transport, make, API_SERVER_DRAIN_S)
    supervisor = Supervisor(
        start=server.start,
        board=board,
        reports=transport.reports.reader,
        stop=stop,
        fence=lambda index: Fence(board, transport.done[index].reader).passed,
        died=died,
        cannot_load=cannot_load,
        renew_turn=renew_turn,
        closing=lambda: close_ours(sockets),
        run_limit_s=settings.run_limit_s,
        grace_s=settings.drain_grace_s,
        close_s=API_SERVER_DRAIN_S + 5.0,
    )
    if pipes.pumps:
        supervisor.watch(pipes)
    with Orphans(lambda: supervisor.pids() | pipes.pids) as orphans:
        supervisor.watch(orphans)
        return server.run(
            sockets,
            supervisor,
            settings.api_servers,
            lambda: tell_what_is_served(settings, urls(sockets), entries, devices, board, metrics, broken),
        )


def warn_of_limits(settings: ServeSettings, connections: int, memory_bytes: int | None) -> None:
    """Log what the settings promise and the machine may not give.

    Args:
        connections: for how many each API server has descriptors.
        memory_bytes: what the container may take; None = no limit.
    """
    if connections < settings.max_in_flight:
        log.warning(
            "each API server can hold %d connections, fewer than its --max-in-flight %d; %s",
            connections,
            settings.max_in_flight,
            descriptors.MEND,
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


def version_of(artifact: Artifact) -> Version:
    """The key of an artifact wherever models are looked up."""
    return (artifact.model, artifact.version)


def session_options(entry: ModelEntry, workers_per_device: int) -> SessionOptions:
    """The model's session options; threads default to a fair part of the cores among the model's instances."""
    options = entry.config.session
    if options.threads is not None:
        return options
    return replace(options, threads=max(1, usable_cores() // (workers_per_device * entry.config.instances)))


def tell_what_is_served(
    settings: ServeSettings,
    addresses: Sequence[str],
    entries: Sequence[ModelEntry],
    devices: Devices,
    board: MappedBoard,
    metrics: Metrics,
    broken: Mapping[str, str] = NOTHING_BROKEN,
) -> bool:
    """Print the one block that says what runs where; False when no model can be served."""
    workers = range(board.dimensions.workers)
    artifacts = [artifact for entry in entries for artifact in entry.artifacts]
    ready = [any(board.ready[worker, lane] == READY for worker in workers) for lane in range(len(artifacts))]
    if not any(ready):
        log.error("no model of %s can be served, for the reasons above; the server ends", settings.repository)
        return False
    compiled = f"compiled: {str(is_compiled()).lower()}"
    served_on = f"{' '.join(addresses)} on {', '.join(devices.names)}"
    lines = [f"foldserve {build_info()[0]} serves {served_on} ({compiled})"]
    width = max(len(name) for name in [*("/".join(version_of(artifact)) for artifact in artifacts), *broken])
    for lane, artifact in enumerate(artifacts):
        problems = [note for worker in workers if (note := board.note(worker, lane))]
        load_s = metrics.load_seconds(*version_of(artifact))
        state = f"ready in {load_s:.1f} s" if ready[lane] else f"NOT READY: {(problems or ['not loaded'])[0]}"
        name = "/".join(version_of(artifact)).ljust(width)
        batch = str(artifact.max_batch_size) if artifact.signature.counts_rows else "none"
        lines.append(f"  {name}  {artifact.backend:11}  batch {batch:<4}  {state}")
    lines += [f"  {name.ljust(width)}  NOT READY: {problem}" for name, problem in broken.items()]
    lines.append("  POST /predict/<model>   GET /info  /metrics  /docs  /v2/health/ready")
    tell("\n".join(lines))
    return True
