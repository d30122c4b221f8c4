"""The settings of `foldserve serve`: one table, and the only reader of the environment.

SETTINGS is the table: the command line, --help, the environment, the file and docs/configuration.md all
come from it. A value is taken from the command line, else FOLDSERVE_<NAME>, else the YAML file, else the
default. All bad values are reported together: a server that runs on a guessed setting is worse than one
that does not start.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from foldserve.service.documents import BadDocument, parse_yaml
from foldserve.service.errors import ConfigError
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

# Kubernetes gives every pod FOLDSERVE_PORT=tcp://10.0.0.1:8000 and the like when a Service is named
# foldserve.
_KUBERNETES_LINK: Final = re.compile(r"(tcp|udp|sctp)://")
_KUBERNETES_NAMES: Final = re.compile(r"FOLDSERVE_(.*_)?(SERVICE_(HOST|PORT)|PORT_\d+).*")
# How alike an unknown FOLDSERVE_ name must be to a setting's to be taken for a misspelling of it.
_TYPO_RATIO: Final = 0.8


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

_BY_NAME: Final = {setting.name: setting for setting in SETTINGS}
_CONFIG_ENV: Final = ENV_PREFIX + "CONFIG"


def load_settings(
    command_line: Mapping[str, Any], environ: Mapping[str, str], config_file: str | None = None
) -> ServeSettings:
    """Take each setting from its first source, check all of them.

    Args:
        command_line: values by setting name; None = not given.
        environ: the process's environment.
        config_file: the YAML file of --config; FOLDSERVE_CONFIG names it otherwise.
    Raises: ConfigError with every problem found.
    """
    problems: list[str] = []
    path = config_file or environ.get(_CONFIG_ENV)
    in_file = _read_file(path, problems) if path else {}
    problems.extend(_misspelled(environ))
    values: dict[str, Any] = {}
    given: dict[str, str] = {}
    for setting in SETTINGS:
        from_environ = environ.get(setting.env)
        if from_environ is not None and _KUBERNETES_LINK.match(from_environ):
            from_environ = None
        sources = (
            (setting.flag, command_line.get(setting.name)),
            (setting.env, from_environ),
            (f"{setting.name} in {path}", in_file.get(setting.name)),
            (f"{setting.name} (default)", setting.default),
        )
        source, value = next(((source, value) for source, value in sources if value is not None), ("", None))
        if value is None:
            values[setting.name] = None
            continue
        if source != sources[-1][0]:
            given[setting.name] = source
        try:
            values[setting.name] = setting.parse(value)
        except ValueError as error:
            problems.append(f"{source} is {str(value)!r}; expected {error}")
    if not problems:
        problems.extend(_settle_limits(values, given))
    if problems:
        raise ConfigError(*problems)
    return ServeSettings(**values)


def _settle_limits(values: dict[str, Any], given: Mapping[str, str]) -> list[str]:
    """Have the limits on bodies fit together: those that nobody gave follow those that somebody did.

    given: where each value comes from that is no default.
    Returns: what contradicts each other of those that were given.
    """
    largest = "max_body_bytes"
    for name in ("arena_bytes", "receive_bytes"):
        if name in given and largest not in given:
            values[largest] = min(values[largest], values[name])
        elif name not in given:
            times = _BY_NAME[name].default // _BY_NAME[largest].default
            values[name] = max(values[name], times * values[largest])
    limit = values[largest]
    told_limit = f"the {limit} of {given.get(largest, 'max_body_bytes (default)')}, which bounds every body"
    problems = []
    if values["max_json_bytes"] > limit and "max_json_bytes" in given:
        problems.append(
            f"{given['max_json_bytes']} is {values['max_json_bytes']}, more than {told_limit}; lower the one or raise "
            "the other"
        )
    values["max_json_bytes"] = min(limit, values["max_json_bytes"])
    for name in ("arena_bytes", "receive_bytes"):
        if values[name] < limit:
            problems.append(
                f"{given[name]} is {values[name]}, less than {told_limit} and must find room in it; raise the one or "
                "lower the other"
            )
    return problems


def _read_file(path: str, problems: list[str]) -> Mapping[str, Any]:
    try:
        content = parse_yaml(Path(path).read_bytes())
    except OSError as error:
        problems.append(
            f"the settings file {path!r} cannot be read ({error.strerror}); give the path of a YAML file"
        )
        return {}
    except BadDocument as error:
        problems.append(f"the settings file {path!r} {error}")
        return {}
    if content is None:
        return {}
    if not isinstance(content, dict):
        problems.append(
            f"the settings file {path!r} is a {type(content).__name__}; expected `name: value` lines"
        )
        return {}
    for name in content:
        if name not in _BY_NAME:
            problems.append(f"{name!r} in {path} is no setting{_suggestion(str(name), tuple(_BY_NAME))}")
    return content


def _misspelled(environ: Mapping[str, str]) -> list[str]:
    known = {setting.env for setting in SETTINGS} | {_CONFIG_ENV}
    found = []
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or name in known or _KUBERNETES_NAMES.fullmatch(name):
            continue
        # Others may own variables with our prefix (a chart, a test run): only what looks like ours is
        # refused.
        if difflib.get_close_matches(name, known, n=1, cutoff=_TYPO_RATIO):
            found.append(f"{name} is no setting{_suggestion(name, tuple(known))}")
    return found


def _suggestion(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; expected one of {', '.join(known)}"
