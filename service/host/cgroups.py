"""What the cgroups of this process allow: cores and memory, in every layout that Linux has.

    v2       one tree (`0::/path` in /proc/self/cgroup): cpu.max, memory.max
    v1       a tree for each controller (`4:cpu,cpuacct:/path`): cpu.cfs_quota_us, memory.limit_in_bytes
    hybrid   both, each controller in one of them

A limit may be the process's own group's or that of any group above it: the least counts. What is seen of a tree may
begin at the container's own group, or the path may be one of the host that is not seen here: then the mount point is
the group. Reads files, changes nothing; whatever cannot be read sets no limit.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, TypeVar

PROC: Final = Path("/proc/self")
_UNLIMITED_BYTES: Final = 1 << 60
"""v1 writes about 2^63 where there is no limit."""


Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Limits:
    """cores: CPU time per time, such as 1.5. memory_bytes: what the processes may hold together. None: no limit."""

    cores: float | None
    memory_bytes: int | None


def read_limits(proc: Path = PROC) -> Limits:
    """The limits of the process with this folder in /proc."""
    groups = _read(proc / "cgroup")
    mounts = [mount for line in _read(proc / "mountinfo") if (mount := _Mount.of(line))]
    return Limits(
        cores=min(_found(groups, mounts, "cpu", _cores), default=None),
        memory_bytes=min(_found(groups, mounts, "memory", _memory_bytes), default=None),
    )


@dataclass(frozen=True)
class _Mount:
    """A place where a tree of groups is seen. root: the group at that place. controllers: of v1; empty in v2."""

    root: str
    point: Path
    controllers: frozenset[str]
    unified: bool

    @classmethod
    def of(cls, line: str) -> "_Mount | None":
        """From a line of mountinfo, proc(5); None for mounts of other kinds."""
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            return None
        unified = kind[0] == "cgroup2"
        controllers = frozenset() if unified else frozenset(kind[2].split(","))
        return cls(_unescaped(fields[3]), Path(_unescaped(fields[4])), controllers, unified)

    def folders(self, group: str) -> Iterator[Path]:
        """Of the group and of those above it, as far as they are seen here."""
        inside = PurePosixPath(group)
        root = PurePosixPath(self.root)
        below = inside.relative_to(root) if inside.is_relative_to(root) else PurePosixPath()
        if ".." in below.parts:  # a group outside of the process's own namespace
            below = PurePosixPath()
        yield self.point / below
        for above in below.parents:
            yield self.point / above


def _found(
    groups: list[str], mounts: list[_Mount], controller: str, limit: Callable[[Path], Number | None]
) -> Iterator[Number]:
    """The limits of all groups that the process is in, with regard to a controller."""
    for line in groups:
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        unified = number == "0" and not controllers
        if not unified and controller not in controllers.split(","):
            continue
        for mount in mounts:
            if mount.unified is unified and (unified or controller in mount.controllers):
                yield from (found for folder in mount.folders(group) if (found := limit(folder)) is not None)


def _cores(folder: Path) -> float | None:
    """The quota in a group's folder, of either version."""
    words = _words(folder / "cpu.max") or [
        *_words(folder / "cpu.cfs_quota_us"),
        *_words(folder / "cpu.cfs_period_us"),
    ]
    try:
        quota, period = (int(word) for word in words)
    except ValueError:  # "max", or nothing there
        return None
    return quota / period if quota > 0 and period > 0 else None


def _memory_bytes(folder: Path) -> int | None:
    words = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
    try:
        (limit,) = (int(word) for word in words)
    except ValueError:
        return None
    return limit if limit < _UNLIMITED_BYTES else None


def _words(file: Path) -> list[str]:
    return " ".join(_read(file)).split()


def _read(file: Path) -> list[str]:
    try:
        with open(file, errors="replace") as opened:
            return opened.read().splitlines()
    except OSError:
        return []


def _unescaped(field: str) -> str:
    """mountinfo writes blanks as \\040 and the like."""
    return field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
