"""A message as it came, which the client may have compressed: nothing is inflated beyond a bound.

grpcio would inflate a message whole before it looks at its size: a megabyte would take a gigabyte. It is told to leave
messages as they are ("grpc.per_message_decompression"), and then bounds what it receives; but it does not say which
were compressed. Their first bytes do: a gzip file begins as no protobuf message may (0x1f is field 3 of a kind
that there is not), a zlib stream with field 15, which none of the messages that are received here has.
"""

from typing import Any, Final

from google.protobuf.message import DecodeError

from foldserve.service.codecs.compression import beginning, inflated
from foldserve.service.errors import BadRequest

SMALL_BYTES: Final = 65_536
"""A message of a call that is no inference request; and what is inflated on the event loop of one that is."""
_GZIP: Final = b"\x1f\x8b"
_ZLIB: Final = 0x78
_CHECK: Final = 31
"""The first two bytes of a zlib stream are a multiple of it (RFC 1950, 2.2)."""


def encoding_of(message: bytes) -> str:
    """One of compression.ENCODINGS; "" for a message as it is."""
    if message.startswith(_GZIP):
        return "gzip"
    if len(message) > 1 and message[0] == _ZLIB and (message[0] << 8 | message[1]) % _CHECK == 0:
        return "deflate"
    return ""


def parsed(request: Any, message: bytes) -> Any:
    """The message of a call that is no inference request. Raises: BadRequest, TooLarge."""
    encoding = encoding_of(message)
    try:
        return request.FromString(
            inflated(memoryview(message), encoding, SMALL_BYTES) if encoding else message
        )
    except DecodeError:
        name = request.DESCRIPTOR.name
        raise BadRequest(
            f"the request is not a {name}; send one as the client's library makes it of its .proto"
        ) from None


def start_of(message: bytes) -> tuple[bytes, str]:
    """The message, or its beginning and how it is compressed where that is not all of it. Raises: BadRequest."""
    encoding = encoding_of(message)
    if not encoding:
        return message, ""
    start, whole = beginning(memoryview(message), encoding, SMALL_BYTES)
    return start, "" if whole else encoding
