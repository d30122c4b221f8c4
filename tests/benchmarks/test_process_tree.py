"""CPU time is counted over children, their children and all threads."""

import os
import subprocess
import sys
import textwrap

import pytest

from benchmarks.serving import process_tree

BURN = textwrap.dedent("""
    import subprocess, sys, threading, time
    def burn(seconds):
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass
    if sys.argv[1] == "child":
        child = subprocess.Popen([sys.executable, "-c", sys.argv[2], "grandchild", ""], stdin=-1, stdout=-1)
        child.stdout.readline()
        thread = threading.Thread(target=lambda: (burn(0.1), ready.set(), forever.wait()), daemon=True)
        ready, forever = threading.Event(), threading.Event()
        thread.start(); ready.wait()
        print("burnt", flush=True)
        sys.stdin.readline()
    else:
        burn(0.2)
        print("burnt", flush=True)
        sys.stdin.readline()
""")


@pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")
def test_a_tree_of_two_processes_and_a_thread_is_counted_whole() -> None:
    before = process_tree.sample(process_tree.descendants(os.getpid()))
    child = subprocess.Popen(
        [sys.executable, "-c", BURN, "child", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"burnt\n"
        tree = process_tree.descendants(child.pid)
        used_s = process_tree.used_ns(before, process_tree.sample([child.pid, *tree])) / 1e9
        alone_s = process_tree.used_ns(before, process_tree.sample([child.pid])) / 1e9
    finally:
        child.communicate(b"\n")
    assert len(tree) == 1
    # Burnt on purpose: 0.3 s in all, 0.1 s of it in the child; starting two interpreters takes the rest.
    assert 0.3 <= used_s < 3.0
    assert 0.1 <= alone_s <= used_s - 0.2


def test_a_thread_that_is_new_counts_whole_and_one_that_ended_not_at_all() -> None:
    before = {(1, 1): 100, (1, 2): 50}
    after = {(1, 1): 160, (1, 3): 7}
    assert process_tree.used_ns(before, after) == 67


@pytest.mark.skipif(sys.platform != "linux", reason="looks in /proc")
def test_processes_that_ignore_sigterm_are_killed_and_reaped() -> None:
    script = (
        "import signal, sys; signal.signal(15, signal.SIG_IGN); print('up', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert process_tree.any_lives([child.pid])
    process_tree.end([child.pid], patience_s=0.2)
    assert not process_tree.any_lives([child.pid])
    assert not os.path.exists(f"/proc/{child.pid}")
    child.returncode = -9  # reaped above
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        pipe.close()


@pytest.mark.skipif(sys.platform != "linux", reason="looks in /proc")
def test_a_process_that_ended_and_was_not_waited_for_does_not_live() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.read() == b""  # it has closed its end
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not process_tree.any_lives([child.pid])
    child.communicate()
