"""The settings of `foldserve serve`: one table.

SETTINGS is the table: the command line, --help, the environment, the file and docs/configuration.md all come from it.
Where a value is taken from: setting_sources.py.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from foldserve.service.logs.lines import LOG_FORMATS, LogStyle
from foldserve.service.options import (
    Option,
    choice,
    number,
    parse_boolean,
    parse_device,
    parse_file,
    parse_folder,
    parse_hosts,
    parse_keys,
    parse_origins,
    parse_size,
    parse_text,
    whole_number,
)

LOG_LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class ServeSettings:
    """Checked settings; the fields' meanings and units stand in SETTINGS."""

    repository: Path
    host: str
    port: int
    grpc_port: int
    keys: Any = field(repr=False)  # may be keys themselves
    tls_certificate: Path | None
    tls_key: Path | None
    tls_client_ca: Path | None
    cors_origins: str | None
    device: str
    api_servers: int
    workers_per_device: int
    default_model: str | None
    max_models: int | None
    max_body_bytes: int
    max_json_bytes: int
    max_in_flight: int
    arena_bytes: int
    request_timeout_ms: int
    run_limit_s: float
    load_limit_s: float
    strict: bool
    receive_bytes: int
    drain_grace_s: float
    access_log: bool
    log_level: str
    log_format: str
    client_shared_memory: bool
    check_moves: bool

    @property
    def request_timeout_s(self) -> float | None:
        """The bound on a request in seconds; None = no bound."""
        return self.request_timeout_ms / 1000 if self.request_timeout_ms else None

    @property
    def log_style(self) -> LogStyle:
        """How every process of the server logs."""
        return LogStyle(self.log_level, self.log_format)


SETTINGS: Final[tuple[Option, ...]] = (
    Option(
        "repository",
        parse_folder,
        "repository",
        "REPOSITORY",
        "folder",
        "folder with the models to serve",
    ),
    Option(
        "host",
        parse_hosts,
        "127.0.0.1",
        "--host",
        "address",
        "addresses to listen on, with commas: names, IP addresses, unix:/path; 0.0.0.0 = every IPv4 address of the "
        "machine (the image sets this), :: = every address",
    ),
    Option("port", whole_number(0, 65535), 8000, "--port", "port", "TCP port to listen on; 0 = a free one"),
    Option(
        "grpc_port",
        whole_number(0, 65535),
        0,
        "--grpc-port",
        "port",
        "TCP port of the Open Inference Protocol over gRPC, at the same addresses; 0 = off; needs the extra `grpc`",
    ),
    Option(
        "keys",
        parse_keys,
        None,
        "--keys",
        "file",
        "YAML file of the keys that clients must present, or in the environment and the settings file the keys "
        "themselves (docs/security.md); unless given, everybody may send requests",
    ),
    Option(
        "tls_certificate",
        parse_file,
        None,
        "--tls-certificate",
        "file",
        "PEM file of the server's certificate and those that it is signed by; HTTP and gRPC speak TLS then",
    ),
    Option("tls_key", parse_file, None, "--tls-key", "file", "PEM file of the certificate's private key"),
    Option(
        "tls_client_ca",
        parse_file,
        None,
        "--tls-client-ca",
        "file",
        "PEM file of certificates, by one of which a client's must be signed (mutual TLS)",
    ),
    Option(
        "cors_origins",
        parse_origins,
        None,
        "--cors-origins",
        "origins",
        "origins whose pages browsers let read answers, with commas, as in https://app.example; * = any; unless "
        "given, none",
    ),
    Option(
        "device",
        parse_device,
        "auto",
        "--device",
        "device",
        "auto, cpu, cuda, cuda:0,1; auto = every usable GPU, or the CPU when there is none",
    ),
    Option("api_servers", whole_number(1, 256), 1, "--api-servers", "processes", "processes that speak HTTP"),
    Option(
        "workers_per_device",
        whole_number(1, 64),
        1,
        "--workers-per-device",
        "processes",
        "processes that run models, for each device",
    ),
    Option(
        "default_model",
        parse_text,
        None,
        "--default-model",
        "model",
        "the model of POST /predict; not needed when only one is served",
    ),
    Option(
        "max_models",
        whole_number(1, 4096),
        None,
        "--max-models",
        "versions",
        "model versions that the server has room for; unless given, what the repository holds and 16 more",
    ),
    Option(
        "max_body_bytes",
        parse_size,
        64 * 2**20,
        "--max-body-bytes",
        "bytes",
        "largest request body; a larger one is answered 413 (512KiB, 64MiB, 1GiB can be written so); unless given, no "
        "more than --arena-bytes and --receive-bytes",
    ),
    Option(
        "max_json_bytes",
        parse_size,
        16 * 2**20,
        "--max-json-bytes",
        "bytes",
        "largest request body in JSON, which takes up to 36 times its size while it is read; a larger one is answered "
        "413; never more than --max-body-bytes",
    ),
    Option(
        "max_in_flight",
        whole_number(16, 1_000_000),
        4096,
        "--max-in-flight",
        "requests",
        "most requests in flight in one API server; more are answered 429",
    ),
    Option(
        "arena_bytes",
        parse_size,
        512 * 2**20,
        "--arena-bytes",
        "bytes",
        "shared memory of one API server for the inputs and outputs of requests in flight; grows to this as needed; "
        "unless given, at least 8 times --max-body-bytes",
    ),
    Option(
        "request_timeout_ms",
        whole_number(0, 86_400_000),
        30_000,
        "--request-timeout-ms",
        "milliseconds",
        "longest time for a request, from its head to its answer; 0 = no limit; X-Timeout-Ms only shortens it",
    ),
    Option(
        "run_limit_s",
        number(0, 86_400, "seconds"),
        60.0,
        "--run-limit",
        "seconds",
        "longest run of a model; a worker whose run takes longer is ended, and its requests are run again",
    ),
    Option(
        "load_limit_s",
        number(0, 86_400, "seconds"),
        600.0,
        "--load-limit",
        "seconds",
        "longest time for loading and testing one model; one that takes longer is not served; 0 = no limit",
    ),
    Option(
        "strict",
        parse_boolean,
        False,
        "--strict",
        "true/false",
        "exit with code 2 when any model of the repository is broken, instead of serving the others",
    ),
    Option(
        "receive_bytes",
        parse_size,
        256 * 2**20,
        "--receive-bytes",
        "bytes",
        "memory of one API server for bodies that arrive in parts; more are answered 429; as much again for answers "
        "that clients are slow to read; unless given, at least 4 times --max-body-bytes",
    ),
    Option(
        "drain_grace_s",
        number(0, 3600, "seconds"),
        0.0,
        "--drain-grace",
        "seconds",
        "after SIGTERM: how long to serve on, not ready, before shutting down",
    ),
    Option(
        "access_log", parse_boolean, False, "--access-log", "true/false", "write one JSON line per request"
    ),
    Option("log_level", choice(*LOG_LEVELS), "info", "--log-level", "level", ", ".join(LOG_LEVELS)),
    Option(
        "log_format",
        choice(*LOG_FORMATS),
        "text",
        "--log-format",
        "format",
        "text, or json: every record on stderr, and what is served, as one JSON object",
    ),
    Option(
        "client_shared_memory",
        parse_boolean,
        False,
        "--client-shared-memory",
        "true/false",
        "let clients on this host pass tensors in shared memory that they register; trusts whoever can send a request "
        "with every object in /dev/shm that the server's user may read and write",
    ),
    Option(
        "check_moves",
        parse_boolean,
        False,
        "--check-moves",
        "true/false",
        "check every move of a request's slot against the table of legal ones; for tests of the server itself",
    ),
)
