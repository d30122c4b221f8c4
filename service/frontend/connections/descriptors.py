"""How many files this process may have open, and how many connections that leaves room for.

Shells and service managers give 1024 and allow far more: the soft limit is raised to the hard one at the start, as
children inherit it.
"""

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from foldserve.service.errors import ConfigError

_GUESTS: Final = 64
_SPARE: Final = 32
"""Descriptors for guests, and for what a process opens for a moment, as a scrape does; less where there are few."""
_LEAST: Final = 4
"""Guests and connections, or nobody can be served."""
_LEAST_SPARE: Final = 8
"""What the start of the process that writes metrics opens for a moment."""
_SEARCHED: Final = 4096
"""Descriptors are given from below: none of ours is beyond."""
_OF_A_CHILD: Final = 2
"""In the parent: its lifeline, and what signals its end. An API server inherits those of the others."""
_OF_AN_API_SERVER: Final = 16
"""Its event loop, and its mappings beside those of the arenas."""

FIX: Final = "raise the limit on open files (ulimit -n, LimitNOFILE= of systemd, --ulimit nofile= of docker)"


@dataclass(frozen=True)
class ConnectionLimits:
    """connections: those that a process can hold. guests: those beyond, which get 503."""

    connections: int
    guests: int


def raise_limit() -> int:
    """Raise the soft limit on open files to the hard one; returns what holds from now on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):  # macOS has a lower bound of its own than the hard limit says
            return limit()
    return limit()


def limit() -> int:
    """The soft limit on open files of this process."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return soft if soft != resource.RLIM_INFINITY else 2**31 - 1


def open_now() -> int:
    """The descriptors that this process has open."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # the listing has one itself
    except OSError:  # no /proc is mounted
        return sum(map(_is_open, range(min(limit(), _SEARCHED))))


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def connection_limits(free: int) -> ConnectionLimits | None:
    """What can be made of so many free descriptors; None when they are too few to serve anybody."""
    spare, guests = min(_SPARE, max(free // 4, _LEAST_SPARE)), min(_GUESTS, free // 4)
    connections = free - spare - guests
    return ConnectionLimits(connections, guests) if min(guests, connections) >= _LEAST else None


def for_connections(children: int, api_servers: int) -> int:
    """How many connections each API server will be able to hold; called in the parent before it starts any child.

    Raises: OSError when they are too few.
    """
    found = connection_limits(limit() - open_now() - children * _OF_A_CHILD - api_servers - _OF_AN_API_SERVER)
    if found is None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return found.connections


@contextlib.contextmanager
def enough(what: str) -> Iterator[None]:
    """Tell it in a text when descriptors, or memory behind them, do not suffice for what is made inside.

    Raises: ConfigError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            text = f"the limit of {limit()} open files is too low for {what} and a few connections; {FIX}"
        elif error.errno == errno.EFBIG:
            text = f"the limit on file sizes is too low for the shared memory of {what}; lift it (ulimit -f unlimited)"
        elif error.errno == errno.ENOMEM:
            text = f"no memory available for {what}; lower --arena-bytes, --max-in-flight or --api-servers"
        else:
            raise
        raise ConfigError(text) from error
