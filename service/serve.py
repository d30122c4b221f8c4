"""`foldserve serve`: from checked settings to a running server.

devices -> repository -> metrics rows -> runtime folder -> engine, front, shell -> serve until a signal
"""

import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import replace

from service.artifact import Artifact
from service.backends.base import SessionOptions, usable_cores
from service.backends.devices import Devices, choose_devices
from service.config import ServeSettings
from service.errors import ConfigError
from service.http import Front
from service.litserve_engine import LitServeEngine
from service.litserve_shell import FoldServer, WorkerPlan, api_writer, worker_writer
from service.logs import configure_logging
from service.metrics import Metrics, Plan, build_info
from service.metrics_exposition import Exposition
from service.processes import StopSignals
from service.repository import ModelEntry, read_repository
from service.runtime_folder import RuntimeFolder
from service.worker_report import read_report

log = logging.getLogger(__name__)

SUPERVISOR = "supervisor"
Version = tuple[str, str]


def run_server(settings: ServeSettings) -> int:
    """Serve a repository until SIGINT or SIGTERM. Returns the exit code.

    Raises: ConfigError when the repository, the device, the default model or the address cannot be used.
    """
    configure_logging(settings.log_level)
    with StopSignals() as stop:
        return _serve(settings, stop)


def _serve(settings: ServeSettings, stop: StopSignals) -> int:
    entries = read_repository(settings.repository)
    if settings.default_model not in (None, *(entry.name for entry in entries)):
        raise ConfigError(
            f"--default-model {settings.default_model!r} is not in {settings.repository}; expected one of "
            f"{', '.join(entry.name for entry in entries)}"
        )
    devices = choose_devices(settings.device)
    log.info("device: %s", devices.note)
    sockets = bind(settings.host, settings.port)
    try:
        with RuntimeFolder() as runtime:
            writers = worker_writers(entries, devices, settings.workers_per_device)
            plan = Plan(
                versions=tuple(writers),
                devices=devices.names,
                writers=(
                    SUPERVISOR,
                    *(api_writer(number) for number in range(settings.api_servers)),
                    *(writer for of_version in writers.values() for writer in of_version),
                ),
            )
            metrics = Metrics.create(runtime.path / "metrics", plan)
            engine = LitServeEngine(entries, metrics, writers, runtime.path, {})
            front = Front(engine, settings, metrics, Exposition(metrics, os.getpid()))
            plans = [
                WorkerPlan(
                    artifact=artifact,
                    config=entry.config,
                    options=session_options(entry, len(writers[version_of(artifact)]) // len(devices.names)),
                    metrics_path=metrics.store.path,
                    metrics_plan=plan,
                    writers=writers[version_of(artifact)],
                    runtime=runtime.path,
                    log_level=settings.log_level,
                )
                for entry in entries
                for artifact in entry.artifacts
            ]

            def on_loaded() -> bool:
                return tell_what_is_served(settings, plans, devices, metrics)

            server = FoldServer(plans, devices.names, engine, front, metrics)
            return server.run(sockets, settings.api_servers, settings.drain_grace_s, on_loaded, stop)
    finally:
        for bound in sockets:
            bound.close()


def version_of(artifact: Artifact) -> Version:
    """The key of an artifact wherever models are looked up."""
    return (artifact.model, artifact.version)


def worker_writers(
    entries: Sequence[ModelEntry], devices: Devices, workers_per_device: int
) -> dict[Version, tuple[str, ...]]:
    """The metrics rows of every model version's workers: workers_per_device x instances on each device."""
    return {
        version_of(artifact): tuple(
            worker_writer(artifact.model, artifact.version, number)
            for number in range(len(devices.names) * workers_per_device * entry.config.instances)
        )
        for entry in entries
        for artifact in entry.artifacts
    }


def session_options(entry: ModelEntry, workers_on_device: int) -> SessionOptions:
    """The model's session options; threads default to a fair part of the cores among the model's workers."""
    options = entry.config.session
    if options.threads is not None:
        return options
    return replace(options, threads=max(1, usable_cores() // workers_on_device))


def bind(host: str, port: int) -> list[socket.socket]:
    """Listening addresses of `host`, bound now so that a busy port is told at once. Raises: ConfigError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(
            f"--host {host!r} is no address of this machine ({error.strerror}); expected a name or an IP "
            "address, such as 127.0.0.1 or 0.0.0.0"
        ) from error
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            bound = socket.socket(family, kind, protocol)
            sockets.append(bound)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind(address)
    except OSError as error:
        for bound in sockets:
            bound.close()
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}; end what uses the port, or choose "
            "another with --port"
        ) from error
    return sockets


def tell_what_is_served(
    settings: ServeSettings, plans: Sequence[WorkerPlan], devices: Devices, metrics: Metrics
) -> bool:
    """Print the one block that says what runs where; False when no model can be served."""
    ready = dict(zip(metrics.plan.versions, metrics.ready_versions(), strict=True))
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    if not any(ready.values()):
        log.error("no model of %s can be served, for the reasons above; the server ends", settings.repository)
        return False
    lines = [
        f"foldserve {build_info()[0]} serves http://{host}:{settings.port} on {', '.join(devices.names)}"
    ]
    width = max(len("/".join(version)) for version in ready)
    for plan in plans:
        artifact = plan.artifact
        reports = [read_report(plan.runtime, writer) for writer in plan.writers]
        problems = [report.problem for report in reports if report is not None and report.problem]
        load_s = max((report.load_s for report in reports if report is not None), default=0.0)
        state = f"ready in {load_s:.1f} s" if ready[version_of(artifact)] else f"NOT READY: {problems[0]}"
        name = "/".join(version_of(artifact)).ljust(width)
        lines.append(f"  {name}  {artifact.backend:11}  batch {artifact.max_batch_size:<4}  {state}")
    lines.append("  POST /predict/<model>   GET /info  /metrics  /docs  /v2/health/ready")
    print("\n".join(lines), flush=True)
    return True
