"""Where gRPC listens: the addresses of HTTP, on a port of its own. Used in the parent; imports no grpcio.

Each API server listens for itself, with SO_REUSEPORT, and the system spreads connections over them.
"""

import errno
import socket
from importlib.util import find_spec
from typing import Any, Final

from foldserve.service.errors import ConfigError

_PACKAGES: Final = ("grpc", "google.protobuf")
_FIXES: Final = {
    errno.EADDRINUSE: "end what uses the port, or choose another with --grpc-port",
    errno.EACCES: "ports below 1024 are root's; choose another with --grpc-port",
}


class GrpcPort:
    """Kept for a server as long as this lives: nobody else can have it.

    addresses: as grpcio takes them; none when gRPC is off.
    """

    def __init__(self, port: int, listeners: list[socket.socket]) -> None:
        """
        Args:
            port: 0 = gRPC is off.
            listeners: those of HTTP.
        Raises: ConfigError when it cannot be had.
        """
        self._held: list[socket.socket] = []
        self.addresses: tuple[str, ...] = ()
        if not port:
            return
        _check_packages()
        addresses = [listener.getsockname() for listener in listeners if listener.family != socket.AF_UNIX]
        if not addresses:
            raise ConfigError("--grpc-port needs an IP address in --host; add one, such as 127.0.0.1")
        try:
            for address in addresses:
                self._hold((address[0], port, *address[2:]))
        except BaseException:
            self.close()
            raise
        hosts = [f"[{address[0]}]" if ":" in address[0] else address[0] for address in addresses]
        self.addresses = tuple(f"{host}:{port}" for host in hosts)

    def _hold(self, address: tuple[Any, ...]) -> None:
        family = socket.AF_INET6 if len(address) > 2 else socket.AF_INET
        try:
            # SO_REUSEPORT would let a second server of this user in: first ask without it.
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                probe.listen()
            held = socket.socket(family)
            self._held.append(held)
            held.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # else closed connections would be in the way
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(address)
        except OSError as error:
            fix = _FIXES.get(error.errno or 0, "choose another with --grpc-port")
            raise ConfigError(
                f"cannot listen on {address[0]} port {address[1]} for gRPC: {error.strerror}; {fix}"
            ) from error

    def close(self) -> None:
        """Let it go."""
        for held in self._held:
            held.close()


def _check_packages() -> None:
    try:
        missing = [name for name in _PACKAGES if find_spec(name) is None]
    except ModuleNotFoundError:  # not even the package that it would be in
        missing = list(_PACKAGES)
    if missing:
        raise ConfigError(
            '--grpc-port needs the packages grpcio and protobuf; install them with pip install "foldserve[grpc]", or '
            "leave the port out"
        )
