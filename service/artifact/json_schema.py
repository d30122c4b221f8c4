"""JSON as dataclasses: the types of their fields are the schema that a value is checked, read and written by.

    str                    a text
    X | None               X or null; of a field with the default None, X or no such key
    tuple[X, ...]          a list
    Mapping[str, X]        a mapping
    a dataclass            a mapping with its fields; those with a default may be missing
    Annotated[X, check]    an X of which check finds nothing wrong; it stands in for what X itself would ask
    Annotated[X, ALWAYS]   of a field: it is written also where it has its default, as others are not

Keys that no field has are passed over. Knows nothing of manifests.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache, partial
from types import NoneType, UnionType
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from foldserve.service.documents import shown

T = TypeVar("T")
Problems = Iterator[str]
Check = Callable[[Any, str], Problems]
"""Looks at a value; yields what is wrong with it, beginning with the place that it is given."""

_LARGEST: Final = 2**63 - 1
ALWAYS: Final = "always"


@dataclass(frozen=True)
class Whole:
    """The check of a whole number from low to high."""

    low: int
    high: int = _LARGEST

    def __call__(self, value: Any, where: str) -> Problems:
        if isinstance(value, bool) or not isinstance(value, int) or not self.low <= value <= self.high:
            expected = (
                f"from {self.low} to {self.high}" if self.high < _LARGEST else f"of at least {self.low}"
            )
            yield f"{where} {shown(value)}; expected a whole number {expected}"


@dataclass(frozen=True)
class OneOf:
    """The check of a word."""

    words: tuple[str, ...]

    def __call__(self, value: Any, where: str) -> Problems:
        if value not in self.words:
            yield f"{where} {shown(value)}; expected one of {', '.join(self.words)}"


def problems_of(kind: Any, value: Any, where: str) -> Problems:
    """What is wrong with a value for a type, each beginning with its place. where: the value's, "" for the whole."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        checks = [note for note in parts[1:] if note is not ALWAYS] or [partial(problems_of, parts[0])]
        for check in checks:
            yield from check(value, where)
    elif origin in (Union, UnionType):
        if value is not None:
            yield from problems_of(_of_optional(kind), value, where)
    elif origin is tuple:
        if isinstance(value, list):
            for place, one in enumerate(value):
                yield from problems_of(parts[0], one, f"{where}[{place}]")
        else:
            yield f"{where} {shown(value)}; expected a list"
    elif origin is Mapping:
        if isinstance(value, dict):
            for name, one in value.items():
                yield from problems_of(parts[1], one, f"{where}.{name[:100]}")
        else:
            yield f"{where} {shown(value)}; expected a mapping"
    elif _is_record(kind):
        yield from _problems_of_record(kind, value, where)
    elif not isinstance(value, str):
        yield f"{where} {shown(value)}; expected a text"


def _problems_of_record(kind: Any, value: Any, where: str) -> Problems:
    types = _types(kind)
    required = [one.name for one in fields(kind) if _is_required(one)]
    nullable = {name for name, own in types.items() if name in required or _is_always(own)}
    if not isinstance(value, dict):
        yield f"{where} {shown(value)}; expected {', '.join(required)}"
        return
    for name, own in types.items():
        place = f"{where}.{name}" if where else name
        if name in value:
            yield from problems_of(own if name in nullable else _of_optional(own), value[name], place)
        elif name in required:
            yield f"no {place}; expected {', '.join(required)}"


def from_json(kind: type[T], value: Any) -> T:
    """A dataclass from JSON in which problems_of() finds nothing wrong."""
    made: T = _read(kind, value)
    return made


def _read(kind: Any, value: Any) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _read(parts[0], value)
    if origin in (Union, UnionType):
        own = _of_optional(kind)
        return value if value is None or own is kind else _read(own, value)
    if origin is tuple:
        return tuple(_read(parts[0], one) for one in value)
    if origin is Mapping:
        return {name: _read(parts[1], one) for name, one in value.items()}
    if _is_record(kind):
        return kind(**{name: _read(own, value[name]) for name, own in _types(kind).items() if name in value})
    return value


def to_json(value: Any) -> Any:
    """The JSON of a dataclass, or of what is in one; its keys are in the order of the fields."""
    if _is_record(value):
        kept = [one.name for one in fields(value) if _is_written(one, value)]
        return {name: to_json(getattr(value, name)) for name in kept}
    if isinstance(value, tuple):
        return [to_json(one) for one in value]
    if isinstance(value, Mapping):
        return {name: to_json(one) for name, one in value.items()}
    return value


def _is_record(kind: Any) -> bool:
    return is_dataclass(kind)


def _is_written(one: "Field[Any]", record: Any) -> bool:
    if _is_required(one) or _is_always(_types(record.__class__)[one.name]):
        return True
    default = one.default if one.default_factory is MISSING else one.default_factory()
    return bool(getattr(record, one.name) != default)


def _is_always(kind: Any) -> bool:
    return get_origin(kind) is Annotated and ALWAYS in get_args(kind)


def _is_required(one: "Field[Any]") -> bool:
    return one.default is MISSING and one.default_factory is MISSING


def _of_optional(kind: Any) -> Any:
    """X of `X | None`; any other kind itself."""
    own = [part for part in get_args(kind) if part is not NoneType]
    return own[0] if get_origin(kind) in (Union, UnionType) and len(own) == 1 else kind


@cache
def _types(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)
