"""Bodies that come compressed (Content-Encoding, RFC 9110, 8.4): inflated within a bound. Pure."""

import zlib
from typing import Final

from foldserve.service.errors import BadRequest, TooLarge, UnsupportedMediaType

ENCODINGS: Final = ("gzip", "deflate")
_NAMES: Final = {"": "", "identity": "", "gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}
_GZIP_OR_ZLIB: Final = 32 + zlib.MAX_WBITS
_RAW: Final = -zlib.MAX_WBITS
"""Deflate as some clients send it: without the frame of zlib, against RFC 9110, 8.4.1.2."""


def encoding_of(header: str | None) -> str:
    """One of ENCODINGS, or "" for a body that is as it stands. Raises: UnsupportedMediaType."""
    name = "" if header is None else header.strip().lower()
    if name not in _NAMES:
        raise UnsupportedMediaType(
            f"Content-Encoding {name[:50]!r} is not supported; send the body as "
            f"{' or '.join(ENCODINGS)}, or uncompressed"
        )
    return _NAMES[name]


def inflated(body: memoryview, encoding: str, limit_bytes: int) -> bytes:
    """The body as it was before it was compressed.

    Raises: BadRequest when it is not whole, or something else; TooLarge when it has more than limit_bytes.
    """
    raw = encoding == "deflate" and not _has_frame(body)
    parts: list[bytes] = []
    left, rest = limit_bytes, bytes(body)
    while rest or not parts:
        stream = zlib.decompressobj(_RAW if raw else _GZIP_OR_ZLIB)
        try:
            part = stream.decompress(rest, left + 1)
        except zlib.error as error:
            raise BadRequest(
                f"the body is not {encoding} ({error}); send it as Content-Encoding says, or without that header"
            ) from None
        if len(part) > left:
            raise TooLarge(
                f"the body has more than {limit_bytes} bytes when inflated; send less in one request"
            )
        if not stream.eof:
            raise BadRequest(f"the {encoding} body ends before it is whole; send all of it")
        parts.append(part)
        left -= len(part)
        rest = stream.unused_data  # gzip files may stand one after the other (RFC 1952, 2.2)
    return b"".join(parts)


def _has_frame(body: memoryview) -> bool:
    """Whether deflated bytes begin as zlib's do (RFC 1950, 2.2)."""
    return len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
