"""What a request's message says at its top level, seen without parsing it. Needs no protobuf.

The model must be known before a message is parsed, and how much of it is but bytes of tensors.
"""

from typing import Final, NamedTuple

from foldserve.service.codecs.protobuf_fields import BYTES
from foldserve.service.errors import BadRequest

_MODEL: Final = 1
_VERSION: Final = 2
_ID: Final = 3
_RAW: Final = 7
"""Fields of ModelInferRequest."""
_VARINT: Final = 0
"""The kind of fields that are whole numbers."""
_FIXED: Final = {1: 8, 5: 4}
"""Bytes of those of the other kinds."""
_VARINT_BYTES: Final = 10
_HEAD_BYTES: Final = 2 * _VARINT_BYTES
"""A tag and a size have no more."""
_MOST_FIELDS: Final = 4096
"""Of a message: 1024 inputs, as many outputs and contents, and some parameters."""


class Outline(NamedTuple):
    """raw_bytes: of all raw contents."""

    model: str
    version: str
    id: str
    raw_bytes: int


def outline(message: bytes, *, cut: bool = False) -> Outline:
    """The names in a ModelInferRequest, and how much of it is raw. Raises: BadRequest.

    cut: the message goes on behind these bytes, in which its names must stand, as its first fields do.
    """
    texts = {_MODEL: b"", _VERSION: b"", _ID: b""}
    at, end, raw_bytes = 0, len(message), 0
    for _ in range(_MOST_FIELDS):
        if at >= end:
            break
        try:
            tag, at, size = _field(message, at)
        except BadRequest:
            if cut and end - at < _HEAD_BYTES:
                break
            raise
        if at + size > end:
            if cut:
                break
            raise malformed()
        if tag >> 3 == _RAW:
            raw_bytes += size
        elif tag >> 3 in texts:
            texts[tag >> 3] = message[at : at + size]
        at += size
    if at < end and not cut:
        raise BadRequest(f"the request has more than {_MOST_FIELDS} fields; send fewer inputs and parameters")
    if cut and not texts[_MODEL]:
        raise BadRequest(
            f"a compressed request has no model_name in its first {end} bytes; serialize its fields in their order, or "
            "send it uncompressed"
        )
    try:
        model, version, identity = (text.decode() for text in texts.values())
        return Outline(model, version, identity, raw_bytes)
    except UnicodeDecodeError:
        raise malformed() from None


def _field(message: bytes, at: int) -> tuple[int, int, int]:
    """The tag of the field that begins there, where its content does, and the content's size. Raises: BadRequest."""
    tag, at = _varint(message, at)
    size = _FIXED.get(tag & 7)
    if tag & 7 == _VARINT:
        _, at = _varint(message, at)
        size = 0
    elif tag & 7 == BYTES:
        size, at = _varint(message, at)
    if size is None:
        raise malformed()
    return tag, at, size


def malformed() -> BadRequest:
    """The error for a message that is none."""
    return BadRequest(
        "the request is not a ModelInferRequest; send one as the client's library makes it of its .proto"
    )


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The whole number that begins there, and where it ends."""
    number = 0
    for place in range(_VARINT_BYTES):
        if at + place >= len(message):
            break
        byte = message[at + place]
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number, at + place + 1
    raise malformed()
