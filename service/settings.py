"""The settings of `foldserve serve`: one table.

SETTINGS is the table: the command line, --help, the environment, the file and docs/configuration.md all come from it.
Where a value is taken from: setting_sources.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from foldserve.service.setting_values import (
    choice,
    parse_boolean,
    parse_device,
    parse_folder,
    parse_hosts,
    parse_size,
    parse_text,
    seconds,
    whole_number,
)

ENV_PREFIX: Final = "FOLDSERVE_"
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class ServeSettings:
    """Checked settings; the fields' meanings and units stand in SETTINGS."""

    repository: Path
    host: str
    port: int
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
    check_moves: bool

    @property
    def request_timeout_s(self) -> float | None:
        """The bound on a request in seconds; None = no bound."""
        return self.request_timeout_ms / 1000 if self.request_timeout_ms else None


@dataclass(frozen=True)
class Setting:
    """One setting.

    parse takes a string, or what YAML made of it, and raises ValueError with what was expected.
    """

    name: str
    flag: str
    parse: Callable[[Any], Any]
    default: Any
    unit: str
    help: str

    @property
    def env(self) -> str:
        """The environment variable."""
        return ENV_PREFIX + self.name.upper()

    @property
    def default_text(self) -> str:
        """The default as people write it."""
        if self.default is None:
            return "none"
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return str(self.default)


SETTINGS: Final[tuple[Setting, ...]] = (
    Setting(
        "repository",
        "REPOSITORY",
        parse_folder,
        Path("repository"),
        "folder",
        "where the models to serve lie",
    ),
    Setting(
        "host",
        "--host",
        parse_hosts,
        "127.0.0.1",
        "address",
        "addresses to listen on, with commas: names, IP addresses, unix:/path; 0.0.0.0 = every IPv4 address of the "
        "machine (the image sets this), :: = every address",
    ),
    Setting("port", "--port", whole_number(0, 65535), 8000, "port", "TCP port to listen on; 0 = a free one"),
    Setting(
        "device",
        "--device",
        parse_device,
        "auto",
        "device",
        "auto, cpu, cuda, cuda:0,1; auto = every usable GPU, or the CPU when there is none",
    ),
    Setting(
        "api_servers", "--api-servers", whole_number(1, 256), 1, "processes", "processes that speak HTTP"
    ),
    Setting(
        "workers_per_device",
        "--workers-per-device",
        whole_number(1, 64),
        1,
        "processes",
        "processes that run models, for each device",
    ),
    Setting(
        "default_model",
        "--default-model",
        parse_text,
        None,
        "model",
        "the model of POST /predict; not needed when only one is served",
    ),
    Setting(
        "max_models",
        "--max-models",
        whole_number(1, 4096),
        None,
        "versions",
        "model versions that the server has room for; unless given, what the repository holds and 16 more",
    ),
    Setting(
        "max_body_bytes",
        "--max-body-bytes",
        parse_size,
        64 * 2**20,
        "bytes",
        "largest request body; more is answered 413 (512KiB, 64MiB, 1GiB can be written so); unless given, no more "
        "than --arena-bytes and --receive-bytes",
    ),
    Setting(
        "max_json_bytes",
        "--max-json-bytes",
        parse_size,
        16 * 2**20,
        "bytes",
        "largest request body in JSON, which takes up to 36 times its size while it is read; more is answered 413; "
        "never more than --max-body-bytes",
    ),
    Setting(
        "max_in_flight",
        "--max-in-flight",
        whole_number(16, 1_000_000),
        4096,
        "requests",
        "requests that one API server has under way at most; more are answered 429",
    ),
    Setting(
        "arena_bytes",
        "--arena-bytes",
        parse_size,
        512 * 2**20,
        "bytes",
        "shared memory of one API server for the inputs and outputs of requests under way; grows to this as needed; "
        "unless given, at least 8 times --max-body-bytes",
    ),
    Setting(
        "request_timeout_ms",
        "--request-timeout-ms",
        whole_number(0, 86_400_000),
        30_000,
        "milliseconds",
        "most time for a request, from its head to its answer; 0 = no bound; X-Timeout-Ms only shortens it",
    ),
    Setting(
        "run_limit_s",
        "--run-limit",
        seconds(86_400),
        60.0,
        "seconds",
        "longest run of a model; a worker whose run takes longer is ended, and its requests are run again",
    ),
    Setting(
        "load_limit_s",
        "--load-limit",
        seconds(86_400),
        600.0,
        "seconds",
        "longest time for loading and trying one model; one that takes longer is not served; 0 = no bound",
    ),
    Setting(
        "strict",
        "--strict",
        parse_boolean,
        False,
        "true/false",
        "end with exit code 2 when any model of the repository is broken, instead of serving the others",
    ),
    Setting(
        "receive_bytes",
        "--receive-bytes",
        parse_size,
        256 * 2**20,
        "bytes",
        "what came of the bodies that one API server is receiving in parts, at most; more are answered 429; as much "
        "again of answers that clients are slow to take; unless given, at least 4 times --max-body-bytes",
    ),
    Setting(
        "drain_grace_s",
        "--drain-grace",
        seconds(3600),
        0.0,
        "seconds",
        "after SIGTERM: how long to serve on, not ready, before shutting down",
    ),
    Setting(
        "access_log", "--access-log", parse_boolean, False, "true/false", "write one JSON line per request"
    ),
    Setting("log_level", "--log-level", choice(*LOG_LEVELS), "info", "level", ", ".join(LOG_LEVELS)),
    Setting(
        "check_moves",
        "--check-moves",
        parse_boolean,
        False,
        "true/false",
        "hold every move of a request's slot against the table of legal ones; for tests of the server itself",
    ),
)
