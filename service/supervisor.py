"""Keeps a server's processes alive, and ends them in order: the main thread of the supervising process.

    watch()  until a signal: workers that die are started again; a worker that found its model unfit is not
    drain()  ready -> 503 at once, serve on for the grace, then API servers finish what they have
    end()    whatever is left is killed: nobody waits for an answer any more

A single thread, because the supervisor forks, and a fork copies only the thread that calls. It sleeps until a
process ends or a signal comes; only while models load does it look for reports. Does not know how processes
are made (litserve_shell.py hands that in), nor what they do.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from service.litserve_engine import DRAIN, REPORT_CHANGED, STOP, WORKER_DIED, notice
from service.metrics import Metrics
from service.processes import StopSignals
from service.worker_report import WorkerReport, read_report, remove_report, write_report

log = logging.getLogger(__name__)

API_SERVER_DRAIN_S = 30
"""How long an API server may take to finish its requests once it is told to stop."""

_KILL_AFTER_S = API_SERVER_DRAIN_S + 5
_REPORT_POLL_S = 0.05
_RESTART_DELAYS_S = (1.0, 1.0, 2.0, 5.0, 10.0, 30.0)
"""By how often a worker died in a row; a worker that lived for _STABLE_S starts at the first again.

Never at once: the queue may still give a request to the dead worker's last read, which ends within a second
(litserve_shell.py); until then a model without another worker takes no requests."""
_STABLE_S = 60.0
# A crash while loading may be chance (memory was short for a moment); that often it is the model.
_LOAD_ATTEMPTS = 3


@dataclass
class Worker:
    """One worker. Owned by the supervisor.

    label: for the log. writer: its metrics row and the name of its report. start: makes its process.
    process: None between a death and the restart. reported: what became of loading is known.
    served: the model was ready in it once. unserved: the model was found unfit, so it stays away.
    """

    label: str
    writer: str
    device: str
    start: Callable[[], BaseProcess]
    process: BaseProcess | None
    started_s: float
    reported: bool = False
    served: bool = False
    unserved: bool = False
    deaths: int = 0
    restart_at_s: float | None = None


class Supervisor:
    """The processes of one running server."""

    def __init__(
        self,
        workers: Sequence[Worker],
        others: Sequence[BaseProcess],
        api_servers: Sequence[BaseProcess],
        api_pipes: Sequence[int],
        metrics: Metrics,
        runtime: Path,
    ) -> None:
        """
        Args:
            others: processes without which the server cannot go on, beside the API servers.
            api_pipes: where each API server reads notices; the write ends.
            runtime: the folder of the workers' reports.
        """
        self._workers = workers
        self._others = others
        self._api_servers = api_servers
        self._api_pipes = api_pipes
        self._metrics = metrics
        self._runtime = runtime

    def watch(self, stop: StopSignals, on_loaded: Callable[[], bool]) -> int:
        """Watch all processes until a signal comes or the server cannot go on.

        Args:
            on_loaded: called once, when every worker has reported; False ends the server.
        Returns: the exit code.
        """
        loaded = False
        while not stop.count:
            if not loaded and all(worker.reported for worker in self._workers):
                loaded = True
                if not on_loaded():
                    return 1
            vital = (*self._others, *self._api_servers)
            running = [worker.process for worker in self._workers if worker.process is not None]
            watched: list[Any] = [stop.fileno(), *(process.sentinel for process in (*vital, *running))]
            connection.wait(watched, self._next_look_s())
            for process in vital:
                if not process.is_alive() and not stop.count:
                    log.error("%s died (exit code %s); the server ends", process.name, process.exitcode)
                    return 1
            for worker in self._workers:
                self._look_after(worker)
        return 0

    def drain(self, stop: StopSignals, grace_s: float) -> None:
        """Let API servers finish their requests; a further signal cuts it short."""
        self._tell(notice(DRAIN))
        log.info("stopping: not ready any more, serving on for %g s", grace_s)
        stop.clear()
        connection.wait([stop.fileno()], grace_s)
        self._tell(notice(STOP))
        until_s = time.monotonic() + _KILL_AFTER_S
        while alive := [process.sentinel for process in self._api_servers if process.is_alive()]:
            if stop.count > 1 or time.monotonic() > until_s:
                log.warning("API servers still at work are ended")
                return
            connection.wait([stop.fileno(), *alive], max(0.0, until_s - time.monotonic()))

    def end(self) -> None:
        """Kill the API servers and workers that are left, and wait for them."""
        running = [worker.process for worker in self._workers if worker.process is not None]
        for process in (*self._api_servers, *running):
            process.kill()
        for process in (*self._api_servers, *running):
            process.join()

    def _next_look_s(self) -> float | None:
        """Until something is due: a report, a restart. None = nothing but events."""
        if any(not worker.reported for worker in self._workers):
            return _REPORT_POLL_S
        due = [worker.restart_at_s for worker in self._workers if worker.restart_at_s is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _look_after(self, worker: Worker) -> None:
        now_s = time.monotonic()
        ended = worker.process is not None and not worker.process.is_alive()
        # After is_alive(): what a worker reports before it ends is then there to be read.
        if not worker.reported and (report := read_report(self._runtime, worker.writer)) is not None:
            self._note_report(worker, report)
        if worker.process is not None and ended:
            self._died(worker, worker.process, now_s)
        if worker.restart_at_s is not None and now_s >= worker.restart_at_s:
            worker.restart_at_s = None
            remove_report(self._runtime, worker.writer)
            worker.process = worker.start()
            worker.started_s, worker.reported = now_s, False
            self._metrics.worker_restarted(worker.device)

    def _note_report(self, worker: Worker, report: WorkerReport) -> None:
        worker.reported = True
        worker.unserved = bool(report.problem)
        worker.served |= not report.problem
        if report.problem:
            log.error("%s cannot serve: %s", worker.label, report.problem)
        else:
            log.info("%s loaded in %.2f s", worker.label, report.load_s)
        self._tell(notice(REPORT_CHANGED))

    def _died(self, worker: Worker, process: BaseProcess, now_s: float) -> None:
        """A worker's process has ended: nothing is ready through it; plan its restart unless it is unfit."""
        worker.process = None
        self._metrics.writer_died(worker.writer)
        if worker.unserved:
            return
        log.error("%s died (exit code %s)", worker.label, process.exitcode)
        self._tell(notice(WORKER_DIED, process.pid or 0))
        if not worker.served and worker.deaths == _LOAD_ATTEMPTS - 1:
            problem = f"its process died {_LOAD_ATTEMPTS} times while loading (exit code {process.exitcode})"
            report = WorkerReport(0.0, problem)
            write_report(self._runtime, worker.writer, report)
            self._note_report(worker, report)
            return
        if now_s - worker.started_s > _STABLE_S:
            worker.deaths = 0
        worker.restart_at_s = now_s + _RESTART_DELAYS_S[min(worker.deaths, len(_RESTART_DELAYS_S) - 1)]
        worker.deaths += 1

    def _tell(self, message: bytes) -> None:
        for pipe in self._api_pipes:
            os.write(pipe, message)
