"""Which calls may take the short way, decided from the lines of the head alone.

A call is ordinary when its target is exactly one of ours, its body has a known length within the limit and one of
the three types, its answer may have that type, and no header asks for anything special. For anything else head_of()
returns None and the long way answers. Where the lines come from: head_reader.py, or uvicorn's parser.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from service.artifact.signature import Signature
from service.codecs import BodyType, body_type
from service.codecs.json_fast import QuickJson
from service.codecs.media_types import answer_types
from service.engine.codec_process import LARGE_COPY_BYTES, LARGE_JSON_BYTES
from service.engine.model_queue import ModelQueue
from service.errors import NotAcceptable, UnsupportedMediaType

_LENGTH_DIGITS: Final = 15
_REQUEST_ID: Final = re.compile(rb"[\x20-\x7e]{1,128}")
_HOST: Final = re.compile(rb"(\[[0-9A-Fa-fvV:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(:\d*)?", re.ASCII)
_KINDS: Final = (BodyType.JSON, BodyType.RAW, BodyType.NPY)
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


class Plan:
    """What a route does with a body of one type; made once, so that a request looks up nothing.

    raw: whether the body is the rows' own bytes. quick: None where the codecs must look. row_bytes: bytes of a row in
    a raw body that needs no look at its values; 0 when there is no such thing. counter: Metrics.answered_counter.
    loop_bytes: a body of more is not decoded on the event loop. queue_ns: the longest from being queued to the answer.
    """

    def __init__(self, route: "Route", kind: BodyType) -> None:
        queue, signature = route.queue, route.signature
        self.kind = kind
        self.raw = kind is BodyType.RAW
        self.json = kind is BodyType.JSON
        self.media_type = kind.value.encode()
        self.quick = QuickJson.of(queue.model, queue.version, signature) if self.json else None
        self.counter = route.counters[kind]
        fits = queue.layout.one_fixed_input and signature.inputs[0].datatype != "BOOL"
        self.row_bytes = queue.layout.input_row_bytes if fits else 0
        self.counts_rows = signature.counts_rows
        self.loop_bytes = LARGE_JSON_BYTES if self.json else LARGE_COPY_BYTES
        self.queue_ns = int(queue.timeout_s * 1e9)
        # A body of raw bytes or npy holds one tensor.
        self.short = self.json or (len(signature.outputs) == 1 and (not self.raw or self.row_bytes > 0))


class Route:
    """A request target that names one version of one model.

    query: with the question mark; "" for none. pattern: the long way's route for such paths, for the access log.
    counters: Metrics.answered_counter of each type.
    """

    def __init__(
        self,
        path: str,
        query: str,
        pattern: str,
        queue: ModelQueue,
        signature: Signature,
        counters: Mapping[BodyType, Callable[..., None]],
    ) -> None:
        self.path = path
        self.query = query
        self.pattern = pattern
        self.queue = queue
        self.signature = signature
        self.counters = counters
        self.target = (path + query).encode()
        """As a request line has it."""
        self.plans = [Plan(self, kind) for kind in _KINDS]


class Field:
    """What one header line says.

    number: of Content-Length the length, of Connection the options, of Content-Type the place of its body type in
    _KINDS, of Accept a bit for each. value: of X-Request-Id and X-Timeout-Ms.
    """

    def __init__(self, says: int, number: int = 0, value: bytes = b"") -> None:
        self.says = says
        self.number = number
        self.value = value


class Head:
    """What the head of an ordinary call says, with its route's plan for that type at hand.

    request_id, timeout_ms: as the client gave them; empty when it did not, or gave an id that is none. keep_alive:
    whether the connection serves on after the answer. old: HTTP/1.0, which must be told so.
    """

    def __init__(
        self,
        route: Route,
        plan: Plan,
        length: int,
        request_id: bytes,
        timeout_ms: bytes,
        keep_alive: bool,
        old: bool,
    ) -> None:
        self.route = route
        self.queue = route.queue
        self.kind = plan.kind
        self.raw = plan.raw
        self.row_bytes = plan.row_bytes
        self.media_type = plan.media_type
        self.quick = plan.quick
        self.counter = plan.counter
        self.loop_bytes = plan.loop_bytes
        self.queue_ns = plan.queue_ns
        self.length = length
        self.request_id = request_id
        self.timeout_ms = timeout_ms
        self.keep_alive = keep_alive
        self.old = old


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
        return Field(says, _KINDS.index(kind))
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
    for at, kind in enumerate(_KINDS):
        try:
            if answer_types(accept, kind)[0] is kind:
                bits |= 1 << at
        except NotAcceptable:
            pass
    return bits


def _connection(value: bytes) -> Field:
    options = {option.strip(b" \t").lower() for option in value.split(b",")}
    if not options <= _OPTIONS or options >= {b"close", b"keep-alive"}:
        return _SPECIAL_FIELD
    return Field(_CONNECTION, _CLOSE if b"close" in options else _KEEP if b"keep-alive" in options else 0)


def head_of(route: Route, old: bool, fields: list[Field], limits: Limits) -> Head | None:
    """What an ordinary head says; None when the call must take the long way. old: HTTP/1.0."""
    seen = options = 0
    length = kind = -1
    accepts = _ANY
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
            kind = field.number
        elif says == _ACCEPT:
            accepts = field.number
        elif says == ID:
            request_id = field.value
        elif says == _TIMEOUT:
            timeout_ms = field.value
        elif says == _CONNECTION:
            options = field.number
    if kind < 0 or not accepts >> kind & 1 or not (old or seen & (1 << _HOST_LINE)):
        return None
    plan = route.plans[kind]
    if not plan.short or not 0 < length <= (limits.json_bytes if plan.json else limits.body_bytes):
        return None
    if plan.raw and (length % plan.row_bytes if plan.counts_rows else length != plan.row_bytes):
        return None
    keep_alive = options == _KEEP if old else options != _CLOSE
    return Head(route, plan, length, request_id, timeout_ms, keep_alive, old)
