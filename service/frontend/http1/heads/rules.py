"""What HTTP forbids although its parser reads it: targets, versions, hosts and codings that are answered with an error.

Pure functions on the parts of a head, after RFC 9110 and 9112. Who is refused here has sent a whole head, so that its
body can be read past, unless the head's framing itself is in doubt.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import unquote

import httptools

from foldserve.service.errors import BadRequest, NotImplementedHere, ServiceError, VersionNotSupported
from foldserve.service.frontend.http1.heads.cache import is_host

MOST_HEADERS: Final = 1024
"""Header lines of a request. A line of three bytes takes over a hundred once it is read."""

RawHeaders = Sequence[tuple[bytes, bytes]]

_SHOWN: Final = 100
_VERSIONS: Final = ("1.0", "1.1")
_TLS: Final = b"\x16\x03"
"""How a handshake of TLS begins (RFC 8446, 5.1)."""
_HTTP_2: Final = b"PRI * HTTP/2.0"
"""How HTTP/2 begins (RFC 9113, 3.4)."""


class RequestTarget(NamedTuple):
    """A request target's parts; path with its escapes read, raw_path without."""

    path: str
    raw_path: bytes
    query: bytes


def parse_target(target: bytes) -> RequestTarget:
    """The parts of a target: /path?query, or http://host/path?query (RFC 9112, 3.2). Raises BadRequest."""
    try:
        parsed = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        parsed = None
    if parsed is None or not parsed.path or not parsed.path.startswith(b"/"):
        raise BadRequest(
            f"the request's target {shown(target)!r} has no path; expected a path such as /predict/<model>, "
            "or a URL that has one"
        )
    return RequestTarget(unquote(parsed.path.decode("latin-1")), parsed.path, parsed.query or b"")


def refusal(method: bytes, version: str, protocol: bytes, headers: RawHeaders) -> ServiceError | None:
    """Why a head that the parser has taken is not answered as it asks.

    Args:
        version: "1.1". protocol: what stands before it in the request line; empty when that is not known.
        headers: by names in lower case.
    """
    if version not in _VERSIONS or protocol not in (b"", b"HTTP"):
        return VersionNotSupported(
            f"the request is {shown(protocol or b'HTTP')}/{version}; expected HTTP/1.1 or HTTP/1.0: use a client, or a "
            "setting of it, that speaks one of these"
        )
    if method == b"CONNECT":
        return BadRequest(
            "CONNECT asks for a tunnel, and this server is not a proxy; ask for a path, as in POST /predict"
        )
    if len(headers) > MOST_HEADERS:
        return too_many_headers()
    return _host_refusal(version, headers) or _coding_refusal(version, headers)


def not_http(begin: bytes, why: str) -> ServiceError:
    """For what the parser cannot take. begin: how its first line begins. why: the parser's word."""
    if begin.startswith(_TLS):
        return BadRequest(
            "the request is a TLS handshake, and this port has no TLS; ask it as http://, or have the server started "
            "with --tls-certificate and --tls-key"
        )
    if begin.startswith(_HTTP_2):
        return VersionNotSupported(
            "the request is HTTP/2; expected HTTP/1.1 or HTTP/1.0: use a client, or a setting of it, that speaks one "
            "of these. gRPC has a port of its own, --grpc-port"
        )
    return BadRequest(
        f"the request is not valid HTTP/1.1: {why}; expected a line such as 'POST /predict/<model> HTTP/1.1', headers, "
        "an empty line and the body"
    )


def too_many_headers() -> BadRequest:
    """For a head of which no more is kept."""
    return BadRequest(f"the head has more than {MOST_HEADERS} lines; send fewer headers")


def _host_refusal(version: str, headers: RawHeaders) -> ServiceError | None:
    """RFC 9112, 3.2."""
    hosts = [value for name, value in headers if name == b"host"]
    if not hosts and version == "1.1":
        return BadRequest("the request has no Host header; expected one, as in 'Host: localhost:8000'")
    if len(hosts) > 1:
        return BadRequest(f"the request has {len(hosts)} Host headers; expected one: drop the others")
    if hosts and not is_host(hosts[0].strip(b" \t")):
        return BadRequest(
            f"the Host header is {shown(hosts[0])!r}; expected a name or an address, and a port if it is not 80, as in "
            "'Host: localhost:8000'"
        )
    return None


def _coding_refusal(version: str, headers: RawHeaders) -> ServiceError | None:
    """RFC 9112, 6.1: a coding that is not undone must not be passed over."""
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if codings and version == "1.0":
        return BadRequest("HTTP/1.0 has no Transfer-Encoding; send Content-Length instead, or HTTP/1.1")
    said = b", ".join(codings).strip(b" \t")
    if codings and said.lower() != b"chunked":
        return NotImplementedHere(
            f"Transfer-Encoding is {shown(said)!r}; expected only 'chunked': send the body as it is, chunked or "
            "with its Content-Length"
        )
    return None


def shown(value: bytes) -> str:
    """The beginning of what a client sent, for a text."""
    return value[:_SHOWN].decode("latin-1")
