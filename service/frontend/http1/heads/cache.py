"""Which calls may take the fast path, decided from the lines of the head alone.

A call is ordinary when its target is exactly one of ours, its body has a known length within the limit and one of
the three types, its answer may have that type, and no header asks for anything special. For anything else head_of()
returns None and it goes through ASGI. Where the lines come from: reader.py, or uvicorn's parser.
"""

import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import Final

from foldserve.service.access.gate import WIDE_OPEN, Gate
from foldserve.service.access.keyring import Keyring, presented_digest
from foldserve.service.access.scopes import INFER
from foldserve.service.codecs import BodyType, body_type
from foldserve.service.codecs.media_types import answer_types
from foldserve.service.codecs.protocol import Options
from foldserve.service.engine.codec_process import LARGE_JSON_BYTES
from foldserve.service.errors import NotAcceptable, UnsupportedMediaType
from foldserve.service.inference.plan import RequestHead, RequestPlan, Target

_LENGTH_DIGITS: Final = 15
_REQUEST_ID: Final = re.compile(rb"[\x20-\x7e]{1,128}")
_HOST: Final = re.compile(rb"(\[[0-9A-Fa-fvV:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(:\d*)?", re.ASCII)
_KINDS: Final = (BodyType.JSON, BodyType.RAW, BodyType.NPY)
_JSON: Final = "json"
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
_JSON_LENGTH: Final = 9
_PRIORITY: Final = 10
KEY: Final = 11
_ORIGIN: Final = 12

_NAMES: Final = {
    b"content-length": _LENGTH,
    b"content-type": _TYPE,
    b"inference-header-content-length": _JSON_LENGTH,
    b"accept": _ACCEPT,
    b"x-request-id": ID,
    b"x-timeout-ms": _TIMEOUT,
    b"x-priority": _PRIORITY,
    b"host": _HOST_LINE,
    b"connection": _CONNECTION,
    b"authorization": KEY,
    b"x-api-key": KEY,
    b"origin": _ORIGIN,
    b"proxy-connection": SPECIAL,
    b"transfer-encoding": SPECIAL,
    b"content-encoding": SPECIAL,
    b"expect": SPECIAL,
    b"x-tensor-name": SPECIAL,
    b"x-tensor-datatype": SPECIAL,
    b"x-tensor-shape": SPECIAL,
}
"""Headers that mean something here; SPECIAL: only protocols/ know what."""


class Route(Target):
    """A request target that names one version of one model."""

    def __init__(self, path: str, query: str, pattern: str) -> None:
        super().__init__(path, query, pattern)
        self.target = (path + query).encode()
        """As a request line has it."""

    @abstractmethod
    def plan(self, kind: int, accepts: int, json_length: int) -> RequestPlan | None:
        """What becomes of a body; None when such a call is not ordinary.

        kind, accepts: what Field.number has of Content-Type and Accept; kind is negative without one. json_length: what
        Inference-Header-Content-Length says; negative without one.
        """

    def options(self, json_length: int) -> Options:
        """What such a head says to the protocol of the body."""
        return ()


class PredictRoute(Route):
    """Of /predict, with the plan for a body of each type."""

    def __init__(self, path: str, query: str, pattern: str, plans: Mapping[BodyType, RequestPlan]) -> None:
        super().__init__(path, query, pattern)
        self.plans = [_ordinary(plans[kind]) for kind in _KINDS]

    def plan(self, kind: int, accepts: int, json_length: int) -> RequestPlan | None:
        """See Route."""
        return self.plans[kind] if kind >= 0 and accepts >> kind & 1 else None


class JsonRoute(Route):
    """Of a protocol whose bodies are JSON, whatever their type is said to be."""

    def __init__(self, path: str, pattern: str, json: RequestPlan) -> None:
        super().__init__(path, "", pattern)
        self.json = json

    def plan(self, kind: int, accepts: int, json_length: int) -> RequestPlan | None:
        """See Route."""
        return self.json


class OipRoute(Route):
    """Of the Open Inference Protocol, where a header tells what a body is, and the body what the answer is."""

    def __init__(self, path: str, pattern: str, json: RequestPlan, binary: RequestPlan) -> None:
        super().__init__(path, "", pattern)
        self.json = json
        self.binary = binary

    def plan(self, kind: int, accepts: int, json_length: int) -> RequestPlan | None:
        """See Route."""
        return self.json if json_length < 0 or json_length > LARGE_JSON_BYTES else self.binary

    def options(self, json_length: int) -> Options:
        """See Route."""
        return () if json_length < 0 else (str(json_length),)


def _ordinary(plan: RequestPlan) -> RequestPlan | None:
    """The plan, if bodies of its type are ordinary: one of raw bytes or npy holds one tensor."""
    if plan.reads.name == _JSON:
        return plan
    one = len(plan.served.signature.outputs) == 1
    return plan if one and (not plan.reads.raw or plan.row_bytes > 0) else None


class Field:
    """What one header line says.

    number: of the lengths and X-Priority their values, of Connection the options, of Content-Type the place of its body
    type in _KINDS, of Accept a bit for each. value: of X-Request-Id and X-Timeout-Ms; of a key its digest.
    """

    def __init__(self, says: int, number: int = 0, value: bytes = b"") -> None:
        self.says = says
        self.number = number
        self.value = value


class Head(RequestHead):
    """What the head of an ordinary call says.

    keep_alive: whether the connection serves on after the answer. old: HTTP/1.0, which must be told so.
    """

    def __init__(
        self,
        route: Route,
        plan: RequestPlan,
        length: int,
        request_id: bytes,
        timeout_ms: bytes,
        options: Options,
        priority: int,
        keep_alive: bool,
        old: bool,
    ) -> None:
        super().__init__(route, plan, length, request_id, timeout_ms, options, "", priority)
        self.media_type = plan.media_type.encode()
        self.keep_alive = keep_alive
        self.old = old


def field_of(name: bytes, value: bytes) -> Field:
    """What a header line says. name: in lower case; value: without the white space around it."""
    says = _NAMES.get(name, IGNORED)
    if says in (_LENGTH, _JSON_LENGTH, _PRIORITY):
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
    if says == KEY:
        digest = presented_digest(value, name == b"authorization")
        return _IGNORED_FIELD if digest is None else Field(says, value=digest)
    if says == _ORIGIN:
        return Field(says)
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


def head_of(route: Route, old: bool, fields: list[Field], gate: Gate = WIDE_OPEN) -> Head | None:
    """What an ordinary head says; None when the call must go through ASGI. old: HTTP/1.0; gate: what is asked of it."""
    keys, cross_origin = gate.keys, gate.cross_origin is not None
    seen = connection = 0
    length = kind = json_length = -1
    priority = 0
    accepts = _ANY
    request_id = timeout_ms = digest = b""
    for field in fields:
        says = field.says
        if says == IGNORED or (says == KEY and keys is None) or (says == _ORIGIN and not cross_origin):
            continue
        bit = 1 << says
        if says in (SPECIAL, _ORIGIN) or seen & bit:
            return None  # a second line of the same name: the ASGI path knows what that means
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
            connection = field.number
        elif says == _JSON_LENGTH:
            json_length = field.number
        elif says == _PRIORITY:
            priority = field.number
        elif says == KEY:
            digest = field.value
    if not (old or seen & (1 << _HOST_LINE)):
        return None
    plan = route.plan(kind, accepts, json_length)
    if plan is None or not max(1, json_length) <= length <= plan.limit.nbytes:
        return None
    if plan.reads.raw and not plan.is_rows(length):
        return None
    if 1 < len(plan.queue.levels) < priority:
        return None
    keep_alive = connection == _KEEP if old else connection != _CLOSE
    options = route.options(json_length)
    head = Head(route, plan, length, request_id, timeout_ms, options, priority, keep_alive, old)
    return head if keys is None or _admitted(head, keys, digest) else None


def _admitted(head: Head, keys: Keyring, digest: bytes) -> bool:
    """Note in a head who its caller is. False for one that is to be refused: by the ASGI path."""
    caller = keys.find(digest)
    if caller is None or not caller.may(INFER, head.plan.queue.model):
        return False
    head.made_by(caller)
    return True
