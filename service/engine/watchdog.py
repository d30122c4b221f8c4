"""Watches the requests in flight of one API server: deadlines, runs that take too long, tickets that no worker takes.

One timer, and none while nothing is in flight: an idle server sleeps.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

from foldserve.service.engine.request import PendingRequest
from foldserve.service.ipc.scoreboard import MappedScoreboard
from foldserve.service.ipc.slots.slot_state import State

_EVERY_S: Final = 0.25
"""How often it checks while requests are in flight, if no deadline is nearer."""
_STEP_S: Final = 0.005
"""Deadlines that are nearer to each other than this are checked together: each check goes over all requests."""
_STALL_NS: Final = 1_000_000_000
"""Tickets that have waited so long, while no instance took any of their model, may wait for a reader that is stopped.
A wrong guess costs nothing: the turn to read goes to another instance (ipc/ticket_queue.py)."""
_LATE_NS: Final = 500_000_000
"""A check that comes so late says nothing about the workers: this process was stopped itself."""
_NEVER: Final = 1 << 63
"""Later than any clock."""


class Watchdog:
    """Owned by the event loop thread.

    Args:
        in_flight: the requests to watch, by slot.
        run_limit_s: how long one run of a model may take.
        on_run_timeout: called with the index of a worker whose run takes longer, at every check until it ends.
        on_stall: called with the row of a model whose tickets no instance takes, at every check until one does.
        on_deadline: called with each request whose deadline has passed, once.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        in_flight: Mapping[int, PendingRequest],
        board: MappedScoreboard,
        run_limit_s: float,
        on_run_timeout: Callable[[int], None],
        on_stall: Callable[[int], None],
        on_deadline: Callable[[PendingRequest], None],
    ) -> None:
        self.next_ns = _NEVER
        """CLOCK_MONOTONIC of the next check."""
        self._loop = loop
        self._in_flight = in_flight
        self._board = board
        self._run_limit_ns = int(run_limit_s * 1e9)
        self._on_run_timeout = on_run_timeout
        self._on_stall = on_stall
        self._on_deadline = on_deadline
        self._timer: asyncio.TimerHandle | None = None

    def schedule(self, deadline_ns: int, now_ns: int) -> None:
        """Check no later than at this deadline; to be called when it is before next_ns."""
        if self._timer is not None:
            self._timer.cancel()
        when_ns = min(deadline_ns, now_ns + int(_EVERY_S * 1e9))
        wait_s = max((when_ns - now_ns) / 1e9, 0.0) + _STEP_S
        self.next_ns = now_ns + int(wait_s * 1e9)
        self._timer = self._loop.call_later(wait_s, self.check)

    def check(self) -> None:
        """Report passed deadlines, runs that take too long and stalled queues; check again while any is in flight."""
        planned_ns = self.next_ns
        self.expire()
        self._timer, self.next_ns = None, _NEVER
        if not self._in_flight:
            return
        now_ns = time.monotonic_ns()
        # So late: this process was stopped, and perhaps the whole machine. The workers get another moment.
        if now_ns - planned_ns < _LATE_NS:
            for worker in self._board.overdue_workers(now_ns - self._run_limit_ns):
                self._on_run_timeout(worker)
        for row in self._stalled(now_ns):
            self._on_stall(row)
        waited_for = (r.deadline_ns for r in self._in_flight.values() if not r.cancelled)
        self.schedule(min(waited_for, default=_NEVER), now_ns)

    def _stalled(self, now_ns: int) -> list[int]:
        """The rows of the models of which a request has waited for _STALL_NS, while no instance took any ticket of
        them."""
        since_ns = now_ns - _STALL_NS
        waiting = {
            r.queue.row
            for r in self._in_flight.values()
            if r.queued_ns < since_ns and r.allocation is not None and r.allocation.state == State.QUEUED
        }
        workers = range(self._board.dimensions.workers)
        return [row for row in waiting if all(self._board.taken_ns[w, row] < since_ns for w in workers)]

    def expire(self) -> None:
        """Report the requests whose deadline has passed."""
        now_ns = time.monotonic_ns()
        expired = [r for r in self._in_flight.values() if r.deadline_ns <= now_ns and not r.cancelled]
        for request in expired:
            self._on_deadline(request)
