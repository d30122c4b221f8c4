"""Where a server is, and how it is trusted. Knows no connections."""

import os
import ssl
import urllib.parse
from typing import Final

from foldserve.service.client.errors import BadUrl, ClientError

_UNIX: Final = "unix:"
Certificate = str | os.PathLike[str] | tuple[str | os.PathLike[str], str | os.PathLike[str]]
"""A PEM file with certificate and key, or the two files."""


class Address:
    """Attributes: host, port, prefix (the path before every call's), base (all of them as a URL), socket (the path of
    a Unix socket, or None), tls (None without), headers (of every request), shown (for people)."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        verify: bool = True,
        certificate: Certificate | None = None,
    ) -> None:
        """Arguments: see Client. Raises: BadUrl, ClientError."""
        self.socket: str | None = None
        self.tls: ssl.SSLContext | None = None
        self.headers = {"Accept-Encoding": "identity", "User-Agent": "foldserve-client"}
        if key is not None:
            if not key.isascii() or not key.isprintable() or key != key.strip() or not key:
                raise ClientError(
                    "the key has characters that no header can carry; expected printable ASCII without spaces around it"
                )
            self.headers["Authorization"] = f"Bearer {key}"
        if url.startswith(_UNIX) and url != _UNIX:
            self.socket = url.removeprefix(_UNIX)
            self.host, self.port, self.prefix = "localhost", 80, ""
            self.base, self.shown = "http://localhost", url
            return
        parts = _split(url)
        secure = parts.scheme == "https"
        self.host, self.port = parts.hostname or "", parts.port or (443 if secure else 80)
        self.prefix = parts.path.rstrip("/")
        self.base = self.shown = f"{parts.scheme}://{parts.netloc}{self.prefix}"
        if secure:
            self.tls = _context(ca, verify, certificate)


def _split(url: str) -> urllib.parse.SplitResult:
    """Raises: BadUrl."""
    expected = "expected one as in http://localhost:8000 or unix:/path"
    try:
        parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
        host, _ = None if url == _UNIX else parts.hostname, parts.port
    except ValueError:  # a port that is no number, brackets that do not close
        host = None
    if host is None or parts.scheme not in ("http", "https"):
        raise BadUrl(f"URL {url!r} is not a server's address; {expected}")
    if parts.username is not None:
        raise BadUrl(
            f"the URL of {host} has a user or a password in it; {expected}, and give a key as key=..."
        )
    if parts.query or parts.fragment:
        raise BadUrl(f"URL {url!r} has more than an address; {expected}")
    return parts


def _context(
    ca: str | os.PathLike[str] | None, verify: bool, certificate: Certificate | None
) -> ssl.SSLContext:
    """How a server is trusted, and what it is shown. Raises: ClientError for files that are no certificates."""
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ClientError(
            f"ca={os.fspath(ca or '')!r} cannot be read ({error}); expected a PEM file"
        ) from None
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate is not None:
        chain, key = certificate if isinstance(certificate, tuple) else (certificate, None)
        try:
            context.load_cert_chain(chain, key, password=_no_password)
        except (OSError, ssl.SSLError) as error:
            names = ", ".join(os.fspath(file) for file in (chain, key) if file is not None)
            raise ClientError(
                f"certificate={names!r} cannot be read ({error}); expected a PEM file with certificate and key, or two"
            ) from None
    return context


def _no_password() -> str:
    """Of a key that is encrypted: asked for at the terminal otherwise, where a program would wait for ever."""
    raise ClientError("the key of the certificate is encrypted; expected one without a password")
