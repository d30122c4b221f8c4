"""The messages between an API server and its codec process: small lists as JSON, one in each packet.

Nothing that comes from the process, which reads what strangers send, is unpickled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

import orjson

from foldserve.service.codecs.fast.codec import NO_SCHEDULE, Schedule
from foldserve.service.codecs.protocol import InferenceProtocol, Options
from foldserve.service.errors import (
    BadJson,
    BadPicture,
    BadRequest,
    BadTensor,
    ModelFailed,
    NotReady,
    ServiceError,
    TooLarge,
    UnsupportedMediaType,
)
from foldserve.service.ipc.model_table import ModelKey, ModelTable
from foldserve.service.ipc.region_table import RegionTable
from foldserve.service.logs.lines import LogStyle

PACKET_BYTES: Final = 65_536
"""Larger than any message: names and headers are bounded where they are made, what a client is told is here."""
_MOST_TOLD: Final = 8192
"""Characters of an error's text. A longer message than a packet would never be read, and others wait behind it."""

_ERRORS: Final = {
    error.__name__: error
    for error in (
        BadJson,
        BadPicture,
        BadRequest,
        BadTensor,
        ModelFailed,
        NotReady,
        TooLarge,
        UnsupportedMediaType,
    )
}


class MessageType(StrEnum):
    """Kinds of messages."""

    PARSE = "parse"
    RENDER = "render"
    PUT = "put"
    DROP = "drop"
    SIZED = "sized"
    REFUSED = "refused"
    BROKEN = "broken"
    """An error that is not a ServiceError; the process has logged it."""
    DONE = "done"


@dataclass(frozen=True)
class CodecPlan:
    """What the process is given when it starts. Picklable by handles.pickled_for_exec(), with the memory that it names.

    models: where it reads what a version's tensors are. protocols: by their names. arena_bytes: of the whole arena,
    headers included. regions, region_limit_bytes: the shared memory of clients, where it is read, and the most of
    one tensor in it.
    """

    models: ModelTable
    protocols: Mapping[str, InferenceProtocol]
    arena_bytes: int
    log_style: LogStyle
    regions: RegionTable | None = None
    region_limit_bytes: int = 0


class Body(NamedTuple):
    """A body that lies in the arena: its length, what its head says to its protocol, its Content-Encoding ("" for none)
    and the most that it may be when inflated."""

    nbytes: int
    options: Options = ()
    encoding: str = ""
    limit_bytes: int = 0


@dataclass(frozen=True)
class Sized:
    """The result of the work: the bytes that it needs; of a body the rows and dynamic dims of its inputs
    and what else it says (ParsedRequest); of an answer its media type and headers (Encoded)."""

    nbytes: int
    rows: int = 0
    dims: tuple[int, ...] = ()
    outputs: tuple[str, ...] = ()
    reply: Any = None
    schedule: Schedule = NO_SCHEDULE
    media_type: str = ""
    headers: tuple[tuple[str, str], ...] = ()


def pack(message_type: MessageType, *values: Any) -> bytes:
    """A message."""
    return orjson.dumps([message_type, *values])


def unpack(packet: bytes) -> tuple[str, list[Any]]:
    """The type of a message, and its values."""
    message_type, *values = orjson.loads(packet)
    return message_type, values


def parse_order(key: ModelKey, protocol: str, at: int, body: Body) -> bytes:
    """Parse the body that lies there in the arena."""
    return pack(MessageType.PARSE, tuple(key), protocol, at, tuple(body))


def render_order(
    key: ModelKey, protocol: str, rows: int, at: int, nbytes: int, names: Sequence[str], reply: Any
) -> bytes:
    """Render the answer with these of the outputs that lie there in the arena. reply: ParsedRequest.reply."""
    return pack(MessageType.RENDER, tuple(key), protocol, rows, at, nbytes, list(names), reply)


def sized_message(sized: Sized) -> bytes:
    """The message that says so."""
    return pack(
        MessageType.SIZED,
        *(sized.nbytes, sized.rows, sized.dims),
        *(sized.outputs, sized.reply, tuple(sized.schedule)),
        *(sized.media_type, sized.headers),
    )


def sized_of(values: Sequence[Any]) -> Sized:
    """What such a message says."""
    nbytes, rows, dims, outputs, reply, schedule, media_type, headers = values
    said = (tuple(outputs), reply, Schedule(*schedule))
    return Sized(
        nbytes, rows, tuple(dims), *said, media_type, tuple((name, value) for name, value in headers)
    )


def refusal(error: ServiceError) -> bytes:
    """The message that the request is refused with this error."""
    return pack(MessageType.REFUSED, type(error).__name__, str(error)[:_MOST_TOLD])


def refused(name: str, text: str) -> ServiceError:
    """The error in such a message."""
    return _ERRORS[name](text)
