"""The listening sockets of a server, from what `--host` and `--port` say. Used in the parent, before any child exists.

    127.0.0.1, ::1, [::1]    that address                    a name       every address of it that this machine has
    0.0.0.0                  every IPv4 address              unix:/path   a socket in the file system
    ::                       every address, of both kinds    a,b          several of these

The sockets listen from the start, so that a second server that wants the same port fails at once, and what comes
before the API servers are there waits for them.
"""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from foldserve.service.errors import ConfigError

_log = logging.getLogger("foldserve.addresses")

UNIX: Final = "unix:"
_BACKLOG: Final = 2048
_ANY_V4: Final = "0.0.0.0"
_ANY_V6: Final = "::"
_PORT_TRIES: Final = 10
_PATH_BYTES: Final = 107
"""The kernel's room for a path, without the zero that ends it."""

_NOT_HERE: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT})
"""The address is not this machine's. That may be so for one address of a name while another can be served."""

_FIXES: Final = {
    errno.EADDRINUSE: "end what uses the port, or choose another with --port",
    errno.EACCES: "ports below 1024 are root's; choose another with --port",
    errno.EADDRNOTAVAIL: "this machine has no such address; name one that it has (`ip address` lists them), or "
    "0.0.0.0 or :: for all",
    errno.EINVAL: "a link-local address needs its interface, as in fe80::1%eth0",
    errno.EAFNOSUPPORT: "this machine has no such kind of address; choose another with --host",
}


class UnixListener(socket.socket):
    """A listening socket in the file system, which goes when the process that made it closes it."""

    def __init__(self, path: Path) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._path = path
        self._made_by = os.getpid()
        self._file: tuple[int, int] | None = None

    def begin(self) -> None:
        """Bind and listen."""
        self.bind(os.fspath(self._path))
        self._file = _identity(self._path)
        self.listen(_BACKLOG)
        self.setblocking(False)

    def close(self) -> None:
        """Close, and take the name away if it is still this socket's."""
        if self._file and self._made_by == os.getpid():
            if _identity(self._path) == self._file:
                self._path.unlink(missing_ok=True)
            self._file = None
        super().close()


class _PortTaken(ConfigError):
    """The port that the kernel chose for one address is taken at another."""


def bind(hosts: str, port: int) -> list[socket.socket]:
    """Listening sockets for all addresses of `hosts`, not blocking. Port 0: a free one, the same for all.

    Raises: ConfigError that names the address which failed, and the fix.
    """
    names = list(dict.fromkeys(name.strip().strip("[]") for name in hosts.split(",") if name.strip()))
    if not names:
        raise ConfigError(f"--host {hosts!r} names no address; expected one, such as 127.0.0.1 or unix:/path")
    for _ in range(_PORT_TRIES - 1):
        with contextlib.suppress(_PortTaken):
            return _bind_all(names, port)
    return _bind_all(names, port)


def _bind_all(names: list[str], port: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for name in names:
            _bind_one(name, port, names, sockets)
    except BaseException:
        for bound in sockets:
            bound.close()
        raise
    return sockets


def _bind_one(name: str, port: int, names: list[str], sockets: list[socket.socket]) -> None:
    """Add the sockets of one name."""
    if name.startswith(UNIX):
        sockets.append(_unix_listener(name.removeprefix(UNIX)))
        return
    problems: list[tuple[str, OSError]] = []
    bound = 0
    for family, address in _addresses(name, port):
        chosen = port or _port_of(sockets)
        try:
            sockets.append(_tcp_listener(family, (address[0], chosen, *address[2:]), _ANY_V4 not in names))
            bound += 1
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise _refusal(name, address[0], chosen, error, taken=not port and chosen != 0) from error
            problems.append((address[0], error))
    if not bound and name == _ANY_V6:
        _log.warning("this machine has no IPv6: --host :: is served on every IPv4 address")
        _bind_one(_ANY_V4, port, names, sockets)
    elif not bound:
        raise _refusal(name, problems[0][0], port, problems[0][1])
    elif problems:
        left_out = ", ".join(f"{address} ({error.strerror})" for address, error in problems)
        _log.warning("%s is served at %d of its addresses, without %s", name, bound, left_out)


def _addresses(name: str, port: int) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--host {name!r} is not an address of this machine ({getattr(error, 'strerror', None) or error}); "
            "expected a name or an IP address, such as 127.0.0.1, 0.0.0.0 or ::, without a port, or unix:/path"
        ) from error
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _tcp_listener(family: int, address: tuple[Any, ...], both_kinds: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(
                socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not (both_kinds and address[0] == _ANY_V6)
            )
        made.bind(address)
        made.listen(_BACKLOG)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def _port_of(sockets: list[socket.socket]) -> int:
    """The port that the kernel chose for the first of them; 0 when there is none yet."""
    return next((bound.getsockname()[1] for bound in sockets if bound.family != socket.AF_UNIX), 0)


def _refusal(name: str, address: str, port: int, error: OSError, taken: bool = False) -> ConfigError:
    what = name if name == address else f"{name} ({address})"
    fix = _FIXES.get(error.errno or 0, "choose another with --host or --port")
    return (_PortTaken if taken else ConfigError)(
        f"cannot listen on {what} port {port}: {error.strerror}; {fix}"
    )


# -- in the file system


def _unix_listener(given: str) -> UnixListener:
    path = Path(given).absolute()
    if not given or len(os.fsencode(path)) > _PATH_BYTES:
        raise ConfigError(
            f"--host {UNIX}{given} has no usable path; expected one of 1 to {_PATH_BYTES} bytes, such as "
            "unix:/run/foldserve.sock"
        )
    made = UnixListener(path)
    try:
        # Two servers that start at once must not both find a dead one's socket, and one take away the other's.
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            _remove_dead(path)
            made.begin()
        finally:
            os.close(folder)
    except ConfigError:
        made.close()
        raise
    except OSError as error:
        made.close()
        raise ConfigError(
            f"cannot listen on {UNIX}{given}: {error.strerror}; give a path in a folder that is there and that "
            "this user may write to"
        ) from error
    return made


def _remove_dead(path: Path) -> None:
    """Take away a socket on which nobody listens. Raises: ConfigError for anything else of that name."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise ConfigError(
            f"cannot listen on {UNIX}{path}: a file of that name is there; remove it, or choose another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # so many wait there that it is full: somebody listens
    raise ConfigError(
        f"cannot listen on {UNIX}{path}: a server listens there; end it, or choose another path"
    )


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file has that name now."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def urls(sockets: list[socket.socket], encrypted: bool = False) -> list[str]:
    """How to reach each socket from this machine, in the order of the sockets. encrypted: those of TCP speak TLS."""
    found = []
    for bound in sockets:
        if bound.family == socket.AF_UNIX:
            found.append(f"{UNIX}{bound.getsockname()}")
            continue
        host, port = socket.getnameinfo(bound.getsockname(), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
        host = {_ANY_V4: "127.0.0.1", _ANY_V6: "[::1]"}.get(
            host, f"[{quote(host, ':')}]" if ":" in host else host
        )
        found.append(f"http{'s' * encrypted}://{host}:{port}")
    return found
