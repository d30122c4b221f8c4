"""The pool of connections of a Client: urllib3's. Sends a call, and says what came of it."""

import os
import socket
import ssl
from typing import Final

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, NewConnectionError, SSLError, TimeoutError

from foldserve.service.client.address import Address
from foldserve.service.client.answers import Answer
from foldserve.service.client.calls import Call
from foldserve.service.client.deadline import TimeOver
from foldserve.service.client.errors import ClientError, ServerUnreachable, UntrustedServer

_KEPT: Final = 256
"""Connections that a client keeps, which is as many as threads have asked at once; more are made and ended again."""


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
            f"{where} is not trusted: {cause.verify_message}; give ca='file.pem' with the certificate of who signed it"
        )
    return ServerUnreachable(f"{where} cannot be reached: {error or type(error).__name__}; is the server up?")


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
