"""CPU time of a process with all its descendants and their threads, in nanoseconds, from /proc. Linux only.

utime and stime count ticks of 10 ms, which says little about a server that sleeps in between; schedstat has the
scheduler's own nanoseconds, per thread. A thread that ends between two samples is lost: no contender starts any
per request.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

Sample = dict[tuple[int, int], int]
"""(process, thread) -> nanoseconds on a CPU."""


def adopt_orphans() -> None:
    """Descendants whose parent ends become this process's children: a server that goes into the background counts."""
    if sys.platform != "linux":
        raise SystemExit("benchmarks count CPU time in /proc: run them on Linux")
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def descendants(pid: int) -> list[int]:
    """All processes below `pid`, without itself."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            # The name, in brackets, may hold anything; state and parent follow it.
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children[parent].append(int(stat.parent.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        mine = children[waiting.pop()]
        found += mine
        waiting += mine
    return found


def any_lives(pids: list[int]) -> bool:
    """Whether any of these processes is there and has not ended: those that nobody has waited for have."""
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                return True
    return False


def sample(pids: list[int]) -> Sample:
    """What each thread of these processes has used so far."""
    used: Sample = {}
    for pid in pids:
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                used[pid, int(path.parent.name)] = int(path.read_text().split()[0])
    return used


def used_ns(before: Sample, after: Sample) -> int:
    """Nanoseconds between two samples; of a new thread, all it has used."""
    return sum(ns - before.get(thread, 0) for thread, ns in after.items())


def machine_busy_s() -> float:
    """CPU seconds of everything that runs on this machine, since it was started."""
    user, nice, system = Path("/proc/stat").read_text().split()[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def end(pids: list[int], patience_s: float = 10.0) -> None:
    """Ask these processes, children or adopted, to end; after `patience_s` kill them."""
    for number, limit_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 5.0)):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        until_s = time.monotonic() + limit_s
        while pids and time.monotonic() < until_s:
            pids = [pid for pid in pids if _lives(pid)]
            time.sleep(0.02)  # between two looks


def _lives(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return False
    return Path(f"/proc/{pid}").exists()
