"""config.yaml: how one model is served. Hand-written, optional, beside the model's version folders.

The keys, their defaults and what is expected of each stand in one table (KEYS); docs/operations.md lists the
same keys, and a test compares. All problems of a file are reported at once.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from foldserve.service.artifact.manifest import LARGEST_BATCH
from foldserve.service.artifact.signature import Signature
from foldserve.service.artifact.stated_signature import parse_signature
from foldserve.service.backends import BACKENDS, SessionOptions
from foldserve.service.documents import BadDocument, parse_yaml, read_regular, shown
from foldserve.service.errors import ConfigError

DEFAULT_MAX_BATCH_SIZE: Final = 32
"""For artifacts without a manifest; the same as the export's default."""
_MOST_BYTES: Final = 2**16
"""Of a config.yaml: a page or two are usual, and what is larger takes seconds to parse."""
_MOST_ENTRIES: Final = 1000
"""Of a list in it."""
_MANY: Final = 10**18
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
    """

    max_rows: int
    max_rows_per_request: int | None
    max_bytes: int
    timeout_s: float


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


@dataclass(frozen=True)
class Key:
    """One key of config.yaml.

    name: dotted for a key inside a section. expected: ends the sentence "expected ...".
    parse: YAML value -> setting; raises ValueError or TypeError when it does not fit, _SayMore with a text
    that is worth showing.
    """

    name: str
    default: Any
    expected: str
    parse: Callable[[Any], Any]


def read_model_config(path: Path, model: str) -> ModelConfig:
    """Read a model's config.yaml; a file that does not exist means all defaults. Raises: ConfigError."""
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
    values: dict[str, Any] = {}
    for key in KEYS:
        if key.name not in flat:
            values[key.name] = key.default
            continue
        try:
            values[key.name] = key.parse(flat[key.name])
        except _SayMore as error:
            problems.append(f"{where}: {key.name}: {error}; expected {key.expected}")
            values[key.name] = key.default
        except (ValueError, TypeError):
            problems.append(f"{where}: {key.name} is {shown(flat[key.name])}; expected {key.expected}")
            values[key.name] = key.default
    problems += _disagreements(values, where)
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


class _SayMore(ValueError):
    """A parse error whose text is worth showing beside what was expected."""


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
        close = difflib.get_close_matches(name[:100], sorted(known), n=1)
        mend = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(sorted(known))}"
        problems.append(f"{where}: there is no key {name[:100]}; {mend}")
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
    return problems


# Parsers: each takes what YAML gives, and raises ValueError or TypeError when it does not fit. ------------


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value

    return parse


def _milliseconds(low: float) -> Callable[[Any], float]:
    def parse(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= _LONGEST_MS:
            raise ValueError
        return float(value)

    return parse


def _one_of(*words: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in words:
            raise ValueError
        return str(value)

    return parse


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _buckets(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > _MOST_ENTRIES:
        raise TypeError
    sizes = tuple(_whole(1, LARGEST_BATCH)(size) for size in value)
    if list(sizes) != sorted(set(sizes)):
        raise ValueError
    return sizes


def _version_policy(value: Any) -> VersionPolicy:
    if value in ("latest", "all"):
        return VersionPolicy(value)
    if isinstance(value, dict) and list(value) == ["latest"]:
        return VersionPolicy("latest", count=_whole(1, _MANY)(value["latest"]))
    if isinstance(value, list) and 0 < len(value) <= _MOST_ENTRIES:
        return VersionPolicy("specific", versions=tuple(str(_whole(1, _MANY)(number)) for number in value))
    raise ValueError


def _providers(value: Any) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    if not isinstance(value, list) or len(value) > _MOST_ENTRIES:
        raise TypeError
    providers: list[tuple[str, Mapping[str, Any]]] = []
    for entry in value:
        if isinstance(entry, str):
            providers.append((entry, {}))
        elif isinstance(entry, dict) and len(entry) == 1:
            ((name, options),) = entry.items()
            if not isinstance(options, dict | None):
                raise TypeError
            providers.append((str(name), dict(options or {})))
        else:
            raise TypeError
    return tuple(providers)


def _signature(value: Any) -> Signature:
    try:
        return parse_signature(value, counts_rows=False)  # whether rows are counted, another key says
    except ValueError as error:
        raise _SayMore(str(error)) from error


KEYS: Final[tuple[Key, ...]] = (
    Key("backend", None, f"one of {', '.join(BACKENDS)}", _one_of(*BACKENDS)),
    Key(
        "max_batch_size",
        None,
        f"a whole number of rows, 1 to {LARGEST_BATCH}, or 0 for one request at a time",
        _whole(0, LARGEST_BATCH),
    ),
    Key("max_queue_delay_ms", 0.0, "milliseconds, at least 0 (0 = take what waits)", _milliseconds(0)),
    Key(
        "batch_buckets",
        (),
        f"ascending whole numbers of rows, up to {LARGEST_BATCH}, such as [1, 8, 32]",
        _buckets,
    ),
    Key("queue.max_rows", 1024, "a whole number of rows, at least 1", _whole(1, _MANY)),
    Key("queue.max_rows_per_request", None, "a whole number of rows, at least 1", _whole(1, _MANY)),
    Key("queue.max_bytes", 256 * 2**20, "a whole number of bytes, at least 1", _whole(1, _MANY)),
    Key("queue.timeout_ms", 30_000.0, "milliseconds, at least 1", _milliseconds(1)),
    Key("instances", None, "a whole number, 1 to 64", _whole(1, 64)),
    Key(
        "version_policy",
        VersionPolicy("latest"),
        "latest, all, {latest: 2}, or a list of versions such as [1, 3]",
        _version_policy,
    ),
    Key("warmup", True, "true or false", _boolean),
    Key("session.threads", None, "a whole number of threads, 1 to 1024", _whole(1, 1024)),
    Key(
        "session.providers",
        (),
        "a list of onnxruntime providers, each a name or {name: {option: value}}",
        _providers,
    ),
    Key("session.cuda_graphs", True, "true or false", _boolean),
    Key("session.tf32", False, "true or false", _boolean),
    Key("session.nhwc", False, "true or false", _boolean),
    Key("session.memory_limit_bytes", None, "a whole number of bytes, at least 1", _whole(1, _MANY)),
    Key(
        "signature",
        None,
        "inputs and outputs, each a list of {name, datatype, shape}, with shape[0] = -1 for the rows, if it counts any",
        _signature,
    ),
)
