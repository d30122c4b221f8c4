"""The pool of connections of a Client: urllib3's. Sends a call, and says what came of it."""

import http.client
import os
import socket
import ssl
from typing import Final

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, NewConnectionError, ProtocolError, SSLError, TimeoutError

from foldserve.service.client.address import Address
from foldserve.service.client.answers import Answer
from foldserve.service.client.calls import Call
from foldserve.service.client.deadline import TimeOver
from foldserve.service.client.errors import ClientError, ServerUnreachable, UntrustedServer

_KEPT: Final = 256
"""Connections that a client keeps, which is as many as threads have asked at once; more are made and ended again."""

_NO_TLS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST")
"""What OpenSSL calls an answer that is none of TLS."""


class Connections:
    """Of one process at a time: one that was forked makes its own, because of connections that a fork copied another
    process reads the answers. Safe to use from several threads."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._pool: tuple[int, urllib3.HTTPConnectionPool] | None = (os.getpid(), _pool(address))

    def send(self, call: Call, timeout_s: float) -> Answer:
        """Send once. Raises: ServerUnreachable, TimeOver."""
        try:
            response = self._of_this_process().urlopen(
                call.method,
                self._address.prefix + call.path,
                body=call.body,
                headers={**self._address.headers, **call.headers},
                timeout=urllib3.Timeout(total=timeout_s),
                retries=False,
                redirect=False,
            )
        except NewConnectionError as error:  # which is a TimeoutError to urllib3
            raise unreachable(self._address, call, error.__context__ or error) from None
        except TimeoutError:
            raise TimeOver from None
        except (HTTPError, OSError) as error:
            raise unreachable(self._address, call, error) from None
        return Answer(response.status, response.headers, response.data)

    def close(self) -> None:
        """End them; none is made any more."""
        if self._pool is not None:
            self._pool[1].close()
            self._pool = None

    def _of_this_process(self) -> urllib3.HTTPConnectionPool:
        if self._pool is None:
            raise closed(self._address)
        pid = os.getpid()
        if self._pool[0] != pid:
            self._pool = (pid, _pool(self._address))
        return self._pool[1]


def unreachable(address: Address, call: Call, error: BaseException) -> ServerUnreachable:
    """For a call that got no answer."""
    where = f"{address.shown}{call.path.partition('?')[0]}"
    cause: BaseException | None = error.args[0] if isinstance(error, SSLError) and error.args else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return UntrustedServer(
            f"{where} is not trusted: {cause.verify_message}; give ca='file.pem' (`foldserve predict --ca`) with the "
            "certificate of who signed it"
        )
    return ServerUnreachable(f"{where} cannot be reached: {_why(cause, address)}")


def _why(cause: BaseException | None, address: Address) -> str:
    """What happened, and what may help."""
    scheme, _, host = address.shown.partition("://")
    if isinstance(cause, ProtocolError) and len(cause.args) == 2:
        cause = cause.args[1]  # urllib3 says the same in its own words before
    if isinstance(cause, ssl.SSLError) and cause.reason in _NO_TLS:
        return f"what answers does not speak TLS; is it http://{host}?"
    if isinstance(cause, http.client.BadStatusLine) and not isinstance(cause, ConnectionError):
        return "what answers does not speak HTTP/1.1; is this the port for HTTP, and not the one for gRPC?"
    mend = "is the server up?"
    if isinstance(cause, ConnectionResetError) and scheme == "http":
        mend += f" One with TLS is asked at https://{host}"
    return f"{cause or type(cause).__name__}; {mend}"


def closed(address: Address) -> ClientError:
    """For a call of a client that was closed."""
    return ClientError(f"the client of {address.shown} is closed; make another one")


def _pool(address: Address) -> urllib3.HTTPConnectionPool:
    if address.socket is not None:
        return _UnixPool(address.socket)
    if address.tls is not None:
        return urllib3.HTTPSConnectionPool(address.host, address.port, maxsize=_KEPT, ssl_context=address.tls)
    return urllib3.HTTPConnectionPool(address.host, address.port, maxsize=_KEPT)


class _UnixConnection(HTTPConnection):
    """To a socket in the file system."""

    path = ""

    def connect(self) -> None:
        """See HTTPConnection."""
        made = socket.socket(socket.AF_UNIX)
        try:
            made.settimeout(self.timeout if isinstance(self.timeout, int | float) else None)
            made.connect(self.path)
        except BaseException:
            made.close()
            raise
        self.sock = made


class _UnixPool(urllib3.HTTPConnectionPool):
    def __init__(self, path: str) -> None:
        self.ConnectionCls = type("_Connection", (_UnixConnection,), {"path": path})
        super().__init__("localhost", maxsize=_KEPT)
