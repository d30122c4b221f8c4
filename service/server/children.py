"""The children of the supervisor: how they are started, again where they ended, and after which pause.

Each child holds the reading end of a pipe whose only writing end is here: its lifeline, which tells it when
this process goes, even by kill -9. What a child's end means to others is decided by the supervisor.
"""

import contextlib
import errno
import logging
import os
import selectors
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from multiprocessing.process import BaseProcess
from typing import Final

from foldserve.service.ipc.handles import Handle

_log = logging.getLogger("foldserve.supervisor")


RESTART_PAUSE_S: Final = 1.0
"""A child is started no sooner than this after its last start: a crash at the start must not spin. For one that cannot
be started, or keeps dying before it is of use (a worker that loads, an API server that takes no connections yet), it
doubles each time."""

LONGEST_PAUSE_S: Final = 30.0
"""Until there."""

FENCE_CHECK_S: Final = 0.005
"""How often it is seen whether a dead API server's arena is at rest: the one thing that is polled, and only then."""

LOAD_ATTEMPTS: Final = 3
"""A worker that dies while it loads may have met a moment's lack of memory. That often it may be its models: it is
still tried, but nobody waits for it any more."""

HINTS: Final = {
    errno.EAGAIN: " (the limit on processes: ulimit -u, pids.max of the container)",
    errno.EMFILE: " (the limit on open files: ulimit -n)",
    errno.ENFILE: " (the machine's limit on open files: fs.file-max)",
}
"""What is behind an error of the system."""


class Role(Enum):
    """What a child is."""

    WORKER = "worker"
    API_SERVER = "API server"


@dataclass(eq=False)
class Child:
    """A child process.

    lifeline: this side's end; closed here, the child ends itself.
    incarnation: the worker's number over all workers of all time; what it marks its slots with.
    """

    role: Role
    index: int
    incarnation: int
    process: BaseProcess
    lifeline: Handle
    started_s: float = field(default_factory=time.monotonic)
    ready: bool = False
    """A worker: it has loaded what it could. An API server: it has answered."""

    def send(self, message: bytes) -> None:
        """Write to it."""
        with contextlib.suppress(BrokenPipeError):  # it has just died too; its end comes up next
            os.write(self.lifeline.fd, message)

    def __str__(self) -> str:
        return f"{self.role.value} {self.index} (pid {self.process.pid})"


StartChild = Callable[[Role, int, int, Handle], BaseProcess]
"""Start a child: its role, index, incarnation number and its end of its lifeline. Raises: OSError."""


class Children:
    """Used by the supervisor's thread alone.

    Args:
        start: starts a child process.
        selector: learns of each child's end.
        on_exit: called with a child that ended.
        on_load_failed: called for a worker that died LOAD_ATTEMPTS times while loading, and at each time more.
        may_start: whether an API server may be started at this index now; asked again after FENCE_CHECK_S if not.
    """

    def __init__(
        self,
        start: StartChild,
        selector: selectors.BaseSelector,
        on_exit: Callable[[Child], None],
        on_load_failed: Callable[[Child], None],
        may_start: Callable[[int], bool],
    ) -> None:
        self._start = start
        self._selector = selector
        self._on_exit = on_exit
        self._on_load_failed = on_load_failed
        self._may_start = may_start
        self._restarts: list[tuple[float, Role, int]] = []
        self._living: dict[int, Child] = {}
        self._failed_starts: dict[tuple[Role, int], int] = {}
        self._incarnations = 0

    # -- who there is

    def all(self) -> list[Child]:
        """Those that live, or ended and nobody has looked yet."""
        return list(self._living.values())

    def of(self, role: Role) -> list[Child]:
        """Of one role."""
        return [child for child in self._living.values() if child.role is role]

    def send(self, role: Role, message: bytes) -> None:
        """Write to each child of a role."""
        for child in self.of(role):
            child.send(message)

    def loading(self) -> bool:
        """Whether a worker is not ready, and does not seem unable to be."""
        waiting = {child.index for child in self.of(Role.WORKER) if not child.ready}
        waiting |= {index for _, role, index in self._restarts if role is Role.WORKER}
        return any(self._failed_starts.get((Role.WORKER, index), 0) < LOAD_ATTEMPTS for index in waiting)

    def set_ready(self, child: Child) -> None:
        """It has said that it is of use."""
        child.ready = True
        self._failed_starts.pop((child.role, child.index), None)

    # -- starting

    def launch(self, role: Role, index: int) -> None:
        """Start a child, or plan to: a moment's lack of memory, descriptors or processes must not end what serves."""
        try:
            self._launch(role, index)
        except OSError as error:
            pause_s = self._pause_after_failure_s(role, index)
            hint = HINTS.get(error.errno or 0, "")
            _log.error(
                "%s %d cannot be started: %s%s; again in %g s", role.value, index, error, hint, pause_s
            )
            self._restarts.append((time.monotonic() + pause_s, role, index))

    def launch_again(self, child: Child) -> None:
        """Plan the next in the place of one that ended."""
        at_s = max(time.monotonic(), child.started_s + self._pause_s(child))
        self._restarts.append((at_s, child.role, child.index))

    def launch_no_more(self, role: Role) -> None:
        """Forget the plans for children of a role."""
        self._restarts = [restart for restart in self._restarts if restart[1] is not role]

    def due_s(self) -> list[float]:
        """When a child is to be started, by time.monotonic()."""
        return [at_s for at_s, _, _ in self._restarts]

    def launch_due(self, now: float) -> None:
        """Start whoever is due."""
        due = [restart for restart in self._restarts if restart[0] <= now]
        self._restarts = [restart for restart in self._restarts if restart[0] > now]
        for _, role, index in due:
            if role is Role.API_SERVER and not self._may_start(index):
                self._restarts.append((now + FENCE_CHECK_S, role, index))
                continue
            self.launch(role, index)

    def _launch(self, role: Role, index: int) -> None:
        read_fd, write_fd = os.pipe()
        theirs, ours = Handle(read_fd), Handle(write_fd)
        self._incarnations += 1
        child = Child(role, index, self._incarnations, None, ours)  # type: ignore[arg-type]  # set below
        self._living[-self._incarnations] = child  # so that a fork started now closes this lifeline too
        try:
            child.process = self._start(role, index, self._incarnations, theirs)
        except OSError:
            ours.close()
            raise
        finally:
            del self._living[-self._incarnations]
            theirs.close()
        self._living[child.process.sentinel] = child
        self._selector.register(child.process.sentinel, selectors.EVENT_READ, lambda: self._on_end(child))

    # -- ending

    def forget(self, child: Child) -> None:
        """Close a child's lifeline, and look after it no more."""
        self._selector.unregister(child.process.sentinel)
        del self._living[child.process.sentinel]
        child.lifeline.close()

    def kill_all(self) -> None:
        """End every child at once, and start none."""
        for child in self.all():
            child.process.kill()
            child.process.join()
            self.forget(child)
        self._restarts.clear()

    def close_in_child(self) -> None:
        """In a forked child: let go of the other children's lifelines, which end with the parent alone."""
        for child in self._living.values():
            child.lifeline.close()

    def _on_end(self, child: Child) -> None:
        if child not in self._living.values():
            return  # forgotten since select() told of it: in this same turn everything was ended
        child.process.join()
        self.forget(child)
        self._on_exit(child)

    def _pause_s(self, child: Child) -> float:
        """Seconds from a child's start to the next in its place."""
        if child.ready:
            self._failed_starts.pop((child.role, child.index), None)
            return RESTART_PAUSE_S
        pause_s = self._pause_after_failure_s(child.role, child.index)
        failed = self._failed_starts[child.role, child.index]
        if failed >= LOAD_ATTEMPTS:
            loading = child.role is Role.WORKER
            before = "while loading" if loading else "before it took connections"
            _log.error(
                "%s died %s, like %d before it; the next is tried after %g s",
                child,
                before,
                failed - 1,
                pause_s,
            )
            if loading:
                self._on_load_failed(child)
        return pause_s

    def _pause_after_failure_s(self, role: Role, index: int) -> float:
        failed = self._failed_starts[role, index] = self._failed_starts.get((role, index), 0) + 1
        return float(min(LONGEST_PAUSE_S, RESTART_PAUSE_S * 2 ** (failed - 1)))
