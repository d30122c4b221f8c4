"""Asks a foldserve server on this machine whether it is ready; for the image's HEALTHCHECK.

Finds the server as the server finds its own settings: FOLDSERVE_HOST, FOLDSERVE_PORT, FOLDSERVE_TLS_CERTIFICATE and the
like. Goes there directly, whatever the environment says of proxies: they are for other machines. Standard library
alone, for it starts every few seconds.
"""

import http.client
import os
import re
import socket
import ssl
import sys
from collections.abc import Iterator, Mapping
from typing import Final

TIMEOUT_S: Final = 4.0
_UNIX: Final = "unix:"
_LOOPBACK: Final = {"0.0.0.0": ("127.0.0.1",), "::": ("127.0.0.1", "::1")}
"""Where a server that listens everywhere is asked."""


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a socket in the file system."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the path instead of the host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask(path: str, environ: Mapping[str, str] = os.environ) -> int:
    """0 when the server answers 200 there, else 1 with the reason on stderr."""
    problem = "no address"
    for connection in _connections(environ):
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            if answer.status == 200:
                return 0
            problem = f"{answer.status}: {answer.read(1000).decode(errors='replace')}"
            break
        except (OSError, http.client.HTTPException) as error:
            problem = f"cannot be reached: {error}"
        finally:
            connection.close()
    print(f"{path}: {problem}", file=sys.stderr)
    return 1


def _connections(environ: Mapping[str, str]) -> Iterator[http.client.HTTPConnection]:
    """One for each place where the server may be, the likeliest first."""
    context = _context(environ)
    port = environ.get("FOLDSERVE_PORT", "")
    number = int(port) if re.fullmatch(r"\d{1,5}", port) else 8000  # Kubernetes' links look otherwise
    hosts = [host.strip().strip("[]") for host in environ.get("FOLDSERVE_HOST", "").split(",")]
    for host in filter(None, [*hosts, "::"]):
        if host.startswith(_UNIX):
            yield UnixConnection(host.removeprefix(_UNIX), TIMEOUT_S)
        else:
            for address in _LOOPBACK.get(host, (host,)):
                if context is None:
                    yield http.client.HTTPConnection(address, number, timeout=TIMEOUT_S)
                else:
                    yield http.client.HTTPSConnection(address, number, timeout=TIMEOUT_S, context=context)


def _context(environ: Mapping[str, str]) -> ssl.SSLContext | None:
    """As the server speaks TLS; None where it does not.

    Whom it claims to be is not looked at: it is this machine. Where it asks for a certificate, it is shown its own,
    which must be signed by one of those that it trusts.
    """
    certificate, key = environ.get("FOLDSERVE_TLS_CERTIFICATE"), environ.get("FOLDSERVE_TLS_KEY")
    if not certificate:
        return None
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if environ.get("FOLDSERVE_TLS_CLIENT_CA"):
        context.load_cert_chain(certificate, key)
    return context
