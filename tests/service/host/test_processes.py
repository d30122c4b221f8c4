"""Signals that only the supervisor acts on, and children that do not outlive it."""

import gc
import os
import signal
import subprocess
import sys
from multiprocessing import connection

import pytest

from foldserve.service.host.processes import StopSignals, freeze_garbage, stop_signals_blocked

# Python 3.12 and later warn of forks beside threads, which other tests' libraries have started by now.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def test_signals_are_counted_and_wake_the_waiting_loop() -> None:
    with StopSignals() as stop:
        assert stop.count == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert connection.wait([stop], 5) == [stop]
        stop.clear()
        assert connection.wait([stop], 0) == []
        os.kill(os.getpid(), signal.SIGINT)
        assert connection.wait([stop], 5) == [stop]
        assert stop.count == 2


def test_hangup_begins_the_end_and_hastens_none() -> None:
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert connection.wait([stop], 5) == [stop]
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.count == 1
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.count == 2


def test_hangup_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.count == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_put_back_at_the_end() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignals():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_forked_child_does_not_count_for_its_parent() -> None:
    with StopSignals() as stop:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(stop.count)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert (stop.count, connection.wait([stop], 0)) == (0, [])


def test_process_started_inside_does_not_see_the_stop_signals() -> None:
    program = "import sys; print('up', flush=True); sys.stdin.read(); print('done')"
    with stop_signals_blocked():
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGHUP)
    assert process.communicate()[0] == "done\n"
    assert process.returncode == 0
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGINT, signal.SIGTERM}


@pytest.mark.parametrize("parent_is_gone", [False, True], ids=["which dies later", "which is gone already"])
def test_child_dies_with_its_parent(parent_is_gone: bool) -> None:
    program = f"""
import multiprocessing, os, time
from foldserve.service.host.processes import die_with_parent
read, write = os.pipe()
stdin = os.dup(0)  # multiprocessing gives its children another one
parent = os.getpid()

def child():
    if {parent_is_gone}:
        os.write(write, b"x")
        while os.getppid() == parent:
            time.sleep(0.001)
    die_with_parent()
    os.write(write, b"x")
    os.read(stdin, 1)
    print("survived", flush=True)

multiprocessing.get_context("fork").Process(target=child).start()
os.read(read, 1)
os.kill(os.getpid(), 9)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.wait()
    # A child that lives goes on when its stdin ends, and holds stdout's other end until it has said so.
    assert process.communicate()[0] == ""


def test_what_lives_when_garbage_is_frozen_is_not_walked_over_again() -> None:
    before = gc.get_freeze_count()
    try:
        freeze_garbage()
        assert gc.get_freeze_count() > before
        assert len(gc.get_objects()) < 1000  # before, many thousands: every module and class
    finally:
        gc.unfreeze()
