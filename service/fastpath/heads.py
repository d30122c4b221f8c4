"""Which calls may take the short way, decided from the head alone; and heads that were decided before.

A call is ordinary when its path is exactly one of ours, its body has a known length within the limit and one of
the three types, and no header asks for anything special. For anything else plan() returns None and the long way
answers.

A client sends the same head again and again, so the plan of a head is kept by its exact bytes: equal bytes mean
an equal request, and the second one need not be parsed. Only heads that the parser has taken whole and plan() has
found ordinary are kept, and none that carries an id or a deadline of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

from service.codecs import BodyType
from service.codecs.json_quick import QuickJson
from service.signature import Signature
from service.ticketed import Lane

RawHeaders = Sequence[tuple[bytes, bytes]]

_LENGTH_DIGITS: Final = 15
_TYPES: Final = {kind.value.encode(): kind for kind in BodyType}
_SPECIAL: Final = frozenset(
    (
        *(b"transfer-encoding", b"content-encoding", b"expect", b"upgrade", b"connection", b"trailer"),
        *(b"authorization", b"x-api-key", b"x-tensor-name", b"x-tensor-datatype", b"x-tensor-shape"),
    )
)
"""Headers that only the long way knows."""


@dataclass(frozen=True, eq=False)
class Route:
    """A path that names one version of one model."""

    path: str
    pattern: str
    """The long way's route for such paths, for the access log."""
    lane: Lane
    signature: Signature
    counters: Mapping[BodyType, Callable[..., None]]
    """Metrics.answered_counter of each type."""

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


class Head(NamedTuple):
    """What the head of an ordinary call says, with what its route has for that type at hand.

    raw: whether the body is the rows' own bytes. own: the headers that service/call.py reads. quick: None where the
    codecs must look.
    """

    route: Route
    lane: Lane
    kind: BodyType
    raw: bool
    media_type: bytes
    length: int
    own: Mapping[str, str]
    quick: QuickJson | None
    counter: Callable[..., None]


def plan(route: Route, headers: RawHeaders, limit_bytes: int, json_limit_bytes: int) -> Head | None:
    """What an ordinary head says; None when the call must take the long way.

    limit_bytes: of any body; json_limit_bytes: of one in JSON.
    """
    kind = length = accept = None
    own: dict[str, str] = {}
    for name, value in headers:
        if name == b"content-length":
            length = value
        elif name == b"content-type":
            kind = _TYPES.get(value)
        elif name == b"accept":
            if accept is not None:
                return None  # several lines make one list
            accept = value
        elif name == b"x-request-id" or name == b"x-timeout-ms":
            own[name.decode()] = value.decode("latin-1")
        elif name in _SPECIAL and not (name == b"connection" and value.lower() == b"keep-alive"):
            return None
    if kind is None or length is None or not length.isdigit() or len(length) > _LENGTH_DIGITS:
        return None
    size = int(length)
    if not 0 < size <= (json_limit_bytes if kind is BodyType.JSON else limit_bytes) or (
        accept is not None and accept != b"*/*" and _TYPES.get(accept) is not kind
    ):
        return None
    if kind is not BodyType.JSON and not route.one_output:
        return None
    if kind is BodyType.RAW and (not route.raw_row_bytes or size % route.raw_row_bytes):
        return None
    quick = route.quick if kind is BodyType.JSON else None
    raw = kind is BodyType.RAW
    return Head(route, route.lane, kind, raw, kind.value.encode(), size, own, quick, route.counters[kind])


class KnownHeads:
    """Plans by the exact bytes of their heads; when it is full it starts anew."""

    LARGEST: Final = 1024
    """Bytes: longer heads are not kept."""
    _MOST: Final = 1024

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}
        self.get = self._known.get

    def add(self, head: bytes, what: Head) -> None:
        """Keep a plan, unless it holds what only one request can mean."""
        if what.own or len(head) > self.LARGEST:
            return
        if len(self._known) >= self._MOST:
            self._known.clear()
        self._known[head] = what
