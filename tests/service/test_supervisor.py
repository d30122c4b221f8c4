"""Which processes are started again, when the server ends, and what API servers are told."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from service import supervisor as supervision
from service.litserve_engine import DRAIN, REPORT_CHANGED, STOP, WORKER_DIED, notice
from service.metrics import Metrics
from service.processes import StopSignals
from service.supervisor import Supervisor, Worker
from service.worker_report import WorkerReport, read_report, write_report
from tests.service.repositories import metrics_at, sample

# Python 3.12 and later warn of forks beside threads, which other tests' libraries have started by now.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

FORK = multiprocessing.get_context("fork")


def start(target: Callable[[], None]) -> BaseProcess:
    process = FORK.Process(target=target)
    process.start()
    return process


def sleep() -> None:
    signal.pause()


class Stage:
    """A supervisor over small forked processes, and all that it said and did."""

    def __init__(self, folder: Path, metrics: Metrics) -> None:
        self.folder = folder
        self.metrics = metrics
        self.starts = 0
        self.loaded = 0
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        self.api_server = start(sleep)

    def worker(self, *lives: Callable[[], None]) -> Worker:
        """A worker that lives `lives[0]` first, then the next ones, the last for ever."""

        def begin() -> BaseProcess:
            life = lives[min(self.starts, len(lives) - 1)]
            self.starts += 1
            return start(life)

        return Worker("worker 0", "two", "cpu", begin, begin(), time.monotonic())

    def watch(self, worker: Worker, on_loaded: Callable[[], bool] | None = None) -> int:
        def count() -> bool:
            self.loaded += 1
            os.kill(os.getpid(), signal.SIGTERM)
            return True

        parts = Supervisor([worker], [], [self.api_server], [self.write_end], self.metrics, self.folder)
        with StopSignals() as stop:
            try:
                return parts.watch(stop, on_loaded or count)
            finally:
                parts.end()

    def told(self) -> bytes:
        return os.read(self.read_end, 4096)

    def report(self, problem: str = "") -> None:
        """What a worker does when it has loaded."""
        write_report(self.folder, "two", WorkerReport(0.1, problem))


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(supervision, "_RESTART_DELAYS_S", (0.0, 0.01))
    staged = Stage(tmp_path, metrics_at(tmp_path))
    yield staged
    staged.api_server.kill()
    staged.api_server.join()
    os.close(staged.read_end)
    os.close(staged.write_end)


def test_loaded_is_told_once_and_a_signal_ends_the_watch_with_0(stage: Stage) -> None:
    worker = stage.worker(lambda: (stage.report(), sleep()))
    assert stage.watch(worker) == 0
    assert (stage.loaded, stage.starts) == (1, 1)
    assert stage.told() == notice(REPORT_CHANGED)


def test_server_ends_with_1_when_nothing_can_be_served(stage: Stage) -> None:
    worker = stage.worker(lambda: stage.report("no such kernel"))
    assert stage.watch(worker, on_loaded=lambda: False) == 1


def test_worker_whose_model_is_unfit_is_not_started_again(stage: Stage) -> None:
    worker = stage.worker(lambda: stage.report("no such kernel"))
    assert stage.watch(worker) == 0
    assert (stage.starts, worker.unserved) == (1, True)


def test_crash_while_loading_is_tried_again(stage: Stage) -> None:
    worker = stage.worker(lambda: os._exit(7), lambda: (stage.report(), sleep()))
    assert stage.watch(worker) == 0
    assert (stage.starts, worker.served) == (2, True)
    assert sample(stage.metrics, "foldserve_worker_restarts_total", device="cpu") == 1
    assert WORKER_DIED in stage.told()[::5]


def test_model_that_kills_its_worker_at_every_load_is_given_up_with_the_reason(stage: Stage) -> None:
    worker = stage.worker(lambda: os._exit(7))
    assert stage.watch(worker) == 0
    assert stage.starts == 3
    report = read_report(stage.folder, "two")
    assert report is not None
    assert report.problem == "its process died 3 times while loading (exit code 7)"


def test_worker_that_served_and_died_is_started_again_and_unready_meanwhile(stage: Stage) -> None:
    attached = Metrics.attach(stage.metrics.store.path, stage.metrics.plan, "two")
    attached.model_loaded("linear", "1", True, 0.1)
    attached.batch_finished("linear", "1", 4, 0, "full")
    seen: list[tuple[bool, ...]] = []

    def first() -> None:
        stage.report()
        os.kill(os.getpid(), signal.SIGKILL)

    def second() -> None:
        os.kill(os.getppid(), signal.SIGTERM)
        sleep()

    worker = stage.worker(first, second)
    begin = worker.start

    def noted() -> BaseProcess:
        seen.append(stage.metrics.ready_versions())
        return begin()

    worker.start = noted
    assert stage.watch(worker, on_loaded=lambda: True) == 0
    assert seen == [(False,)]
    assert stage.starts == 2
    assert sample(stage.metrics, "foldserve_batches_total", model="linear", version="1", reason="full") == 1


def test_dead_api_server_ends_the_server_with_1(stage: Stage) -> None:
    worker = stage.worker(lambda: (stage.report(), sleep()))

    def kill_api_server() -> bool:
        stage.api_server.kill()
        return True

    assert stage.watch(worker, kill_api_server) == 1


def test_drain_tells_the_api_servers_and_waits_for_them(stage: Stage) -> None:
    read_end, write_end = os.pipe()

    def serve() -> None:
        while STOP not in os.read(read_end, 5)[:1]:
            pass
        sys.exit(0)

    api_server = start(serve)
    parts = Supervisor([], [], [api_server], [write_end], stage.metrics, stage.folder)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        parts.drain(stop, 0.0)
        assert not api_server.is_alive()
    assert api_server.exitcode == 0
    os.close(read_end)
    os.close(write_end)


def test_second_signal_cuts_the_drain_short(stage: Stage) -> None:
    parts = Supervisor([], [], [stage.api_server], [stage.write_end], stage.metrics, stage.folder)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        parts.drain(stop, 0.0)
        assert stage.api_server.is_alive()
        parts.end()
    assert not stage.api_server.is_alive()
    assert stage.told() == notice(DRAIN) + notice(STOP)
