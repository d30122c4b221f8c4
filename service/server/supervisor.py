"""Keeps the server's processes alive, and ends them in order. Runs in the parent process; owns its children.

    STARTING   workers load their models; the first that has serves
    SERVING    a process that dies is started again, and every API server is informed
    GRACE      a signal came: readiness is off, everything is still served, so that load balancers can leave; each
               answer says that its connection closes
    CLOSING    nothing listens any more; API servers finish what they have; workers serve them to the end
    CLOSED     all children are gone

One thread: it sleeps until a child ends, a signal arrives, a message comes or a deadline is due; and a few times in
each run limit it looks whether every child answers (liveness.py).
How a child is started, and again where it ended: children.py.
"""

import logging
import os
import selectors
import time
from collections.abc import Callable
from enum import Enum
from typing import Final

from foldserve.service.host.processes import StopSignals
from foldserve.service.ipc.control import CONTROL_STRUCT, ControlMessage
from foldserve.service.ipc.handles import Handle
from foldserve.service.ipc.model_table import LOADED, ModelKey
from foldserve.service.ipc.scoreboard import MappedScoreboard
from foldserve.service.repository.model_version import ModelVersion
from foldserve.service.server.children import Child, Children, Role, StartChild
from foldserve.service.server.helpers import Helper, Helpers
from foldserve.service.server.liveness import Liveness
from foldserve.service.server.model_control import ModelControl

_log = logging.getLogger("foldserve.supervisor")


_WORKER_END_S: Final = 5.0
"""How long a worker may take to end once nothing is left to serve."""


class Phase(Enum):
    """Where the server is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    GRACE = "grace"
    CLOSING = "closing"
    CLOSED = "closed"


class Supervisor:
    """The parent's event loop.

    Args:
        start: starts a child process.
        board: where draining is shown and epochs are kept.
        models: the model table's hand: what is loaded, and what is unloaded.
        reports: the reading end of the pipe in which children write messages (ipc/control.py).
        stop: readable, and counting, when a signal came.
        fence: called when an API server has died; what it returns says whether another may be started at its index, for
            no worker can touch its arena any more.
        on_child_exit: called for each child that ended on its own.
        on_load_failed: see Children.
        run_limit_s: how long one run of a model may take; a worker that takes longer is ended, and so is any child that
            does not answer for so long.
        closing: called when CLOSING begins, before any child hears of it.
        grace_s, close_s: seconds that GRACE lasts, and that CLOSING may last before it is cut off.
    """

    def __init__(
        self,
        start: StartChild,
        board: MappedScoreboard,
        models: ModelControl,
        reports: Handle,
        stop: StopSignals,
        fence: Callable[[int], Callable[[], bool]],
        on_child_exit: Callable[[Child], None],
        on_load_failed: Callable[[Child], None],
        closing: Callable[[], None],
        run_limit_s: float,
        grace_s: float,
        close_s: float,
    ) -> None:
        self.phase = Phase.STARTING
        self._board = board
        self._models = models
        self._reports = reports
        self._stop = stop
        self._fence = fence
        self._fences: dict[int, Callable[[], bool]] = {}
        self._run_limit_ns = int(run_limit_s * 1e9)
        self._liveness: Liveness[Child] = Liveness(run_limit_s)
        self._check_at_s = time.monotonic() + self._liveness.every_s
        self._on_child_exit = on_child_exit
        self._closing = closing
        self._grace_s = grace_s
        self._close_s = close_s
        self._deadline_s: float | None = None
        self._selector = selectors.DefaultSelector()
        self._helpers = Helpers(self._selector)
        self._children = Children(start, self._selector, self._on_end, on_load_failed, self._at_rest)
        self._selector.register(reports.fd, selectors.EVENT_READ, self._on_reports)
        self._selector.register(stop.fileno(), selectors.EVENT_READ, self._on_signal)

    def __repr__(self) -> str:
        children = ", ".join(
            f"{child}{'' if child.ready else ' not ready'}" for child in self._children.all()
        )
        return f"<Supervisor {self.phase.name}: {children or 'no children'}; {self._models.table}>"

    # -- what the server calls, in this order

    def start_workers(self, count: int) -> None:
        """Start the workers; they load while others start."""
        for index in range(count):
            self._children.launch(Role.WORKER, index)

    def wait_until_loaded(self) -> bool:
        """Wait until every worker is ready, or seems unable to be; False when a signal came first: wait() ends then."""
        while self.phase is Phase.STARTING and self._children.loading():
            self._turn()
        self._check_models()
        loaded = self.phase is Phase.STARTING
        if loaded:
            self.phase = Phase.SERVING
        return loaded

    def start_api_servers(self, count: int) -> None:
        """Start the API servers. They answer while models load: alive, and not ready."""
        for index in range(count):
            self._children.launch(Role.API_SERVER, index)

    def tell_api_servers(self, message: ControlMessage) -> None:
        """Send a message to every API server; one that starts later finds for itself what it tells of."""
        self._children.send(Role.API_SERVER, CONTROL_STRUCT.pack(message, 0))

    def watch(self, helper: Helper) -> None:
        """Have a helper started again whenever it ends."""
        self._helpers.watch(helper)

    def wait(self) -> None:
        """Supervise until the server is closed."""
        while self.phase is not Phase.CLOSED:
            self._turn()

    def end(self) -> None:
        """Kill whatever is left. Afterwards no child lives, and none is started."""
        self._children.kill_all()
        self._deadline_s = None
        self.phase = Phase.CLOSED

    def pids(self) -> set[int]:
        """Of the children that are waited for here."""
        return {child.process.pid for child in self._children.all() if child.process.pid}

    def close_in_child(self) -> None:
        """In a forked child: let go of the other children's lifelines, which end with the parent alone."""
        self._children.close_in_child()
        self._selector.close()

    # -- one turn of the loop

    def _turn(self) -> None:
        wakeups = [
            self._check_at_s,
            *self._children.due_s(),
            *self._helpers.due_s(),
        ]
        if self._deadline_s is not None:
            wakeups.append(self._deadline_s)
        for key, _ in self._selector.select(max(0.0, min(wakeups) - time.monotonic())):
            key.data()
        if time.monotonic() >= self._check_at_s:
            self._end_silent()
        if self._deadline_s is not None and time.monotonic() >= self._deadline_s:
            self._on_deadline()
        now = time.monotonic()
        self._children.launch_due(now)
        self._helpers.renew_due(now)

    def _at_rest(self, index: int) -> bool:
        """Whether nobody can touch a dead API server's arena any more."""
        passed = self._fences.get(index)
        if passed is None:
            return True
        if not passed():
            self._on_run_timeout()  # the one who would report it may be the one that died
            return False
        del self._fences[index]
        return True

    # -- what happens

    def _on_end(self, child: Child) -> None:
        code = child.process.exitcode
        if child.role is Role.API_SERVER:
            child.ready = self._board.connections[child.index] > 0
        leaves = self.phase is Phase.CLOSING and child.role is Role.API_SERVER
        if not (leaves and code == 0):
            _log.error("%s ended with code %s", child, code)
            self._on_child_exit(child)
        self._notify_exit(child)
        if self.phase is Phase.CLOSING and not self._children.of(Role.API_SERVER):
            self._close_workers()
        elif not leaves:
            self._children.launch_again(child)

    def _notify_exit(self, child: Child) -> None:
        """Tell every API server; the next one in a dead one's place must find its arena at rest."""
        if child.role is Role.API_SERVER:
            self._board.epoch[child.index] += 1
            self._fences[child.index] = self._fence(child.index)
        else:
            self._children.send(
                Role.API_SERVER, CONTROL_STRUCT.pack(ControlMessage.WORKER_DIED, child.incarnation)
            )
        self._check_models()  # what it held is held no longer

    # -- models

    def load_model(self, version: ModelVersion) -> ModelKey:
        """Have every process load a version, or take requests for it. Raises: what ModelControl.add raises."""
        key = self._models.add(version)
        self._announce(key.row)
        return key

    def unload_model(self, key: ModelKey) -> None:
        """Have every process finish with a version; its row is free some time later."""
        self._models.remove(key)
        self._announce(key.row)
        self._check_models()

    def _announce(self, row: int) -> None:
        message = CONTROL_STRUCT.pack(ControlMessage.MODEL_CHANGED, row)
        for role in Role:
            self._children.send(role, message)

    def _check_models(self) -> None:
        workers = {child.index for child in self._children.of(Role.WORKER)}
        api_servers = {child.index for child in self._children.of(Role.API_SERVER)}
        for row in self._models.check(workers, api_servers):
            self._announce(row)

    # -- what children say

    def _on_reports(self) -> None:
        data = os.read(self._reports.fd, CONTROL_STRUCT.size * 64)
        for word, number in CONTROL_STRUCT.iter_unpack(data):
            if word == ControlMessage.RUN_TIMEOUT:
                self._on_run_timeout()
            elif word == ControlMessage.QUEUE_STALLED:
                self._models.renew_turn(number)
            elif word == ControlMessage.WORKER_READY:
                for child in self._children.of(Role.WORKER):
                    if child.index == number:
                        self._children.set_ready(child)
        self._check_models()

    def _end_silent(self) -> None:
        """Ask every child that can answer; kill those that have not for too long."""
        now_s = time.monotonic()
        self._check_at_s = now_s + self._liveness.every_s
        self._check_models()
        for child in self._children.all():
            # What clients are served by may stop before it has reported, or answered, for the first time.
            child.ready = child.ready or self._serves(child)
        # A worker that loads has no time to answer, and an API server has said that it serves when it answers first.
        able = [child for child in self._children.all() if child.role is Role.API_SERVER or child.ready]
        for child in self._liveness.check(able, self._answered_ns, self._ask, int(now_s * 1e9)):
            if child.ready and child.process.is_alive():
                limit_s = self._run_limit_ns / 1e9
                _log.error("%s has not answered for more than %g s; it is ended", child, limit_s)
                child.process.kill()

    def _serves(self, child: Child) -> bool:
        if child.role is Role.WORKER:
            rows = (key.row for key in self._models.table.find_all(LOADED))
            return self._board.serves(child.index, rows)
        return self._board.connections[child.index] > 0

    def _ask(self, child: Child) -> None:
        child.send(CONTROL_STRUCT.pack(ControlMessage.ARE_YOU_ALIVE, 0))

    def _answered_ns(self, child: Child) -> int:
        answered_ns = self._board.answered_ns(child.role is Role.WORKER, child.index)
        if child.role is Role.API_SERVER and answered_ns > child.started_s * 1e9:
            child.ready = True
        return answered_ns

    def _on_run_timeout(self) -> None:
        """Kill the workers whose run takes too long, by the scoreboard: a report may be of an earlier worker."""
        hanging = self._board.overdue_workers(time.monotonic_ns() - self._run_limit_ns)
        for child in self._children.of(Role.WORKER):
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
            self._children.launch_no_more(Role.API_SERVER)
            self._closing()
            self._children.send(Role.API_SERVER, CONTROL_STRUCT.pack(ControlMessage.STOP, 0))
            if not self._children.of(Role.API_SERVER):
                self._close_workers()
        else:
            _log.error("still not closed after %g s: ending what is left", self._close_s)
            self.end()

    def _close_workers(self) -> None:
        """Nothing is left to serve: workers that see their lifeline close end by themselves."""
        workers = self._children.of(Role.WORKER)
        for child in workers:
            self._children.forget(child)
            if not child.ready:  # it looks at its lifeline only when it has loaded
                child.process.kill()
        until_s = time.monotonic() + _WORKER_END_S
        for child in workers:
            child.process.join(max(0.0, until_s - time.monotonic()))
            if child.process.is_alive():
                child.process.kill()
                child.process.join()
        self.end()
