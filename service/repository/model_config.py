"""config.yaml: how one model is served. Hand-written, optional, beside the model's version folders.

KEYS is the table of its keys (options.py); docs/operations.md lists the same keys, and a test compares. All problems
of a file are reported at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from foldserve.service.artifact.manifest import LARGEST_BATCH
from foldserve.service.artifact.names import VERSION_NAME
from foldserve.service.artifact.signature import Signature
from foldserve.service.artifact.stated_signature import parse_signature
from foldserve.service.backends import BACKENDS, SessionOptions
from foldserve.service.did_you_mean import did_you_mean
from foldserve.service.documents import BadDocument, parse_yaml, read_regular, shown
from foldserve.service.errors import ConfigError
from foldserve.service.ipc.records import MAX_LEVELS
from foldserve.service.options import (
    Option,
    choice,
    number,
    parse_all,
    parse_boolean,
    parse_size,
    whole_number,
)

DEFAULT_MAX_BATCH_SIZE: Final = 32
"""For artifacts without a manifest; the same as the export's default."""
_MOST_BYTES: Final = 2**16
"""Of a config.yaml: a page or two are usual, and what is larger takes seconds to parse."""
_MOST_ENTRIES: Final = 1000
"""Of a list in it."""
_LONGEST_MS: Final = 86_400_000.0
GPU_INSTANCES: Final = 2
"""Sessions of a model in each worker of a GPU, where config.yaml does not say: one copies while the other computes."""


@dataclass(frozen=True)
class VersionPolicy:
    """Which versions are served: the `count` highest, all, or those named."""

    kind: Literal["latest", "all", "specific"]
    count: int = 1
    versions: tuple[str, ...] = ()


@dataclass(frozen=True)
class QueueConfig:
    """Bounds of a model's queue; past them a request is answered 429.

    max_rows, max_bytes: rows and input bytes that may wait. max_rows_per_request: more in one request are answered 413;
    None = any number. timeout_s: how long a request may take from being
    queued to its answer when the client sets no bound of its own.
    priority_levels: of which the last is bulk (worker/batcher.py); 1 = no order but that of arrival.
    default_priority_level: of requests that name none; 1 = the first served. priority_age_s: how long the oldest
    request of a level is passed over before a batch begins with it.
    """

    max_rows: int
    max_rows_per_request: int | None
    max_bytes: int
    timeout_s: float
    priority_levels: int = 1
    default_priority_level: int = 1
    priority_age_s: float = 1.0


@dataclass(frozen=True)
class ModelConfig:
    """One model's settings, checked. backend, max_batch_size, signature: None = from the artifact.

    max_batch_size: 0 = the model counts no rows, and runs one request at a time.
    instances: sessions of the model in each worker. instances_given: whether the file says so; see on().
    """

    backend: str | None
    max_batch_size: int | None
    max_queue_delay_s: float
    batch_buckets: tuple[int, ...]
    queue: QueueConfig
    instances: int
    instances_given: bool
    version_policy: VersionPolicy
    warmup: bool
    session: SessionOptions
    signature: Signature | None

    def on(self, device: str) -> "ModelConfig":
        """These settings with what defaults to the device, "cpu" or "cuda:N"."""
        return self if self.instances_given or device == "cpu" else replace(self, instances=GPU_INSTANCES)


def read_model_config(path: Path, model: str) -> ModelConfig:
    """Read a model's config.yaml; a file that does not exist means all defaults. Raises: ConfigError."""
    misnamed = path.with_suffix(".yml")
    if misnamed.exists():
        # Served without what it says, the model would run with other limits than its owner set.
        raise ConfigError(
            f"model {model} has a {misnamed.name}; expected {path.name}: rename it, or remove it"
        )
    for misplaced in sorted(path.parent.glob(f"*/{path.name}")):
        if VERSION_NAME.fullmatch(misplaced.parent.name):
            raise ConfigError(
                f"model {model} has a {path.name} in its version {misplaced.parent.name}; expected one for all its "
                f"versions, {model}/{path.name}: move it, or remove it"
            )
    where = f"config.yaml of model {model}"
    try:
        given = parse_yaml(read_regular(path, _MOST_BYTES))
    except FileNotFoundError:
        given = None
    except BadDocument as error:
        raise ConfigError(f"{where} {error}") from error
    return parse_model_config({} if given is None else given, where)


def parse_model_config(given: Any, where: str) -> ModelConfig:
    """Check the content of a config.yaml. Raises: ConfigError with every problem found."""
    problems: list[str] = []
    flat = _flatten(given, where, problems)
    values, wrong = parse_all(KEYS, {name: (f"{where}: {name}", value) for name, value in flat.items()})
    problems += [*wrong, *_disagreements(values, where)]
    signature = values["signature"]
    if signature is not None and values["max_batch_size"] != 0:
        try:
            signature = signature.counting_rows(True)
        except ValueError as error:
            problems.append(f"{where}: signature: {error}")
    if problems:
        raise ConfigError(*problems)
    return ModelConfig(
        backend=values["backend"],
        max_batch_size=values["max_batch_size"],
        max_queue_delay_s=values["max_queue_delay_ms"] / 1000,
        batch_buckets=values["batch_buckets"],
        queue=QueueConfig(
            max_rows=values["queue.max_rows"],
            max_bytes=values["queue.max_bytes"],
            max_rows_per_request=values["queue.max_rows_per_request"],
            timeout_s=values["queue.timeout_ms"] / 1000,
            priority_levels=values["queue.priority_levels"],
            default_priority_level=values["queue.default_priority_level"],
            priority_age_s=values["queue.priority_age_ms"] / 1000,
        ),
        instances=values["instances"] or 1,
        instances_given=values["instances"] is not None,
        version_policy=values["version_policy"],
        warmup=values["warmup"],
        session=SessionOptions(
            threads=values["session.threads"],
            providers=values["session.providers"],
            cuda_graphs=values["session.cuda_graphs"],
            tf32=values["session.tf32"],
            nhwc=values["session.nhwc"],
            memory_limit_bytes=values["session.memory_limit_bytes"],
        ),
        signature=signature,
    )


def _flatten(given: Any, where: str, problems: list[str]) -> dict[str, Any]:
    """The given keys by their dotted names; unknown ones become problems."""
    if not isinstance(given, dict):
        problems.append(f"{where} holds a {type(given).__name__}; expected a mapping of keys to values")
        return {}
    known = {key.name for key in KEYS}
    sections = {name.partition(".")[0] for name in known if "." in name}
    flat: dict[str, Any] = {}
    for name, value in given.items():
        if name not in sections:
            flat[str(name)] = value
        elif isinstance(value, dict):
            flat.update({f"{name}.{inner}": inner_value for inner, inner_value in value.items()})
        elif value is not None:
            problems.append(f"{where}: {name} is {shown(value)}; expected a mapping of keys to values")
    for name in [name for name in flat if name not in known]:
        problems.append(f"{where}: {name[:100]!r} is not a key{did_you_mean(name, sorted(known))}")
        del flat[name]
    return flat


def _disagreements(values: Mapping[str, Any], where: str) -> list[str]:
    """Values that are each right and do not fit together."""
    problems = []
    largest, buckets = values["max_batch_size"], values["batch_buckets"]
    if largest is not None and buckets and buckets[-1] != largest:
        problems.append(
            f"{where}: batch_buckets end with {buckets[-1]} and max_batch_size is {largest}; expected the "
            "same: change one, or leave max_batch_size out"
        )
    if values["queue.max_rows"] < (largest or 1):
        problems.append(
            f"{where}: queue.max_rows is {values['queue.max_rows']}, less than max_batch_size {largest}; "
            "expected at least one full batch"
        )
    levels, default = values["queue.priority_levels"], values["queue.default_priority_level"]
    if default > levels:
        problems.append(
            f"{where}: queue.default_priority_level is {default} and queue.priority_levels is {levels}; expected a "
            f"level from 1 to {levels}: change one"
        )
    return problems


# Parsers of what only a model's config.yaml has; see options.py. ------------------------------------------


def _buckets(value: Any) -> tuple[int, ...]:
    sizes = tuple(map(_ROWS, _entries(value)))
    if list(sizes) != sorted(set(sizes)):
        raise ValueError
    return sizes


def _version_policy(value: Any) -> VersionPolicy:
    if value in ("latest", "all"):
        return VersionPolicy(value)
    if isinstance(value, dict) and list(value) == ["latest"]:
        return VersionPolicy("latest", count=_COUNT(value["latest"]))
    if not value:
        raise ValueError
    return VersionPolicy("specific", versions=tuple(str(_COUNT(one)) for one in _entries(value)))


def _providers(value: Any) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    providers: list[tuple[str, Mapping[str, Any]]] = []
    for entry in _entries(value):
        ((name, options),) = entry.items() if isinstance(entry, dict) and len(entry) == 1 else [(entry, None)]
        if not isinstance(name, str) or not isinstance(options, dict | None):
            raise ValueError
        providers.append((name, options or {}))
    return tuple(providers)


def _entries(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > _MOST_ENTRIES:
        raise ValueError
    return value


def _signature(value: Any) -> Signature:
    try:
        return parse_signature(value, counts_rows=False)  # whether rows are counted, another key says
    except ValueError as error:
        raise ValueError(f"inputs and outputs, each a list of {{name, datatype, shape}}: {error}") from error


_ROWS: Final = whole_number(1, LARGEST_BATCH)
_COUNT: Final = whole_number(1)

KEYS: Final[tuple[Option, ...]] = (
    Option("backend", choice(*BACKENDS)),
    Option(
        "max_batch_size",
        whole_number(0, LARGEST_BATCH),
        expected=f"a whole number of rows from 1 to {LARGEST_BATCH}, or 0 for one request at a time",
    ),
    Option("max_queue_delay_ms", number(0, _LONGEST_MS, "milliseconds"), 0.0),
    Option(
        "batch_buckets",
        _buckets,
        (),
        expected=f"ascending whole numbers of rows, up to {LARGEST_BATCH}, such as [1, 8, 32]",
    ),
    Option("queue.max_rows", whole_number(1, of="rows"), 1024),
    Option("queue.max_rows_per_request", whole_number(1, of="rows")),
    Option("queue.max_bytes", parse_size, 256 * 2**20),
    Option("queue.timeout_ms", number(1, _LONGEST_MS, "milliseconds"), 30_000.0),
    Option("queue.priority_levels", whole_number(1, MAX_LEVELS), 1),
    Option("queue.default_priority_level", whole_number(1, MAX_LEVELS), 1),
    Option("queue.priority_age_ms", number(1, _LONGEST_MS, "milliseconds"), 1000.0),
    Option("instances", whole_number(1, 64)),
    Option(
        "version_policy",
        _version_policy,
        VersionPolicy("latest"),
        expected="latest, all, {latest: 2}, or a list of versions such as [1, 3]",
    ),
    Option("warmup", parse_boolean, True),
    Option("session.threads", whole_number(1, 1024, "threads")),
    Option(
        "session.providers",
        _providers,
        (),
        expected="a list of onnxruntime providers, each a name or {name: {option: value}}",
    ),
    Option("session.cuda_graphs", parse_boolean, True),
    Option("session.tf32", parse_boolean, False),
    Option("session.nhwc", parse_boolean, False),
    Option("session.memory_limit_bytes", parse_size),
    Option("signature", _signature),
)
