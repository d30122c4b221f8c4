"""The supervisor with real, small children: deaths, restarts, signals and the order of an ending."""

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import NamedTuple

import pytest

from foldserve.service.host.processes import StopSignals
from foldserve.service.ipc.control import MESSAGE, Word
from foldserve.service.ipc.handles import Handle
from foldserve.service.ipc.scoreboard import READY, RETURNING, Board, Dimensions
from foldserve.service.server import supervisor as module
from foldserve.service.server.supervisor import LOAD_ATTEMPTS, Child, Phase, Role, Supervisor

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
    serial: int
    at_s: float


class Told(NamedTuple):
    """One message that arrived in an API server."""

    index: int
    word: Word
    number: int


class Theatre:
    """A supervisor and what its children do. Children are forked; each runs one of the methods below.

    acts: what the next children of a role do, one after the other; the last goes on for ever.
    """

    def __init__(self, stop: StopSignals, grace_s: float, close_s: float) -> None:
        self.board = Board(Dimensions(api_servers=2, workers=2, models=1, instances=1)).map()
        self.acts: dict[Role, list[Callable[[int, Handle], None]]] = {
            Role.WORKER: [self.loads],
            Role.API_SERVER: [self.listens],
        }
        self.starts: list[Start] = []
        self.processes: list[BaseProcess] = []
        self.died: list[Child] = []
        self.cannot_load: list[Child] = []
        self.turns: list[int] = []
        """Models whose turn to read was renewed."""
        self.closings: list[Phase] = []
        self.may_pass = True
        self.fences: list[tuple[int, int]] = []
        self._reports_read, self._reports_write = os.pipe()
        self._told_read, self._told_write = os.pipe()
        self.supervisor = Supervisor(
            start=self._start,
            board=self.board,
            reports=Handle(self._reports_read),
            stop=stop,
            fence=self._fence,
            died=self.died.append,
            cannot_load=self.cannot_load.append,
            renew_turn=self.turns.append,
            closing=self.close,
            run_limit_s=RUN_LIMIT_S,
            grace_s=grace_s,
            close_s=close_s,
        )

    # What children do

    def loads(self, index: int, lifeline: Handle) -> None:
        """A worker: ready at once, and gone with its lifeline; it answers."""
        self.report(Word.WORKER_READY, index)
        self.loads_for_ever(index, lifeline)

    def loads_for_ever(self, index: int, lifeline: Handle) -> None:
        """A worker that is never ready; it answers all the same."""
        while os.read(lifeline.fd, MESSAGE.size):
            self.board.answer(True, index)

    def goes_silent(self, index: int, lifeline: Handle) -> None:
        """A worker that is ready, and then hears nothing any more."""
        self.report(Word.WORKER_READY, index)
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
        while data := os.read(lifeline.fd, MESSAGE.size):
            if MESSAGE.unpack(data)[0] == Word.ARE_YOU_ALIVE:
                self.board.answer(False, index)
                continue
            os.write(self._told_write, bytes([index]) + data)
            if MESSAGE.unpack(data)[0] == Word.STOP:
                return
        os._exit(1)

    def does_not_end(self, index: int, lifeline: Handle) -> None:
        """An API server that does not hear."""
        signal.pause()

    def close(self) -> None:
        """The listening sockets of the parent."""
        self.closings.append(self.supervisor.phase)

    # What the tests do

    def report(self, word: Word, index: int) -> None:
        """Write into the pipe of reports, as a child does."""
        os.write(self._reports_write, MESSAGE.pack(word, index))

    def opened(self, workers: int = 1, api_servers: int = 2) -> "Theatre":
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
        (child,) = [child for child in self.supervisor._of(role) if child.index == index]
        assert child.process.pid is not None
        os.kill(child.process.pid, signal.SIGKILL)

    def let_deadline_come(self, after_s: float) -> None:
        """The end of the phase, for which the supervisor waits after_s, is now: nothing in it was too slow for it."""
        deadline_s = self.supervisor._deadline_s
        assert deadline_s is not None
        assert 0 <= time.monotonic() + after_s - deadline_s < NEVER_S / 2
        self.supervisor._deadline_s = time.monotonic()

    def told(self, count: int) -> set[Told]:
        """The next messages that arrive in API servers."""
        found = set()
        for _ in range(count):
            data = os.read(self._told_read, 1 + MESSAGE.size)
            word, number = MESSAGE.unpack(data[1:])
            found.add(Told(data[0], Word(word), number))
        return found

    def _start(self, role: Role, index: int, serial: int, lifeline: Handle) -> BaseProcess:
        acts = self.acts[role]
        act = acts.pop(0) if len(acts) > 1 else acts[0]
        self.starts.append(Start(role, index, serial, self.supervisor._children[-serial].started_s))
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
def open_theatre(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Theatre]]:
    """Makes a Theatre; ends its children. A test that waits for what never comes fails after 30 s."""
    monkeypatch.setattr(module, "RESTART_PAUSE_S", PAUSE_S)
    theatres = []

    def too_long(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("what the test waits for did not come")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(30)
    with StopSignals() as stop:

        def make(grace_s: float = NEVER_S, close_s: float = NEVER_S) -> Theatre:
            theatres.append(Theatre(stop, grace_s, close_s))
            return theatres[-1]

        yield make
        for theatre in theatres:
            theatre.supervisor.end()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


Open = Callable[..., Theatre]


def stop_signal() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


# Deaths ---------------------------------------------------------------------------------------------------


def test_dead_worker_is_started_again_under_a_new_number_and_every_api_server_hears(
    open_theatre: Open,
) -> None:
    theatre = open_theatre().opened()
    (first,) = theatre.started(Role.WORKER)
    theatre.kill(Role.WORKER)
    theatre.until(lambda: len(theatre.started(Role.WORKER)) == 2)
    assert theatre.told(2) == {Told(index, Word.WORKER_DIED, first.serial) for index in (0, 1)}
    assert theatre.started(Role.WORKER)[1].serial not in [start.serial for start in theatre.starts[:-1]]
    assert [(child.role, child.index) for child in theatre.died] == [(Role.WORKER, 0)]


def test_child_that_lived_shortly_is_started_again_after_the_pause(open_theatre: Open) -> None:
    theatre = open_theatre().opened()
    theatre.kill(Role.WORKER)
    theatre.until(lambda: len(theatre.started(Role.WORKER)) == 2)
    first, second = theatre.started(Role.WORKER)
    assert second.at_s - first.at_s >= PAUSE_S


def test_child_that_lived_longer_than_the_pause_is_started_again_at_once(
    open_theatre: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESTART_PAUSE_S", NEVER_S)
    theatre = open_theatre().opened()
    (child,) = theatre.supervisor._of(Role.WORKER)
    child.started_s -= NEVER_S
    theatre.kill(Role.WORKER)
    theatre.until(lambda: len(theatre.started(Role.WORKER)) == 2)


def test_worker_that_dies_while_loading_is_tried_ever_more_rarely_and_holds_up_the_start_for_so_long(
    open_theatre: Open,
) -> None:
    theatre = open_theatre()
    theatre.acts[Role.WORKER] = [*[theatre.dies] * (LOAD_ATTEMPTS + 1), theatre.loads]
    theatre.opened()
    # The next may be due in the turn that counted this one, when the machine took long to start it.
    assert len(theatre.started(Role.WORKER)) in (LOAD_ATTEMPTS, LOAD_ATTEMPTS + 1)
    (given_up,) = theatre.cannot_load
    assert given_up.process is theatre.worker_processes()[LOAD_ATTEMPTS - 1]
    theatre.until(lambda: any(child.ready for child in theatre.supervisor._of(Role.WORKER)))
    times_s = [start.at_s for start in theatre.started(Role.WORKER)]
    for i in range(LOAD_ATTEMPTS + 1):
        assert times_s[i + 1] - times_s[i] >= PAUSE_S * 2**i
    assert len(theatre.cannot_load) == 2


def test_pause_between_loads_has_an_end(open_theatre: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", PAUSE_S)
    theatre = open_theatre()
    theatre.acts[Role.WORKER] = [*[theatre.dies] * 12, theatre.loads]  # doubling each time: 200 s
    theatre.opened()
    theatre.until(lambda: any(child.ready for child in theatre.supervisor._of(Role.WORKER)))


def test_worker_that_was_ready_once_counts_its_failed_loads_anew(open_theatre: Open) -> None:
    theatre = open_theatre()
    theatre.acts[Role.WORKER] = [theatre.dies, theatre.dies, theatre.loads, theatre.dies, theatre.loads]
    theatre.opened()
    theatre.kill(Role.WORKER)
    theatre.until(lambda: len(theatre.started(Role.WORKER)) == 5)
    assert theatre.cannot_load == []


def test_start_waits_for_every_worker(open_theatre: Open) -> None:
    theatre = open_theatre()
    theatre.acts[Role.WORKER] = [theatre.loads_for_ever, theatre.loads]
    theatre.supervisor.start_workers(2)
    theatre.until(lambda: any(child.ready for child in theatre.supervisor._of(Role.WORKER)))
    assert theatre.supervisor._loading()
    theatre.report(Word.WORKER_READY, 0)
    assert theatre.supervisor.wait_until_loaded()


def test_dead_api_servers_place_is_filled_again_once_its_arena_is_at_rest(open_theatre: Open) -> None:
    theatre = open_theatre().opened()
    theatre.may_pass = False
    theatre.kill(Role.API_SERVER, 0)
    theatre.until(lambda: bool(theatre.fences))
    # The epoch is raised before the fence is put up, or a worker could still take an old ticket inside it.
    assert theatre.fences == [(0, 1)]
    until_s = time.monotonic() + 2 * PAUSE_S
    theatre.until(lambda: time.monotonic() > until_s)
    assert len(theatre.started(Role.API_SERVER, 0)) == 1
    theatre.may_pass = True
    theatre.until(lambda: len(theatre.started(Role.API_SERVER, 0)) == 2)
    assert list(theatre.board.epoch) == [1, 0]


def test_api_servers_that_die_together_are_both_started_again(open_theatre: Open) -> None:
    theatre = open_theatre().opened()
    for index in (0, 1):
        theatre.kill(Role.API_SERVER, index)
    for process in theatre.processes[1:]:
        process.join()  # each is told of the other's death when it is dead itself
    for index in (0, 1):
        theatre.until(lambda index=index: len(theatre.started(Role.API_SERVER, index)) == 2)  # type: ignore[misc]
    assert list(theatre.board.epoch) == [1, 1]


def test_helper_that_cannot_be_started_again_now_is_started_later(open_theatre: Open) -> None:
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

    theatre = open_theatre().opened()
    helper = Flaky()
    theatre.supervisor.watch(helper)
    helper.end()
    theatre.until(lambda: len(helper.pipes) == 2)
    first, *_, last = helper.times_s
    assert len(helper.times_s) == 4
    assert last - first >= 7 * PAUSE_S
    helper.end()  # it is watched again
    theatre.until(lambda: len(helper.pipes) == 3)


def test_child_that_cannot_be_started_now_is_started_later(
    open_theatre: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    theatre = open_theatre().opened()
    failures = [OSError("no memory"), OSError("no memory")]

    def start(*args: object) -> BaseProcess:
        if failures:
            raise failures.pop()
        return theatre._start(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(theatre.supervisor, "_start", start)
    open_before = os.listdir("/proc/self/fd")
    theatre.kill(Role.WORKER)
    theatre.until(lambda: not failures)
    assert len(os.listdir("/proc/self/fd")) <= len(open_before)  # no end of a lifeline stays open
    theatre.until(lambda: len(theatre.started(Role.WORKER)) == 2)
    assert theatre.supervisor.phase is Phase.SERVING


def test_child_that_cannot_be_started_at_first_is_tried_again_ever_more_rarely_with_the_reason_in_the_log(
    open_theatre: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    theatre = open_theatre()
    failures = [OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)), OSError(errno.EMFILE, "too many")]
    failed_s = []

    def start(*args: object) -> BaseProcess:
        if failures:
            failed_s.append(time.monotonic())
            raise failures.pop()
        return theatre._start(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(theatre.supervisor, "_start", start)
    theatre.supervisor.start_workers(1)
    assert theatre.supervisor.wait_until_loaded()
    (loaded,) = theatre.started(Role.WORKER)
    assert failed_s[1] - failed_s[0] >= PAUSE_S
    assert loaded.at_s - failed_s[1] >= 2 * PAUSE_S
    assert "worker 0 cannot be started: " in caplog.text
    assert "ulimit -n" in caplog.text
    assert "pids.max" in caplog.text


def test_api_server_that_dies_before_it_takes_connections_is_tried_ever_more_rarely_and_the_log_says_so(
    open_theatre: Open, caplog: pytest.LogCaptureFixture
) -> None:
    theatre = open_theatre()
    theatre.acts[Role.API_SERVER] = [*[theatre.dies] * (LOAD_ATTEMPTS + 1), theatre.listens]
    theatre.opened(api_servers=1)
    theatre.until(lambda: len(theatre.started(Role.API_SERVER)) == LOAD_ATTEMPTS + 2)
    times_s = [start.at_s for start in theatre.started(Role.API_SERVER)]
    for i in range(LOAD_ATTEMPTS + 1):
        assert times_s[i + 1] - times_s[i] >= PAUSE_S * 2**i
    assert f"died before it took connections, like {LOAD_ATTEMPTS} before it" in caplog.text
    assert theatre.cannot_load == []


def test_api_server_that_took_connections_is_started_again_after_the_short_pause(
    open_theatre: Open,
) -> None:
    theatre = open_theatre()
    theatre.acts[Role.API_SERVER] = [theatre.dies, theatre.dies, theatre.listens, theatre.listens]
    theatre.opened(api_servers=1)
    theatre.until(lambda: len(theatre.started(Role.API_SERVER)) == 3)
    while not theatre.board.connections[0]:
        time.sleep(0.001)  # between two looks
    theatre.kill(Role.API_SERVER)
    theatre.until(lambda: len(theatre.started(Role.API_SERVER)) == 4)
    assert theatre.supervisor._failed_starts == {}


# Hangs ----------------------------------------------------------------------------------------------------


def test_worker_that_hangs_is_ended_and_another_started(open_theatre: Open) -> None:
    theatre = open_theatre().opened()
    theatre.board.step_since_ns[0, 0] = time.monotonic_ns() - int(2e9 * RUN_LIMIT_S)
    theatre.report(Word.WORKER_HANGS, 0)
    theatre.until(lambda: bool(theatre.died))
    assert theatre.processes[0].exitcode == -signal.SIGKILL
    theatre.board.worker_died(0)
    theatre.until(lambda: len(theatre.started(Role.WORKER)) == 2)


def test_report_of_a_hang_that_is_over_ends_nobody(open_theatre: Open) -> None:
    theatre = open_theatre().opened()
    # The next run, or the next worker's; no stop of the machine makes this one a long one.
    theatre.board.step_since_ns[0, 0] = time.monotonic_ns() + int(3600e9)
    theatre.report(Word.WORKER_HANGS, 0)
    theatre.kill(Role.API_SERVER, 0)
    theatre.until(lambda: bool(theatre.died))  # the report has been read by then
    assert [child.role for child in theatre.died] == [Role.API_SERVER]
    assert theatre.processes[0].is_alive()


# Signals and the end ----------------------------------------------------------------------------------------


def test_signal_before_anything_is_served_ends_everything_at_once(open_theatre: Open) -> None:
    theatre = open_theatre()
    theatre.acts[Role.WORKER] = [theatre.loads_for_ever]
    theatre.supervisor.start_workers(2)
    theatre.supervisor.start_api_servers(2)
    stop_signal()
    assert not theatre.supervisor.wait_until_loaded()
    assert theatre.supervisor.phase is Phase.CLOSED
    assert not any(process.is_alive() for process in theatre.processes)


@pytest.mark.parametrize("ready", [READY, RETURNING], ids=["serves", "served and died"])
def test_signal_while_one_worker_loads_and_another_serves_leaves_time_for_what_was_taken(
    open_theatre: Open, ready: int
) -> None:
    theatre = open_theatre()
    theatre.acts[Role.WORKER] = [theatre.loads_for_ever, theatre.loads_for_ever]
    theatre.supervisor.start_workers(2)
    theatre.supervisor.start_api_servers(2)
    theatre.board.ready[1, 0] = ready  # its report is on the way
    stop_signal()
    assert not theatre.supervisor.wait_until_loaded()
    assert theatre.supervisor.phase is Phase.GRACE
    assert all(process.is_alive() for process in theatre.processes)
    theatre.let_deadline_come(NEVER_S)
    theatre.supervisor.wait()
    assert theatre.told(2) == {Told(index, Word.STOP, 0) for index in (0, 1)}
    assert not any(process.is_alive() for process in theatre.processes)


def test_first_signal_turns_readiness_off_and_everything_goes_on_until_the_grace_is_over(
    open_theatre: Open,
) -> None:
    theatre = open_theatre().opened()
    assert theatre.board.draining[0] == 0
    stop_signal()
    theatre.until(lambda: theatre.supervisor.phase is Phase.GRACE)
    assert theatre.board.draining[0] == 1
    theatre.kill(Role.WORKER)
    theatre.until(lambda: len(theatre.started(Role.WORKER)) == 2)  # it is needed still
    assert not theatre.closings  # new connections are still taken
    theatre.let_deadline_come(NEVER_S)
    theatre.until(lambda: theatre.supervisor.phase is not Phase.GRACE)
    assert {told for told in theatre.told(4) if told.word is Word.STOP} == {
        Told(index, Word.STOP, 0) for index in (0, 1)
    }


def test_closing_ends_api_servers_first_and_then_workers_with_exit_0(open_theatre: Open) -> None:
    theatre = open_theatre(grace_s=0.0)
    theatre.acts[Role.API_SERVER] = [theatre.listens, theatre.does_not_end]
    theatre.opened(workers=2)
    workers, (quick, slow) = theatre.processes[:2], theatre.processes[2:]
    stop_signal()
    theatre.until(lambda: bool(theatre.closings))
    assert theatre.closings == [Phase.CLOSING]
    theatre.until(lambda: theatre.supervisor._of(Role.API_SERVER)[0].process is slow)
    assert [process.is_alive() for process in workers] == [True, True]
    theatre.kill(Role.API_SERVER, 1)
    theatre.supervisor.wait()
    assert [process.exitcode for process in (*workers, quick)] == [0, 0, 0]
    assert [child.process for child in theatre.died] == [slow]
    assert len(theatre.starts) == 4


def test_worker_that_dies_while_closing_comes_back_for_the_requests_in_flight(open_theatre: Open) -> None:
    theatre = open_theatre(grace_s=0.0)
    theatre.acts[Role.API_SERVER] = [theatre.does_not_end]
    theatre.opened()
    stop_signal()
    theatre.until(lambda: theatre.supervisor.phase is Phase.CLOSING)
    theatre.kill(Role.WORKER)
    theatre.until(lambda: len(theatre.started(Role.WORKER)) == 2)


def test_api_server_that_dies_while_closing_is_not_started_again(open_theatre: Open) -> None:
    theatre = open_theatre(grace_s=0.0)
    theatre.acts[Role.API_SERVER] = [theatre.does_not_end]
    theatre.opened()
    stop_signal()
    theatre.until(lambda: theatre.supervisor.phase is Phase.CLOSING)
    for index in (0, 1):
        theatre.kill(Role.API_SERVER, index)
    theatre.supervisor.wait()
    assert len(theatre.starts) == 3
    assert theatre.processes[0].exitcode == 0


def test_api_server_that_waits_for_its_restart_when_closing_begins_is_not_started(
    open_theatre: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESTART_PAUSE_S", NEVER_S)
    theatre = open_theatre(grace_s=0.0).opened(api_servers=1)
    theatre.kill(Role.API_SERVER)
    theatre.until(lambda: bool(theatre.died))
    stop_signal()
    theatre.supervisor.wait()  # at once: there is nobody to wait for
    assert len(theatre.starts) == 2


def test_worker_that_still_loads_does_not_hold_up_the_end(open_theatre: Open) -> None:
    theatre = open_theatre(grace_s=0.0)
    theatre.acts[Role.WORKER] = [theatre.loads, theatre.does_not_end]
    theatre.opened()
    theatre.kill(Role.WORKER)
    theatre.until(lambda: len(theatre.started(Role.WORKER)) == 2)
    stop_signal()
    theatre.supervisor.wait()
    assert theatre.processes[-1].exitcode == -signal.SIGKILL


def test_worker_that_does_not_end_is_ended(open_theatre: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORKER_END_S", PAUSE_S)
    theatre = open_theatre(grace_s=0.0)
    theatre.acts[Role.WORKER] = [theatre.does_not_end]
    theatre.supervisor.start_workers(1)
    theatre.report(Word.WORKER_READY, 0)
    assert theatre.supervisor.wait_until_loaded()
    stop_signal()
    theatre.supervisor.wait()
    assert theatre.processes[0].exitcode == -signal.SIGKILL


def test_closing_that_takes_too_long_is_cut_off(open_theatre: Open) -> None:
    theatre = open_theatre(grace_s=0.0)
    theatre.acts[Role.API_SERVER] = [theatre.does_not_end, theatre.listens]
    theatre.opened()
    stop_signal()
    theatre.until(lambda: len(theatre.supervisor._of(Role.API_SERVER)) == 1)
    theatre.let_deadline_come(NEVER_S)
    theatre.supervisor.wait()
    assert [process.exitcode for process in theatre.processes] == [-signal.SIGKILL, -signal.SIGKILL, 0]


@pytest.mark.parametrize("phase", [Phase.GRACE, Phase.CLOSING])
def test_second_signal_ends_everything_at_once(open_theatre: Open, phase: Phase) -> None:
    theatre = open_theatre(grace_s=NEVER_S if phase is Phase.GRACE else 0.0)
    theatre.acts[Role.API_SERVER] = [theatre.does_not_end]
    theatre.opened()
    stop_signal()
    theatre.until(lambda: theatre.supervisor.phase is phase)
    stop_signal()
    theatre.supervisor.wait()
    assert {process.exitcode for process in theatre.processes} == {-signal.SIGKILL}


def test_second_signal_in_the_same_turn_as_a_death_ends_everything_all_the_same(open_theatre: Open) -> None:
    theatre = open_theatre().opened()
    stop_signal()
    theatre.until(lambda: theatre.supervisor.phase is Phase.GRACE)
    stop_signal()
    for process in theatre.processes:
        process.kill()
    for process in theatre.processes:
        process.join()
    theatre.supervisor.wait()
    assert len(theatre.starts) == 3


def test_nothing_is_started_after_the_end(open_theatre: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESTART_PAUSE_S", NEVER_S)
    theatre = open_theatre().opened()
    theatre.kill(Role.WORKER)
    theatre.until(lambda: bool(theatre.died))
    theatre.supervisor.end()
    assert theatre.supervisor._restarts == []
    theatre.supervisor.wait()
    assert len(theatre.starts) == 3


def test_idle_supervisor_wakes_only_to_look_whether_its_children_answer(
    open_theatre: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    theatre = open_theatre().opened()
    selector, limits = theatre.supervisor._selector, []
    select = selector.select

    def noted(timeout: float | None) -> object:
        limits.append(timeout)
        return select(0)

    monkeypatch.setattr(selector, "select", noted)
    theatre.supervisor._turn()
    (limit,) = limits
    assert limit is not None
    assert 0 < limit <= theatre.supervisor._liveness.every_s


def let_looks_pass(theatre: Theatre, count: int, *but: Child) -> None:
    """Have the supervisor look so many times whether its children answer, as if the time for it had come; all who can
    answer have the time to, but those."""
    for _ in range(count):
        asked_ns = time.monotonic_ns()
        theatre.supervisor._look_at_s = time.monotonic()
        theatre.supervisor._turn()
        able = [c for c in theatre.supervisor._children.values() if c.role is Role.API_SERVER or c.ready]
        while any(
            theatre.board.answered_ns(child.role is Role.WORKER, child.index) < asked_ns
            for child in able
            if child not in but
        ):
            time.sleep(0.001)  # between two looks at the condition


def test_worker_that_does_not_answer_is_ended_and_another_started(open_theatre: Open) -> None:
    theatre = open_theatre()
    theatre.acts[Role.WORKER] = [theatre.goes_silent, theatre.loads]
    theatre.opened()
    theatre.until(lambda: all(child.ready for child in theatre.supervisor._of(Role.WORKER)))
    let_looks_pass(theatre, 6, *theatre.supervisor._of(Role.WORKER))
    theatre.until(lambda: len(theatre.started(Role.WORKER)) == 2)
    assert [child.role for child in theatre.died] == [Role.WORKER]


def test_api_server_that_is_stopped_is_ended_and_another_started(open_theatre: Open) -> None:
    theatre = open_theatre().opened()
    let_looks_pass(theatre, 1)
    (stopped,) = [child for child in theatre.supervisor._of(Role.API_SERVER) if child.index == 1]

    def answered() -> bool:
        theatre.supervisor._answered_ns(stopped)
        return stopped.ready

    theatre.until(answered)
    assert stopped.process.pid is not None
    os.kill(stopped.process.pid, signal.SIGSTOP)
    theatre.board.alive_ns[2 + 1] = 1  # what it may still have said before it stopped
    let_looks_pass(theatre, 7, stopped)
    theatre.until(lambda: len(theatre.started(Role.API_SERVER, 1)) == 2)
    assert [(child.role, child.index) for child in theatre.died] == [(Role.API_SERVER, 1)]


@pytest.mark.parametrize("role", Role)
def test_child_that_serves_and_stops_before_it_ever_reports_or_answers_is_ended_too(
    open_theatre: Open, role: Role
) -> None:
    theatre = open_theatre()
    theatre.acts[role].insert(0, theatre.serves_and_stops)
    theatre.supervisor.start_workers(1)
    theatre.supervisor.start_api_servers(1)
    (stopped,) = theatre.supervisor._of(role)
    theatre.until(lambda: theatre.supervisor._serves(stopped))
    let_looks_pass(theatre, 7, stopped)
    theatre.until(lambda: len(theatre.started(role)) == 2)
    assert [child.role for child in theatre.died] == [role]


def test_worker_that_loads_for_long_is_not_asked_and_not_ended(open_theatre: Open) -> None:
    theatre = open_theatre()
    theatre.acts[Role.WORKER] = [theatre.loads, theatre.does_not_end]
    theatre.supervisor.start_workers(2)
    let_looks_pass(theatre, 20)
    assert theatre.died == []


def test_model_whose_tickets_nobody_takes_gets_a_new_turn_to_read(open_theatre: Open) -> None:
    theatre = open_theatre().opened()
    theatre.report(Word.MODEL_STALLS, 0)
    theatre.until(lambda: theatre.turns == [0])
