"""Bodies that come compressed (Content-Encoding, RFC 9110, 8.4): inflated within a bound. Pure."""

import zlib
from typing import Final

from foldserve.service.errors import BadRequest, TooLarge, UnsupportedMediaType

ENCODINGS: Final = ("gzip", "deflate")
_NAMES: Final = {"": "", "identity": "", "gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}
_GZIP_OR_ZLIB: Final = 32 + zlib.MAX_WBITS
_RAW: Final = -zlib.MAX_WBITS
"""Deflate as some clients send it: without the frame of zlib, against RFC 9110, 8.4.1.2."""

MOST_INFLATED: Final = 1032
"""Bytes that one of deflate's may become (a match of 258 for two bits)."""
_FIRST_PIECE: Final = 512
_LARGEST_PIECE: Final = 2**20
"""Bytes. zlib copies what follows the end of a file, so a body of many small ones must not be given to it as a whole:
that would take the square of their number. The longer a file is, the larger the pieces."""


def encoding_of(header: str | None) -> str:
    """One of ENCODINGS, or "" for a body that is as it stands. Raises: UnsupportedMediaType."""
    name = "" if header is None else header.strip().lower()
    if name not in _NAMES:
        raise UnsupportedMediaType(
            f"Content-Encoding {name[:50]!r} is not supported; send the body as "
            f"{' or '.join(ENCODINGS)}, or uncompressed"
        )
    return _NAMES[name]


def beginning(body: memoryview, encoding: str, nbytes: int) -> tuple[bytes, bool]:
    """At most so many bytes of the body as it was before it was compressed, and whether that is all of it.

    Raises: BadRequest when it is something else.
    """
    stream = zlib.decompressobj(_wbits(body, encoding))
    try:
        start = stream.decompress(body[:nbytes], nbytes)
    except zlib.error as error:
        raise _not_compressed(encoding, error) from None
    return start, stream.eof and len(body) <= nbytes and not stream.unused_data


def inflated(body: memoryview, encoding: str, limit_bytes: int) -> bytes:
    """The body as it was before it was compressed.

    Raises: BadRequest when it is not whole, or something else; TooLarge when it has more than limit_bytes.
    """
    wbits = _wbits(body, encoding)
    parts: list[bytes] = []
    at, piece, left = 0, _FIRST_PIECE, limit_bytes
    stream = zlib.decompressobj(wbits)
    while at < len(body) or not stream.eof:
        if stream.eof:  # gzip files may stand one after the other (RFC 1952, 2.2)
            stream, piece = zlib.decompressobj(wbits), _FIRST_PIECE
        given = body[at : at + piece]
        if not given:
            raise BadRequest(f"the {encoding} body ends before it is whole; send all of it")
        try:
            part = stream.decompress(given, left + 1)
        except zlib.error as error:
            raise _not_compressed(encoding, error) from None
        if len(part) > left:
            raise TooLarge(
                f"the body has more than {limit_bytes} bytes when inflated; send less in one request"
            )
        parts.append(part)
        left -= len(part)
        at += len(given) - len(stream.unused_data)
        piece = min(2 * piece, _LARGEST_PIECE)
    return b"".join(parts)


def _wbits(body: memoryview, encoding: str) -> int:
    return _RAW if encoding == "deflate" and not _has_frame(body) else _GZIP_OR_ZLIB


def _not_compressed(encoding: str, error: zlib.error) -> BadRequest:
    return BadRequest(
        f"the body is not {encoding} ({error}); send it as Content-Encoding says, or without that header"
    )


def _has_frame(body: memoryview) -> bool:
    """Whether deflated bytes begin as zlib's do (RFC 1950, 2.2)."""
    return len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
