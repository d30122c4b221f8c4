"""Keeps the server's processes alive, and ends them in order. Runs in the parent process; owns its children.

    STARTING   workers load their models; the first that has serves
    SERVING    a process that dies is started again, and every API server is told what died
    GRACE      a signal came: readiness is off, everything is still served, so that load balancers can leave; each
               answer says that its connection closes
    CLOSING    nothing listens any more; API servers finish what they have; workers serve them to the end
    CLOSED     all children are gone

One thread: it sleeps until a child ends, a signal arrives, a message comes or a deadline is due; and a few times in
each run limit it looks whether every child answers (liveness.py).
Each child holds the reading end of a pipe whose only writing end is here: its lifeline, which tells it when
this process goes, even by kill -9.
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
from typing import Final, Protocol

from foldserve.service.host.processes import StopSignals
from foldserve.service.ipc.control import MESSAGE, Word
from foldserve.service.ipc.handles import Handle
from foldserve.service.ipc.scoreboard import MappedBoard
from foldserve.service.server.liveness import Liveness

_log = logging.getLogger("foldserve.supervisor")


RESTART_PAUSE_S: Final = 1.0
"""A child is started no sooner than this after its last start: a crash at the start must not spin. For one that cannot
be started, or keeps dying before it is of use (a worker that loads, an API server that takes no connections yet), it
doubles each time."""

LONGEST_PAUSE_S: Final = 30.0
"""Until there."""

FENCE_LOOK_S: Final = 0.005
"""How often it is seen whether a dead API server's arena is at rest: the one thing that is polled, and only then."""

LOAD_ATTEMPTS: Final = 3
"""A worker that dies while it loads may have met a moment's lack of memory. That often it may be its models: it is
still tried, but nobody waits for it any more."""

_HINTS: Final = {
    errno.EAGAIN: " (the limit on processes: ulimit -u, pids.max of the container)",
    errno.EMFILE: " (the limit on open files: ulimit -n)",
    errno.ENFILE: " (the machine's limit on open files: fs.file-max)",
}
"""What stands behind an error of the system."""

_WORKER_END_S: Final = 5.0
"""How long a worker may take to end once nothing is left to serve."""


class Phase(Enum):
    """Where the server is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    GRACE = "grace"
    CLOSING = "closing"
    CLOSED = "closed"


class Role(Enum):
    """What a child is."""

    WORKER = "worker"
    API_SERVER = "API server"


@dataclass(eq=False)
class Child:
    """A child process.

    lifeline: this side's end; closed here, the child ends itself.
    serial: the worker's number over all workers of all time; what it marks its slots with.
    """

    role: Role
    index: int
    serial: int
    process: BaseProcess
    lifeline: Handle
    started_s: float = field(default_factory=time.monotonic)
    ready: bool = False
    """A worker: it has loaded what it could. An API server: it has answered."""

    def __str__(self) -> str:
        return f"{self.role.value} {self.index} (pid {self.process.pid})"


class Helper(Protocol):
    """What serves the others and holds nothing of a request, a process that helps them most of all: all that is to be
    done is to start it again."""

    def fileno(self) -> int:
        """Readable when it has ended; maybe another descriptor after each renew()."""

    def renew(self) -> None:
        """Start it again, or see to what has ended.

        Raises: OSError when that cannot be at this moment; it is tried again then.
        """


StartChild = Callable[[Role, int, int, Handle], BaseProcess]
"""Start a child: its role, index, serial number and its end of its lifeline. Raises: OSError."""


class Supervisor:
    """The parent's event loop.

    Args:
        start: starts a child process.
        board: where draining is shown and epochs are kept.
        reports: the reading end of the pipe in which children write MESSAGEs.
        stop: readable, and counting, when a signal came.
        fence: called when an API server has died; what it returns tells whether its place may be filled again, for
            no worker can touch its arena any more.
        died: called for each child that ended on its own.
        cannot_load: called for a worker that died LOAD_ATTEMPTS times while loading, and at each time more.
        renew_turn: called with a model whose tickets nobody takes: whoever had the turn to read them may be stopped.
        run_limit_s: how long one run of a model may take; a worker that takes longer is ended, and so is any child that
            does not answer for so long.
        closing: called when CLOSING begins, before any child hears of it.
        grace_s, close_s: seconds that GRACE lasts, and that CLOSING may last before it is cut off.
    """

    def __init__(
        self,
        start: StartChild,
        board: MappedBoard,
        reports: Handle,
        stop: StopSignals,
        fence: Callable[[int], Callable[[], bool]],
        died: Callable[[Child], None],
        cannot_load: Callable[[Child], None],
        renew_turn: Callable[[int], None],
        closing: Callable[[], None],
        run_limit_s: float,
        grace_s: float,
        close_s: float,
    ) -> None:
        self.phase = Phase.STARTING
        self._start = start
        self._board = board
        self._reports = reports
        self._stop = stop
        self._fence = fence
        self._fences: dict[int, Callable[[], bool]] = {}
        self._run_limit_ns = int(run_limit_s * 1e9)
        self._renew_turn = renew_turn
        self._liveness: Liveness[Child] = Liveness(run_limit_s)
        self._look_at_s = time.monotonic() + self._liveness.every_s
        self._died = died
        self._cannot_load = cannot_load
        self._closing = closing
        self._grace_s = grace_s
        self._close_s = close_s
        self._deadline_s: float | None = None
        self._restarts: list[tuple[float, Role, int]] = []
        self._renewals: list[tuple[float, Helper, float]] = []
        """When a helper is tried again, and how long it waits after that, should it fail again."""
        self._children: dict[int, Child] = {}
        self._failed_starts: dict[tuple[Role, int], int] = {}
        self._serials = 0
        self._selector = selectors.DefaultSelector()
        self._selector.register(reports.fd, selectors.EVENT_READ, self._on_reports)
        self._selector.register(stop.fileno(), selectors.EVENT_READ, self._on_signal)

    # -- what the shell calls, in this order

    def start_workers(self, count: int) -> None:
        """Start the workers; they load while others start."""
        for index in range(count):
            self._try_to_launch(Role.WORKER, index)

    def wait_until_loaded(self) -> bool:
        """Wait until every worker is ready, or seems unable to be; False when a signal came first: wait() ends then."""
        while self.phase is Phase.STARTING and self._loading():
            self._turn()
        loaded = self.phase is Phase.STARTING
        if loaded:
            self.phase = Phase.SERVING
        return loaded

    def start_api_servers(self, count: int) -> None:
        """Start the API servers. They answer while models load: alive, and not ready."""
        for index in range(count):
            self._try_to_launch(Role.API_SERVER, index)

    def watch(self, helper: Helper) -> None:
        """Have a helper started again whenever it ends."""
        self._selector.register(helper.fileno(), selectors.EVENT_READ, lambda: self._renew(helper))

    def wait(self) -> None:
        """Supervise until the server is closed."""
        while self.phase is not Phase.CLOSED:
            self._turn()

    def end(self) -> None:
        """Kill whatever is left. Afterwards no child lives, and none is started."""
        for child in list(self._children.values()):
            child.process.kill()
            child.process.join()
            self._forget(child)
        self._restarts.clear()
        self._deadline_s = None
        self.phase = Phase.CLOSED

    def pids(self) -> set[int]:
        """Of the children that are waited for here."""
        return {child.process.pid for child in self._children.values() if child.process.pid}

    def close_in_child(self) -> None:
        """In a forked child: let go of the other children's lifelines, which end with the parent alone."""
        for child in self._children.values():
            child.lifeline.close()
        self._selector.close()

    # -- one turn of the loop

    def _turn(self) -> None:
        wakeups = [
            self._look_at_s,
            *(at for at, _, _ in self._restarts),
            *(at for at, _, _ in self._renewals),
        ]
        if self._deadline_s is not None:
            wakeups.append(self._deadline_s)
        for key, _ in self._selector.select(max(0.0, min(wakeups) - time.monotonic())):
            key.data()
        if time.monotonic() >= self._look_at_s:
            self._end_silent()
        if self._deadline_s is not None and time.monotonic() >= self._deadline_s:
            self._on_deadline()
        now = time.monotonic()
        due = [restart for restart in self._restarts if restart[0] <= now]
        self._restarts = [restart for restart in self._restarts if restart[0] > now]
        for _, role, index in due:
            if role is Role.API_SERVER and not self._at_rest(index):
                self._restarts.append((now + FENCE_LOOK_S, role, index))
                continue
            self._try_to_launch(role, index)
        self._renew_due(now)

    def _renew_due(self, now: float) -> None:
        due = [renewal for renewal in self._renewals if renewal[0] <= now]
        self._renewals = [renewal for renewal in self._renewals if renewal[0] > now]
        for _, helper, pause_s in due:
            self._try_to_renew(helper, pause_s)

    def _loading(self) -> bool:
        waiting = {child.index for child in self._of(Role.WORKER) if not child.ready}
        waiting |= {index for _, role, index in self._restarts if role is Role.WORKER}
        return any(self._failed_starts.get((Role.WORKER, index), 0) < LOAD_ATTEMPTS for index in waiting)

    def _at_rest(self, index: int) -> bool:
        """Whether nobody can touch a dead API server's arena any more."""
        passed = self._fences.get(index)
        if passed is None:
            return True
        if not passed():
            self._end_hanging()  # the one who would report it may be the one that died
            return False
        del self._fences[index]
        return True

    def _try_to_launch(self, role: Role, index: int) -> None:
        """Start a child, or plan to: a moment's lack of memory, descriptors or processes must not end what serves."""
        try:
            self._launch(role, index)
        except OSError as error:
            pause_s = self._pause_after_failure_s(role, index)
            hint = _HINTS.get(error.errno or 0, "")
            _log.error(
                "%s %d cannot be started: %s%s; again in %g s", role.value, index, error, hint, pause_s
            )
            self._restarts.append((time.monotonic() + pause_s, role, index))

    def _launch(self, role: Role, index: int) -> None:
        read_fd, write_fd = os.pipe()
        theirs, ours = Handle(read_fd), Handle(write_fd)
        self._serials += 1
        child = Child(role, index, self._serials, None, ours)  # type: ignore[arg-type]  # set below
        self._children[-self._serials] = child  # so that a fork started now closes this lifeline too
        try:
            child.process = self._start(role, index, self._serials, theirs)
        except OSError:
            ours.close()
            raise
        finally:
            del self._children[-self._serials]
            theirs.close()
        self._children[child.process.sentinel] = child
        self._selector.register(child.process.sentinel, selectors.EVENT_READ, lambda: self._on_end(child))

    def _of(self, role: Role) -> list[Child]:
        return [child for child in self._children.values() if child.role is role]

    def _forget(self, child: Child) -> None:
        self._selector.unregister(child.process.sentinel)
        del self._children[child.process.sentinel]
        child.lifeline.close()

    # -- what happens

    def _on_end(self, child: Child) -> None:
        if child not in self._children.values():
            return  # forgotten since select() told of it: in this same turn everything was ended
        child.process.join()
        self._forget(child)
        code = child.process.exitcode
        if child.role is Role.API_SERVER:
            child.ready = self._board.connections[child.index] > 0
        leaves = self.phase is Phase.CLOSING and child.role is Role.API_SERVER
        if not (leaves and code == 0):
            _log.error("%s ended with code %s", child, code)
            self._died(child)
        self._tell_of_death(child)
        if self.phase is Phase.CLOSING and not self._of(Role.API_SERVER):
            self._close_workers()
        elif not leaves:
            at_s = max(time.monotonic(), child.started_s + self._pause_s(child))
            self._restarts.append((at_s, child.role, child.index))

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
                self._cannot_load(child)
        return pause_s

    def _pause_after_failure_s(self, role: Role, index: int) -> float:
        failed = self._failed_starts[role, index] = self._failed_starts.get((role, index), 0) + 1
        return float(min(LONGEST_PAUSE_S, RESTART_PAUSE_S * 2 ** (failed - 1)))

    def _tell_of_death(self, child: Child) -> None:
        """Tell every API server; the next one in a dead one's place must find its arena at rest."""
        if child.role is Role.API_SERVER:
            self._board.epoch[child.index] += 1
            self._fences[child.index] = self._fence(child.index)
        else:
            self._tell_api_servers(MESSAGE.pack(Word.WORKER_DIED, child.serial))

    def _tell_api_servers(self, message: bytes) -> None:
        for server in self._of(Role.API_SERVER):
            with contextlib.suppress(BrokenPipeError):  # it has just died too; its end comes up next
                os.write(server.lifeline.fd, message)

    def _renew(self, helper: Helper) -> None:
        self._selector.unregister(helper.fileno())
        self._try_to_renew(helper, RESTART_PAUSE_S)

    def _try_to_renew(self, helper: Helper, pause_s: float) -> None:
        """Start a helper again, or plan to, as _try_to_launch()."""
        try:
            helper.renew()
        except OSError as error:
            hint = _HINTS.get(error.errno or 0, "")
            name = type(helper).__name__
            _log.error("%s cannot be started again: %s%s; again in %g s", name, error, hint, pause_s)
            then_s = min(2 * pause_s, LONGEST_PAUSE_S)
            self._renewals.append((time.monotonic() + pause_s, helper, then_s))
            return
        self.watch(helper)

    def _on_reports(self) -> None:
        for word, number in MESSAGE.iter_unpack(os.read(self._reports.fd, MESSAGE.size * 64)):
            if word == Word.WORKER_HANGS:
                self._end_hanging()
                continue
            if word == Word.MODEL_STALLS:
                self._renew_turn(number)
                continue
            for child in self._of(Role.WORKER):
                if child.index == number:
                    child.ready = True
                    self._failed_starts.pop((child.role, child.index), None)

    def _end_silent(self) -> None:
        """Ask every child that can answer; kill those that have not for too long."""
        now_s = time.monotonic()
        self._look_at_s = now_s + self._liveness.every_s
        for child in self._children.values():
            # What clients are served by may stop before it has reported, or answered, for the first time.
            child.ready = child.ready or self._serves(child)
        # A worker that loads has no time to answer, and an API server has said that it serves when it answers first.
        able = [child for child in self._children.values() if child.role is Role.API_SERVER or child.ready]
        for child in self._liveness.look(able, self._answered_ns, self._ask, int(now_s * 1e9)):
            if child.ready and child.process.is_alive():
                limit_s = self._run_limit_ns / 1e9
                _log.error("%s has not answered for more than %g s; it is ended", child, limit_s)
                child.process.kill()

    def _serves(self, child: Child) -> bool:
        if child.role is Role.WORKER:
            return self._board.serves_all(child.index)
        return self._board.connections[child.index] > 0

    def _ask(self, child: Child) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(child.lifeline.fd, MESSAGE.pack(Word.ARE_YOU_ALIVE, 0))

    def _answered_ns(self, child: Child) -> int:
        answered_ns = self._board.answered_ns(child.role is Role.WORKER, child.index)
        if child.role is Role.API_SERVER and answered_ns > child.started_s * 1e9:
            child.ready = True
        return answered_ns

    def _end_hanging(self) -> None:
        """Kill the workers whose run takes too long, by the board: a report may be older than the present worker."""
        hanging = self._board.hanging(time.monotonic_ns() - self._run_limit_ns)
        for child in self._of(Role.WORKER):
            if child.index in hanging and child.process.is_alive():
                limit_s = self._run_limit_ns / 1e9
                _log.error("%s has been busy with one step for more than %g s; it is ended", child, limit_s)
                child.process.kill()

    def _on_signal(self) -> None:
        self._stop.clear()
        # While workers load, others may serve already, and a worker serves before its report of it is read.
        nothing_taken = self.phase is Phase.STARTING and not self._board.requests_are_taken()
        if nothing_taken or self._stop.count > 1:
            self.end()
            return
        _log.info("stopping: not ready any more, serving on for %g s", self._grace_s)
        self.phase = Phase.GRACE
        self._board.draining[0] = 1
        self._deadline_s = time.monotonic() + self._grace_s

    def _on_deadline(self) -> None:
        if self.phase is Phase.GRACE:
            self.phase = Phase.CLOSING
            self._deadline_s = time.monotonic() + self._close_s
            self._restarts = [restart for restart in self._restarts if restart[1] is Role.WORKER]
            self._closing()
            self._tell_api_servers(MESSAGE.pack(Word.STOP, 0))
            if not self._of(Role.API_SERVER):
                self._close_workers()
        else:
            _log.error("still not closed after %g s: ending what is left", self._close_s)
            self.end()

    def _close_workers(self) -> None:
        """Nothing is left to serve: workers that see their lifeline close end by themselves."""
        workers = self._of(Role.WORKER)
        for child in workers:
            self._forget(child)
            if not child.ready:  # it looks at its lifeline only when it has loaded
                child.process.kill()
        until_s = time.monotonic() + _WORKER_END_S
        for child in workers:
            child.process.join(max(0.0, until_s - time.monotonic()))
            if child.process.is_alive():
                child.process.kill()
                child.process.join()
        self.end()
