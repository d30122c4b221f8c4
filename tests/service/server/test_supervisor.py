"""The supervisor with real, small children: deaths, restarts, signals and the order of an ending."""

import errno
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import NamedTuple

import pytest

from foldserve.service.host.processes import StopSignals
from foldserve.service.ipc.control import CONTROL_STRUCT, ControlMessage
from foldserve.service.ipc.handles import Handle
from foldserve.service.ipc.resources import Sizes, Transport
from foldserve.service.ipc.scoreboard import READY, RESTARTING, Dimensions
from foldserve.service.server import children as module
from foldserve.service.server.children import LOAD_ATTEMPTS, Child, Role
from foldserve.service.server.model_control import ModelControl
from foldserve.service.server.supervisor import Phase, Supervisor
from tests.service.repositories import metrics_of

# Python 3.12 and later warn of forks beside threads, which other tests' libraries have started by now.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

PAUSE_S = 0.1
"""Of a restart, in these tests."""
RUN_LIMIT_S = 5.0
NEVER_S = 1000.0


class Start(NamedTuple):
    """One start of a child."""

    role: Role
    index: int
    incarnation: int
    at_s: float


class SentMessage(NamedTuple):
    """One message that arrived in an API server."""

    index: int
    word: ControlMessage
    number: int


class SupervisorHarness:
    """A supervisor and what its children do. Children are forked; each runs one of the methods below.

    acts: what the next children of a role do, one after the other; the last goes on for ever.
    """

    def __init__(self, stop: StopSignals, grace_s: float, close_s: float) -> None:
        transport = Transport(Dimensions(api_servers=2, workers=2, models=1, instances=1), Sizes(16, 4096))
        self.board = transport.board.map()
        self.models = ModelControl(transport, self.board, metrics_of(("m", "1")))
        self.models.table.add("m", "1", b"", 8)
        self.acts: dict[Role, list[Callable[[int, Handle], None]]] = {
            Role.WORKER: [self.loads],
            Role.API_SERVER: [self.listens],
        }
        self.starts: list[Start] = []
        self.processes: list[BaseProcess] = []
        self.died: list[Child] = []
        self.load_failures: list[Child] = []
        self.turns: list[int] = []
        self.models.renew_turn = self.turns.append  # type: ignore[method-assign]
        """Models whose turn to read was renewed."""
        self.closings: list[Phase] = []
        self.may_pass = True
        self.fences: list[tuple[int, int]] = []
        self._reports_read, self._reports_write = os.pipe()
        self._told_read, self._told_write = os.pipe()
        self.supervisor = Supervisor(
            start=self._start,
            board=self.board,
            models=self.models,
            reports=Handle(self._reports_read),
            stop=stop,
            fence=self._fence,
            on_child_exit=self.died.append,
            on_load_failed=self.load_failures.append,
            closing=self.close,
            run_limit_s=RUN_LIMIT_S,
            grace_s=grace_s,
            close_s=close_s,
        )

    # What children do

    def loads(self, index: int, lifeline: Handle) -> None:
        """A worker: ready at once, and gone with its lifeline; it answers."""
        self.report(ControlMessage.WORKER_READY, index)
        self.loads_for_ever(index, lifeline)

    def loads_for_ever(self, index: int, lifeline: Handle) -> None:
        """A worker that is never ready; it answers all the same."""
        while os.read(lifeline.fd, CONTROL_STRUCT.size):
            self.board.answer(True, index)

    def goes_silent(self, index: int, lifeline: Handle) -> None:
        """A worker that is ready, and then hears nothing any more."""
        self.report(ControlMessage.WORKER_READY, index)
        signal.pause()

    def serves_and_stops(self, index: int, lifeline: Handle) -> None:
        """A worker or an API server that serves, and stops before it has said so."""
        self.board.ready[index, 0] = READY
        self.board.connections[index] = 1
        signal.pause()

    def dies(self, index: int, lifeline: Handle) -> None:
        """A worker or an API server that dies as soon as it is started."""
        os._exit(3)

    def listens(self, index: int, lifeline: Handle) -> None:
        """An API server: passes on what it is told, and ends when told to."""
        self.board.connections[index] = 1
        while data := os.read(lifeline.fd, CONTROL_STRUCT.size):
            if CONTROL_STRUCT.unpack(data)[0] == ControlMessage.ARE_YOU_ALIVE:
                self.board.answer(False, index)
                continue
            os.write(self._told_write, bytes([index]) + data)
            if CONTROL_STRUCT.unpack(data)[0] == ControlMessage.STOP:
                return
        os._exit(1)

    def does_not_end(self, index: int, lifeline: Handle) -> None:
        """An API server that does not hear."""
        signal.pause()

    def close(self) -> None:
        """The listening sockets of the parent."""
        self.closings.append(self.supervisor.phase)

    # What the tests do

    def report(self, word: ControlMessage, index: int) -> None:
        """Write into the pipe of reports, as a child does."""
        os.write(self._reports_write, CONTROL_STRUCT.pack(word, index))

    def opened(self, workers: int = 1, api_servers: int = 2) -> "SupervisorHarness":
        """All started, and serving."""
        self.supervisor.start_workers(workers)
        self.supervisor.start_api_servers(api_servers)
        assert self.supervisor.wait_until_loaded()
        return self

    def until(self, condition: Callable[[], bool]) -> None:
        """Let the supervisor work until something is so."""
        while not condition():
            self.supervisor._turn()

    def started(self, role: Role, index: int = 0) -> list[Start]:
        """All starts of one child's place."""
        return [start for start in self.starts if (start.role, start.index) == (role, index)]

    def worker_processes(self) -> list[BaseProcess]:
        """Of all workers so far, in the order of their starts."""
        both = zip(self.starts, self.processes, strict=True)
        return [process for start, process in both if start.role is Role.WORKER]

    def kill(self, role: Role, index: int = 0) -> None:
        """Kill the child that now has this place."""
        (child,) = [child for child in self.supervisor._children.of(role) if child.index == index]
        assert child.process.pid is not None
        os.kill(child.process.pid, signal.SIGKILL)

    def let_deadline_come(self, after_s: float) -> None:
        """The end of the phase, for which the supervisor waits after_s, is now: nothing in it was too slow for it."""
        deadline_s = self.supervisor._deadline_s
        assert deadline_s is not None
        assert 0 <= time.monotonic() + after_s - deadline_s < NEVER_S / 2
        self.supervisor._deadline_s = time.monotonic()

    def told(self, count: int) -> set[SentMessage]:
        """The next messages that arrive in API servers."""
        found = set()
        for _ in range(count):
            data = os.read(self._told_read, 1 + CONTROL_STRUCT.size)
            word, number = CONTROL_STRUCT.unpack(data[1:])
            found.add(SentMessage(data[0], ControlMessage(word), number))
        return found

    def _start(self, role: Role, index: int, incarnation: int, lifeline: Handle) -> BaseProcess:
        acts = self.acts[role]
        act = acts.pop(0) if len(acts) > 1 else acts[0]
        self.starts.append(
            Start(role, index, incarnation, self.supervisor._children._living[-incarnation].started_s)
        )
        process = multiprocessing.get_context("fork").Process(target=self._play, args=(act, index, lifeline))
        process.start()
        self.processes.append(process)
        return process

    def _play(self, act: Callable[[int, Handle], None], index: int, lifeline: Handle) -> None:
        self.supervisor.close_in_child()
        act(index, lifeline)
        os._exit(0)

    def _fence(self, index: int) -> Callable[[], bool]:
        self.fences.append((index, self.board.epoch[index]))
        return lambda: self.may_pass


@pytest.fixture
def open_harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., SupervisorHarness]]:
    """Makes a SupervisorHarness; ends its children. A test that waits for what never comes fails after 30 s."""
    monkeypatch.setattr(module, "RESTART_PAUSE_S", PAUSE_S)
    harnesses = []

    def too_long(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("what the test waits for did not come")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(30)
    with StopSignals() as stop:

        def make(grace_s: float = NEVER_S, close_s: float = NEVER_S) -> SupervisorHarness:
            harnesses.append(SupervisorHarness(stop, grace_s, close_s))
            return harnesses[-1]

        yield make
        for harness in harnesses:
            harness.supervisor.end()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


Open = Callable[..., SupervisorHarness]


def stop_signal() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


# Deaths ---------------------------------------------------------------------------------------------------


def test_dead_worker_is_started_again_under_a_new_number_and_every_api_server_hears(
    open_harness: Open,
) -> None:
    harness = open_harness().opened()
    (first,) = harness.started(Role.WORKER)
    assert re.match(
        r"<Supervisor SERVING: worker 0 \(pid \d+\), API server 0 \(pid \d+\)", repr(harness.supervisor)
    )
    harness.kill(Role.WORKER)
    harness.until(lambda: len(harness.started(Role.WORKER)) == 2)
    assert harness.told(2) == {
        SentMessage(index, ControlMessage.WORKER_DIED, first.incarnation) for index in (0, 1)
    }
    assert harness.started(Role.WORKER)[1].incarnation not in [
        start.incarnation for start in harness.starts[:-1]
    ]
    assert [(child.role, child.index) for child in harness.died] == [(Role.WORKER, 0)]


def test_child_that_lived_shortly_is_started_again_after_the_pause(open_harness: Open) -> None:
    harness = open_harness().opened()
    harness.kill(Role.WORKER)
    harness.until(lambda: len(harness.started(Role.WORKER)) == 2)
    first, second = harness.started(Role.WORKER)
    assert second.at_s - first.at_s >= PAUSE_S


def test_child_that_lived_longer_than_the_pause_is_started_again_at_once(
    open_harness: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESTART_PAUSE_S", NEVER_S)
    harness = open_harness().opened()
    (child,) = harness.supervisor._children.of(Role.WORKER)
    child.started_s -= NEVER_S
    harness.kill(Role.WORKER)
    harness.until(lambda: len(harness.started(Role.WORKER)) == 2)


def test_worker_that_dies_while_loading_is_tried_ever_more_rarely_and_holds_up_the_start_for_so_long(
    open_harness: Open,
) -> None:
    harness = open_harness()
    harness.acts[Role.WORKER] = [*[harness.dies] * (LOAD_ATTEMPTS + 1), harness.loads]
    harness.opened()
    # The next may be due in the turn that counted this one, when the machine took long to start it.
    assert len(harness.started(Role.WORKER)) in (LOAD_ATTEMPTS, LOAD_ATTEMPTS + 1)
    (reported,) = harness.load_failures
    assert reported.process is harness.worker_processes()[LOAD_ATTEMPTS - 1]
    harness.until(lambda: any(child.ready for child in harness.supervisor._children.of(Role.WORKER)))
    times_s = [start.at_s for start in harness.started(Role.WORKER)]
    for i in range(LOAD_ATTEMPTS + 1):
        assert times_s[i + 1] - times_s[i] >= PAUSE_S * 2**i
    assert len(harness.load_failures) == 2


def test_pause_between_loads_has_an_end(open_harness: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", PAUSE_S)
    harness = open_harness()
    harness.acts[Role.WORKER] = [*[harness.dies] * 12, harness.loads]  # doubling each time: 200 s
    harness.opened()
    harness.until(lambda: any(child.ready for child in harness.supervisor._children.of(Role.WORKER)))


def test_worker_that_was_ready_once_counts_its_failed_loads_anew(open_harness: Open) -> None:
    harness = open_harness()
    harness.acts[Role.WORKER] = [harness.dies, harness.dies, harness.loads, harness.dies, harness.loads]
    harness.opened()
    harness.kill(Role.WORKER)
    harness.until(lambda: len(harness.started(Role.WORKER)) == 5)
    assert harness.load_failures == []


def test_start_waits_for_every_worker(open_harness: Open) -> None:
    harness = open_harness()
    harness.acts[Role.WORKER] = [harness.loads_for_ever, harness.loads]
    harness.supervisor.start_workers(2)
    harness.until(lambda: any(child.ready for child in harness.supervisor._children.of(Role.WORKER)))
    assert harness.supervisor._children.loading()
    harness.report(ControlMessage.WORKER_READY, 0)
    assert harness.supervisor.wait_until_loaded()


def test_dead_api_servers_place_is_filled_again_once_its_arena_is_at_rest(open_harness: Open) -> None:
    harness = open_harness().opened()
    harness.may_pass = False
    harness.kill(Role.API_SERVER, 0)
    harness.until(lambda: bool(harness.fences))
    # The epoch is raised before the fence is put up, or a worker could still take an old ticket inside it.
    assert harness.fences == [(0, 1)]
    until_s = time.monotonic() + 2 * PAUSE_S
    harness.until(lambda: time.monotonic() > until_s)
    assert len(harness.started(Role.API_SERVER, 0)) == 1
    harness.may_pass = True
    harness.until(lambda: len(harness.started(Role.API_SERVER, 0)) == 2)
    assert list(harness.board.epoch) == [1, 0]


def test_api_servers_that_die_together_are_both_started_again(open_harness: Open) -> None:
    harness = open_harness().opened()
    for index in (0, 1):
        harness.kill(Role.API_SERVER, index)
    for process in harness.processes[1:]:
        process.join()  # each is told of the other's death when it is dead itself
    for index in (0, 1):
        harness.until(lambda index=index: len(harness.started(Role.API_SERVER, index)) == 2)  # type: ignore[misc]
    assert list(harness.board.epoch) == [1, 1]


def test_helper_that_cannot_be_started_again_now_is_started_later(open_harness: Open) -> None:
    class Flaky:
        def __init__(self) -> None:
            self.pipes = [os.pipe()]
            self.errors = [errno.EAGAIN, errno.EMFILE, errno.ENOMEM]
            self.times_s: list[float] = []

        def fileno(self) -> int:
            return self.pipes[-1][0]

        def end(self) -> None:
            os.close(self.pipes[-1][1])

        def renew(self) -> None:
            self.times_s.append(time.monotonic())
            if self.errors:
                raise OSError(self.errors.pop(), "not now")
            self.pipes.append(os.pipe())

    harness = open_harness().opened()
    helper = Flaky()
    harness.supervisor.watch(helper)
    helper.end()
    harness.until(lambda: len(helper.pipes) == 2)
    first, *_, last = helper.times_s
    assert len(helper.times_s) == 4
    assert last - first >= 7 * PAUSE_S
    helper.end()  # it is watched again
    harness.until(lambda: len(helper.pipes) == 3)


def test_child_that_cannot_be_started_now_is_started_later(
    open_harness: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = open_harness().opened()
    failures = [OSError("no memory"), OSError("no memory")]

    def start(*args: object) -> BaseProcess:
        if failures:
            raise failures.pop()
        return harness._start(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(harness.supervisor._children, "_start", start)
    open_before = os.listdir("/proc/self/fd")
    harness.kill(Role.WORKER)
    harness.until(lambda: not failures)
    assert len(os.listdir("/proc/self/fd")) <= len(open_before)  # no end of a lifeline stays open
    harness.until(lambda: len(harness.started(Role.WORKER)) == 2)
    assert harness.supervisor.phase is Phase.SERVING


def test_child_that_cannot_be_started_at_first_is_tried_again_ever_more_rarely_with_the_reason_in_the_log(
    open_harness: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    harness = open_harness()
    failures = [OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)), OSError(errno.EMFILE, "too many")]
    failed_s = []

    def start(*args: object) -> BaseProcess:
        if failures:
            failed_s.append(time.monotonic())
            raise failures.pop()
        return harness._start(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(harness.supervisor._children, "_start", start)
    harness.supervisor.start_workers(1)
    assert harness.supervisor.wait_until_loaded()
    (loaded,) = harness.started(Role.WORKER)
    assert failed_s[1] - failed_s[0] >= PAUSE_S
    assert loaded.at_s - failed_s[1] >= 2 * PAUSE_S
    assert "worker 0 cannot be started: " in caplog.text
    assert "ulimit -n" in caplog.text
    assert "pids.max" in caplog.text


def test_api_server_that_dies_before_it_takes_connections_is_tried_ever_more_rarely_and_the_log_says_so(
    open_harness: Open, caplog: pytest.LogCaptureFixture
) -> None:
    harness = open_harness()
    harness.acts[Role.API_SERVER] = [*[harness.dies] * (LOAD_ATTEMPTS + 1), harness.listens]
    harness.opened(api_servers=1)
    harness.until(lambda: len(harness.started(Role.API_SERVER)) == LOAD_ATTEMPTS + 2)
    times_s = [start.at_s for start in harness.started(Role.API_SERVER)]
    for i in range(LOAD_ATTEMPTS + 1):
        assert times_s[i + 1] - times_s[i] >= PAUSE_S * 2**i
    assert f"died before it took connections, like {LOAD_ATTEMPTS} before it" in caplog.text
    assert harness.load_failures == []


def test_api_server_that_took_connections_is_started_again_after_the_short_pause(
    open_harness: Open,
) -> None:
    harness = open_harness()
    harness.acts[Role.API_SERVER] = [harness.dies, harness.dies, harness.listens, harness.listens]
    harness.opened(api_servers=1)
    harness.until(lambda: len(harness.started(Role.API_SERVER)) == 3)
    while not harness.board.connections[0]:
        time.sleep(0.001)  # between two looks
    harness.kill(Role.API_SERVER)
    harness.until(lambda: len(harness.started(Role.API_SERVER)) == 4)
    assert harness.supervisor._children._failed_starts == {}


# Hangs ----------------------------------------------------------------------------------------------------


def test_worker_that_hangs_is_ended_and_another_started(open_harness: Open) -> None:
    harness = open_harness().opened()
    harness.board.step_since_ns[0, 0] = time.monotonic_ns() - int(2e9 * RUN_LIMIT_S)
    harness.report(ControlMessage.RUN_TIMEOUT, 0)
    harness.until(lambda: bool(harness.died))
    assert harness.processes[0].exitcode == -signal.SIGKILL
    harness.board.worker_died(0)
    harness.until(lambda: len(harness.started(Role.WORKER)) == 2)


def test_report_of_a_hang_that_is_over_ends_nobody(open_harness: Open) -> None:
    harness = open_harness().opened()
    # The next run, or the next worker's; no stop of the machine makes this one a long one.
    harness.board.step_since_ns[0, 0] = time.monotonic_ns() + int(3600e9)
    harness.report(ControlMessage.RUN_TIMEOUT, 0)
    harness.kill(Role.API_SERVER, 0)
    harness.until(lambda: bool(harness.died))  # the report has been read by then
    assert [child.role for child in harness.died] == [Role.API_SERVER]
    assert harness.processes[0].is_alive()


# Signals and the end ----------------------------------------------------------------------------------------


def test_signal_before_anything_is_served_ends_everything_at_once(open_harness: Open) -> None:
    harness = open_harness()
    harness.acts[Role.WORKER] = [harness.loads_for_ever]
    harness.supervisor.start_workers(2)
    harness.supervisor.start_api_servers(2)
    stop_signal()
    assert not harness.supervisor.wait_until_loaded()
    assert harness.supervisor.phase is Phase.CLOSED
    assert not any(process.is_alive() for process in harness.processes)


@pytest.mark.parametrize("ready", [READY, RESTARTING], ids=["serves", "served and died"])
def test_signal_while_one_worker_loads_and_another_serves_leaves_time_for_what_was_taken(
    open_harness: Open, ready: int
) -> None:
    harness = open_harness()
    harness.acts[Role.WORKER] = [harness.loads_for_ever, harness.loads_for_ever]
    harness.supervisor.start_workers(2)
    harness.supervisor.start_api_servers(2)
    harness.board.ready[1, 0] = ready  # its report is on the way
    stop_signal()
    assert not harness.supervisor.wait_until_loaded()
    assert harness.supervisor.phase is Phase.GRACE
    assert all(process.is_alive() for process in harness.processes)
    harness.let_deadline_come(NEVER_S)
    harness.supervisor.wait()
    assert harness.told(2) == {SentMessage(index, ControlMessage.STOP, 0) for index in (0, 1)}
    assert not any(process.is_alive() for process in harness.processes)


def test_first_signal_turns_readiness_off_and_everything_goes_on_until_the_grace_is_over(
    open_harness: Open,
) -> None:
    harness = open_harness().opened()
    assert harness.board.draining[0] == 0
    stop_signal()
    harness.until(lambda: harness.supervisor.phase is Phase.GRACE)
    assert harness.board.draining[0] == 1
    harness.kill(Role.WORKER)
    harness.until(lambda: len(harness.started(Role.WORKER)) == 2)  # it is needed still
    assert not harness.closings  # new connections are still taken
    harness.let_deadline_come(NEVER_S)
    harness.until(lambda: harness.supervisor.phase is not Phase.GRACE)
    assert {told for told in harness.told(4) if told.word is ControlMessage.STOP} == {
        SentMessage(index, ControlMessage.STOP, 0) for index in (0, 1)
    }


def test_closing_ends_api_servers_first_and_then_workers_with_exit_0(open_harness: Open) -> None:
    harness = open_harness(grace_s=0.0)
    harness.acts[Role.API_SERVER] = [harness.listens, harness.does_not_end]
    harness.opened(workers=2)
    workers, (quick, slow) = harness.processes[:2], harness.processes[2:]
    stop_signal()
    harness.until(lambda: bool(harness.closings))
    assert harness.closings == [Phase.CLOSING]
    harness.until(lambda: harness.supervisor._children.of(Role.API_SERVER)[0].process is slow)
    assert [process.is_alive() for process in workers] == [True, True]
    harness.kill(Role.API_SERVER, 1)
    harness.supervisor.wait()
    assert [process.exitcode for process in (*workers, quick)] == [0, 0, 0]
    assert [child.process for child in harness.died] == [slow]
    assert len(harness.starts) == 4


def test_worker_that_dies_while_closing_comes_back_for_the_requests_in_flight(open_harness: Open) -> None:
    harness = open_harness(grace_s=0.0)
    harness.acts[Role.API_SERVER] = [harness.does_not_end]
    harness.opened()
    stop_signal()
    harness.until(lambda: harness.supervisor.phase is Phase.CLOSING)
    harness.kill(Role.WORKER)
    harness.until(lambda: len(harness.started(Role.WORKER)) == 2)


def test_api_server_that_dies_while_closing_is_not_started_again(open_harness: Open) -> None:
    harness = open_harness(grace_s=0.0)
    harness.acts[Role.API_SERVER] = [harness.does_not_end]
    harness.opened()
    stop_signal()
    harness.until(lambda: harness.supervisor.phase is Phase.CLOSING)
    for index in (0, 1):
        harness.kill(Role.API_SERVER, index)
    harness.supervisor.wait()
    assert len(harness.starts) == 3
    assert harness.processes[0].exitcode == 0


def test_api_server_that_waits_for_its_restart_when_closing_begins_is_not_started(
    open_harness: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESTART_PAUSE_S", NEVER_S)
    harness = open_harness(grace_s=0.0).opened(api_servers=1)
    harness.kill(Role.API_SERVER)
    harness.until(lambda: bool(harness.died))
    stop_signal()
    harness.supervisor.wait()  # at once: there is nobody to wait for
    assert len(harness.starts) == 2


def test_worker_that_still_loads_does_not_hold_up_the_end(open_harness: Open) -> None:
    harness = open_harness(grace_s=0.0)
    harness.acts[Role.WORKER] = [harness.loads, harness.does_not_end]
    harness.opened()
    harness.kill(Role.WORKER)
    harness.until(lambda: len(harness.started(Role.WORKER)) == 2)
    stop_signal()
    harness.supervisor.wait()
    assert harness.processes[-1].exitcode == -signal.SIGKILL


def test_worker_that_does_not_end_is_ended(open_harness: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foldserve.service.server.supervisor._WORKER_END_S", PAUSE_S)
    harness = open_harness(grace_s=0.0)
    harness.acts[Role.WORKER] = [harness.does_not_end]
    harness.supervisor.start_workers(1)
    harness.report(ControlMessage.WORKER_READY, 0)
    assert harness.supervisor.wait_until_loaded()
    stop_signal()
    harness.supervisor.wait()
    assert harness.processes[0].exitcode == -signal.SIGKILL


def test_closing_that_takes_too_long_is_cut_off(open_harness: Open) -> None:
    harness = open_harness(grace_s=0.0)
    harness.acts[Role.API_SERVER] = [harness.does_not_end, harness.listens]
    harness.opened()
    stop_signal()
    harness.until(lambda: len(harness.supervisor._children.of(Role.API_SERVER)) == 1)
    harness.let_deadline_come(NEVER_S)
    harness.supervisor.wait()
    assert [process.exitcode for process in harness.processes] == [-signal.SIGKILL, -signal.SIGKILL, 0]


@pytest.mark.parametrize("phase", [Phase.GRACE, Phase.CLOSING])
def test_second_signal_ends_everything_at_once(open_harness: Open, phase: Phase) -> None:
    harness = open_harness(grace_s=NEVER_S if phase is Phase.GRACE else 0.0)
    harness.acts[Role.API_SERVER] = [harness.does_not_end]
    harness.opened()
    stop_signal()
    harness.until(lambda: harness.supervisor.phase is phase)
    stop_signal()
    harness.supervisor.wait()
    assert {process.exitcode for process in harness.processes} == {-signal.SIGKILL}


def test_second_signal_in_the_same_turn_as_a_death_ends_everything_all_the_same(open_harness: Open) -> None:
    harness = open_harness().opened()
    stop_signal()
    harness.until(lambda: harness.supervisor.phase is Phase.GRACE)
    stop_signal()
    for process in harness.processes:
        process.kill()
    for process in harness.processes:
        process.join()
    harness.supervisor.wait()
    assert len(harness.starts) == 3


def test_nothing_is_started_after_the_end(open_harness: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESTART_PAUSE_S", NEVER_S)
    harness = open_harness().opened()
    harness.kill(Role.WORKER)
    harness.until(lambda: bool(harness.died))
    harness.supervisor.end()
    assert harness.supervisor._children._restarts == []
    harness.supervisor.wait()
    assert len(harness.starts) == 3


def test_idle_supervisor_wakes_only_to_look_whether_its_children_answer(
    open_harness: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = open_harness().opened()
    selector, limits = harness.supervisor._selector, []
    select = selector.select

    def noted(timeout: float | None) -> object:
        limits.append(timeout)
        return select(0)

    monkeypatch.setattr(selector, "select", noted)
    harness.supervisor._turn()
    (limit,) = limits
    assert limit is not None
    assert 0 < limit <= harness.supervisor._liveness.every_s


def let_looks_pass(harness: SupervisorHarness, count: int, *but: Child) -> None:
    """Have the supervisor look so many times whether its children answer, as if the time for it had come; all who can
    answer have the time to, but those."""
    for _ in range(count):
        asked_ns = time.monotonic_ns()
        harness.supervisor._check_at_s = time.monotonic()
        harness.supervisor._turn()
        able = [c for c in harness.supervisor._children.all() if c.role is Role.API_SERVER or c.ready]
        while any(
            harness.board.answered_ns(child.role is Role.WORKER, child.index) < asked_ns
            for child in able
            if child not in but
        ):
            time.sleep(0.001)  # between two looks at the condition


def test_worker_that_does_not_answer_is_ended_and_another_started(open_harness: Open) -> None:
    harness = open_harness()
    harness.acts[Role.WORKER] = [harness.goes_silent, harness.loads]
    harness.opened()
    harness.until(lambda: all(child.ready for child in harness.supervisor._children.of(Role.WORKER)))
    let_looks_pass(harness, 6, *harness.supervisor._children.of(Role.WORKER))
    harness.until(lambda: len(harness.started(Role.WORKER)) == 2)
    assert [child.role for child in harness.died] == [Role.WORKER]


def test_api_server_that_is_stopped_is_ended_and_another_started(open_harness: Open) -> None:
    harness = open_harness().opened()
    let_looks_pass(harness, 1)
    (stopped,) = [child for child in harness.supervisor._children.of(Role.API_SERVER) if child.index == 1]

    def answered() -> bool:
        harness.supervisor._answered_ns(stopped)
        return stopped.ready

    harness.until(answered)
    assert stopped.process.pid is not None
    os.kill(stopped.process.pid, signal.SIGSTOP)
    harness.board.alive_ns[2 + 1] = 1  # what it may still have said before it stopped
    let_looks_pass(harness, 7, stopped)
    harness.until(lambda: len(harness.started(Role.API_SERVER, 1)) == 2)
    assert [(child.role, child.index) for child in harness.died] == [(Role.API_SERVER, 1)]


@pytest.mark.parametrize("role", Role)
def test_child_that_serves_and_stops_before_it_ever_reports_or_answers_is_ended_too(
    open_harness: Open, role: Role
) -> None:
    harness = open_harness()
    harness.acts[role].insert(0, harness.serves_and_stops)
    harness.supervisor.start_workers(1)
    harness.supervisor.start_api_servers(1)
    (stopped,) = harness.supervisor._children.of(role)
    harness.until(lambda: harness.supervisor._serves(stopped))
    let_looks_pass(harness, 7, stopped)
    harness.until(lambda: len(harness.started(role)) == 2)
    assert [child.role for child in harness.died] == [role]


def test_worker_that_loads_for_long_is_not_asked_and_not_ended(open_harness: Open) -> None:
    harness = open_harness()
    harness.acts[Role.WORKER] = [harness.loads, harness.does_not_end]
    harness.supervisor.start_workers(2)
    let_looks_pass(harness, 20)
    assert harness.died == []


def test_model_whose_tickets_nobody_takes_gets_a_new_turn_to_read(open_harness: Open) -> None:
    harness = open_harness().opened()
    harness.report(ControlMessage.QUEUE_STALLED, 0)
    harness.until(lambda: harness.turns == [0])
