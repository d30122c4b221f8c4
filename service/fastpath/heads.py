"""Which calls may take the short way, decided from the lines of the head alone.

A call is ordinary when its target is exactly one of ours, its body has a known length within the limit and one of
the three types, its answer may have that type, and no header asks for anything special. For anything else head_of()
returns None and the long way answers. Where the lines come from: head_reader.py, or uvicorn's parser.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from service.codecs import BodyType, body_type
from service.codecs.json_quick import QuickJson
from service.codecs.media_types import answer_types
from service.errors import NotAcceptable, UnsupportedMediaType
from service.signature import Signature
from service.ticketed import Lane

_LENGTH_DIGITS: Final = 15
_REQUEST_ID: Final = re.compile(rb"[\x20-\x7e]{1,128}")
_HOST: Final = re.compile(rb"(\[[0-9A-Fa-fvV:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(:\d*)?", re.ASCII)
_BITS: Final = {BodyType.JSON: 1, BodyType.RAW: 2, BodyType.NPY: 4}
_ANY: Final = 7
_CLOSE: Final = 1
_KEEP: Final = 2
_OPTIONS: Final = frozenset((b"close", b"keep-alive", b"te", b"upgrade", b"http2-settings"))
"""What Connection may say here. Upgrade is an offer, which is not taken up: the request is answered as it stands."""

# What a header line says. Numbers: a line that says something has a bit of its own, to find a second one.
IGNORED: Final = 0
SPECIAL: Final = 1
_LENGTH: Final = 2
_TYPE: Final = 3
_ACCEPT: Final = 4
ID: Final = 5
_TIMEOUT: Final = 6
_HOST_LINE: Final = 7
_CONNECTION: Final = 8

_NAMES: Final = {
    b"content-length": _LENGTH,
    b"content-type": _TYPE,
    b"accept": _ACCEPT,
    b"x-request-id": ID,
    b"x-timeout-ms": _TIMEOUT,
    b"host": _HOST_LINE,
    b"connection": _CONNECTION,
    b"proxy-connection": SPECIAL,
    b"transfer-encoding": SPECIAL,
    b"content-encoding": SPECIAL,
    b"expect": SPECIAL,
    b"x-tensor-name": SPECIAL,
    b"x-tensor-datatype": SPECIAL,
    b"x-tensor-shape": SPECIAL,
}
"""Headers that mean something here; SPECIAL: only the long way knows what."""


@dataclass(frozen=True, eq=False)
class Route:
    """A request target that names one version of one model.

    query: with the question mark; "" for none. pattern: the long way's route for such paths, for the access log.
    counters: Metrics.answered_counter of each type.
    """

    path: str
    query: str
    pattern: str
    lane: Lane
    signature: Signature
    counters: Mapping[BodyType, Callable[..., None]]

    @property
    def target(self) -> bytes:
        """As a request line has it."""
        return (self.path + self.query).encode()

    @cached_property
    def one_output(self) -> bool:
        """Whether a body of raw bytes can hold the answer."""
        return len(self.signature.outputs) == 1

    @cached_property
    def quick(self) -> QuickJson | None:
        """The quick way through JSON, where the model allows it."""
        return QuickJson.of(self.lane.model, self.lane.version, self.signature)

    @cached_property
    def raw_row_bytes(self) -> int:
        """Bytes of a row in a raw body that needs no look at its values; 0 when there is no such thing."""
        fits = self.lane.layout.one_fixed_input and self.signature.inputs[0].datatype != "BOOL"
        return self.lane.layout.input_row_bytes if fits else 0

    def takes_raw(self, size: int) -> bool:
        """Whether a raw body of so many bytes is rows, as they are."""
        if not self.raw_row_bytes or size % self.raw_row_bytes:
            return False
        return self.signature.counts_rows or size == self.raw_row_bytes


class Field:
    """What one header line says.

    number: of Content-Length the length, of Connection the options, of Content-Type and Accept the bits of body types.
    value: of X-Request-Id and X-Timeout-Ms.
    """

    def __init__(self, says: int, number: int = 0, value: bytes = b"", kind: BodyType | None = None) -> None:
        self.says = says
        self.number = number
        self.value = value
        self.kind = kind


class Head:
    """What the head of an ordinary call says, with what its route has for that type at hand.

    raw: whether the body is the rows' own bytes. quick: None where the codecs must look. request_id, timeout_ms: as
    the client gave them; empty when it did not, or gave an id that is none. keep_alive: whether the connection serves
    on after the answer. old: HTTP/1.0, which must be told so.
    """

    def __init__(self, route: Route, kind: BodyType, length: int) -> None:
        self.route = route
        self.lane = route.lane
        self.kind = kind
        self.raw = kind is BodyType.RAW
        self.media_type = kind.value.encode()
        self.length = length
        self.quick = route.quick if kind is BodyType.JSON else None
        self.counter = route.counters[kind]
        self.request_id = b""
        self.timeout_ms = b""
        self.keep_alive = True
        self.old = False


@dataclass(frozen=True)
class Limits:
    """The longest bodies. json_bytes: of those in JSON."""

    body_bytes: int
    json_bytes: int


def field_of(name: bytes, value: bytes) -> Field:
    """What a header line says. name: in lower case; value: without the white space around it."""
    says = _NAMES.get(name, IGNORED)
    if says == _LENGTH:
        if not value.isdigit() or len(value) > _LENGTH_DIGITS:
            return _SPECIAL_FIELD
        return Field(says, int(value))
    if says == _TYPE:
        try:
            kind = body_type(value.decode("latin-1"))
        except UnsupportedMediaType:
            return _SPECIAL_FIELD
        return Field(says, _BITS[kind], kind=kind)
    if says == _ACCEPT:
        return Field(says, _wins(value.decode("latin-1")))
    if says == ID:
        return Field(says, value=value if _REQUEST_ID.fullmatch(value) else b"")
    if says == _TIMEOUT:
        return Field(says, value=value) if value else _SPECIAL_FIELD
    if says == _HOST_LINE:
        return Field(says) if is_host(value) else _SPECIAL_FIELD
    if says == _CONNECTION:
        return _connection(value)
    return _SPECIAL_FIELD if says == SPECIAL else _IGNORED_FIELD


_SPECIAL_FIELD: Final = Field(SPECIAL)
_IGNORED_FIELD: Final = Field(IGNORED)


def is_host(value: bytes) -> bool:
    """Whether it is what a Host header may say (RFC 9110, 7.2)."""
    return _HOST.fullmatch(value) is not None


def _wins(accept: str) -> int:
    """The bits of those types whose requests get an answer of their own type."""
    bits = 0
    for kind, bit in _BITS.items():
        try:
            if answer_types(accept, kind)[0] is kind:
                bits |= bit
        except NotAcceptable:
            pass
    return bits


def _connection(value: bytes) -> Field:
    options = {option.strip(b" \t").lower() for option in value.split(b",")}
    if not options <= _OPTIONS or options >= {b"close", b"keep-alive"}:
        return _SPECIAL_FIELD
    return Field(_CONNECTION, _CLOSE if b"close" in options else _KEEP if b"keep-alive" in options else 0)


def head_of(route: Route, old: bool, fields: Iterable[Field], limits: Limits) -> Head | None:
    """What an ordinary head says; None when the call must take the long way. old: HTTP/1.0."""
    seen = options = type_bit = 0
    length = -1
    accepts = _ANY
    kind: BodyType | None = None
    request_id = timeout_ms = b""
    for field in fields:
        says = field.says
        if says == IGNORED:
            continue
        bit = 1 << says
        if says == SPECIAL or seen & bit:
            return None  # a second line of the same name: the long way knows what that means
        seen |= bit
        if says == _LENGTH:
            length = field.number
        elif says == _TYPE:
            kind, type_bit = field.kind, field.number
        elif says == _ACCEPT:
            accepts = field.number
        elif says == ID:
            request_id = field.value
        elif says == _TIMEOUT:
            timeout_ms = field.value
        elif says == _CONNECTION:
            options = field.number
    if kind is None or not accepts & type_bit or not (old or seen & (1 << _HOST_LINE)):
        return None
    if not 0 < length <= (limits.json_bytes if kind is BodyType.JSON else limits.body_bytes):
        return None
    if kind is not BodyType.JSON and not route.one_output:
        return None
    if kind is BodyType.RAW and not route.takes_raw(length):
        return None
    head = Head(route, kind, length)
    head.request_id, head.timeout_ms, head.old = request_id, timeout_ms, old
    head.keep_alive = options == _KEEP if old else options != _CLOSE
    return head
