"""`process_*`: what the whole server costs the machine, read from /proc at each scrape.

A server is several processes, and a scrape is answered by any of its API servers: the figures of the one that
happens to answer would jump about. So they are summed over the supervising process and all its descendants.
CPU time includes children that have ended and been waited for, so it does not fall when a worker restarts.
Resident memory counts pages that processes share once per process: an upper bound.

Linux only; elsewhere there is no /proc and no process_* is exposed.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family

PROCESS_METRICS = (
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_virtual_memory_bytes",
    "process_open_fds",
    "process_start_time_seconds",
)
_PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessUse:
    """What one process uses. cpu_s includes its ended, waited-for children; start_s is since the epoch."""

    cpu_s: float
    resident_bytes: int
    virtual_bytes: int
    open_fds: int
    start_s: float


def process_families(root_pid: int) -> Iterator[Family]:
    """The families of the process tree under root_pid; none when /proc cannot be read."""
    root = read_use(root_pid)
    if root is None:
        return
    uses = [root, *filter(None, (read_use(pid) for pid in descendants(root_pid)))]
    yield CounterMetricFamily(
        "process_cpu_seconds_total",
        "User and system CPU time of all processes of the server.",
        value=sum(use.cpu_s for use in uses),
    )
    gauges: tuple[tuple[str, str, float], ...] = (
        (
            "process_resident_memory_bytes",
            "Resident memory of all processes of the server; pages they share are counted in each.",
            sum(use.resident_bytes for use in uses),
        ),
        (
            "process_virtual_memory_bytes",
            "Virtual memory of all processes of the server.",
            sum(use.virtual_bytes for use in uses),
        ),
        (
            "process_open_fds",
            "Open file descriptors of all processes of the server.",
            sum(use.open_fds for use in uses),
        ),
        ("process_start_time_seconds", "Start of the server, seconds since the epoch.", root.start_s),
    )
    for name, text, value in gauges:
        yield GaugeMetricFamily(name, text, value=value)


def descendants(pid: int) -> list[int]:
    """Every live descendant of a process."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        pids = children(waiting.pop())
        found += pids
        waiting += pids
    return found


def children(pid: int) -> list[int]:
    """Of a process, those that have ended and nobody has asked after among them."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # it ended while we looked
        for thread in _PROC.joinpath(str(pid), "task").iterdir():
            found += _of_thread(thread)
    return found


def _of_thread(thread: Path) -> list[int]:
    try:
        return [int(word) for word in (thread / "children").read_text().split()]
    except OSError:  # likewise
        return []


def read_use(pid: int) -> ProcessUse | None:
    """What a process uses now; None when it has ended or there is no /proc."""
    folder = _PROC / str(pid)
    try:
        # The command name, field 2, may hold spaces and brackets: the fields after it begin at the last ")".
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        pages = int((folder / "statm").read_text().split()[1])
        open_fds = len(os.listdir(folder / "fd"))
        boot_s = _boot_time_s()
    except OSError:
        return None
    # proc(5) numbers fields from 1 with state = 3, which is fields[0] here.
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    user, system, ended_user, ended_system = (int(fields[i]) for i in (11, 12, 13, 14))
    return ProcessUse(
        cpu_s=(user + system + ended_user + ended_system) / ticks_per_s,
        resident_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
        virtual_bytes=int(fields[20]),
        open_fds=open_fds,
        start_s=boot_s + int(fields[19]) / ticks_per_s,
    )


def _boot_time_s() -> float:
    for line in (_PROC / "stat").read_text().splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    raise OSError("/proc/stat has no btime")
