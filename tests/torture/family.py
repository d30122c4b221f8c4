"""The processes of one server over time: which have ended, and whether anybody had killed them."""

import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import Final

from tests.e2e.server_process import ServerProcess, alive
from tests.torture.counts import Counts

_LOOK_S: Final = 0.1
_PAGE_MIB: Final = os.sysconf("SC_PAGE_SIZE") / 2**20


class Family:
    """`with Family(server, counts):` watches from a thread; every process that is killed is killed through it.

    A process that ends is one whose death nobody caused, unless it or one that it came from was killed here.
    """

    def __init__(self, server: ServerProcess, counts: Counts) -> None:
        self.server = server
        self._counts = counts
        self._parents: dict[int, int] = {}
        self._words: dict[int, str] = {}
        self._killed: set[int] = set()
        self._uncaused: list[int] = []
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Family":
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.look()
        for pid in self._uncaused:
            said = [line for line in self.server.output.splitlines() if f"pid {pid})" in line]
            self._counts.examples["uncaused_deaths"] += said[-1:]

    @property
    def seen(self) -> list[int]:
        """Every process that it has had."""
        return [self.server.process.pid, *self._parents]

    def kill(self, pid: int) -> None:
        """SIGKILL; this death and those of its children are caused."""
        self.excuse(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self._counts.kills += 1

    def excuse(self, pid: int) -> None:
        """Something is done to this process for which it may be ended: then it was caused."""
        with self._lock:
            self._killed.add(pid)

    def look(self) -> None:
        """Count who has ended since the last look."""
        with self._lock:
            now = alive(self.server.processes())
            for pid in now:
                self._counts.peak_mib = max(self._counts.peak_mib, _resident_mib(pid))
                if pid not in self._words:
                    self._parents[pid], self._words[pid] = _parent(pid), command_line(pid)[-120:]
            for pid in self._words.keys() - set(now):
                words = self._words.pop(pid)
                if not self._was_caused(pid):
                    self._uncaused.append(pid)
                    self._counts.add("uncaused_deaths", f"process {pid} ({words})")

    def _was_caused(self, pid: int) -> bool:
        while pid not in self._killed and pid in self._parents:
            pid = self._parents[pid]
        return pid in self._killed

    def _watch(self) -> None:
        while not self._done.wait(_LOOK_S):
            self.look()


def _resident_mib(pid: int) -> float:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_MIB
    return 0.0


def command_line(pid: int) -> str:
    """Empty when the process has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0
