"""Processes whose parent has died are buried, and those that somebody waits for are left to him."""

import subprocess
import sys

PROGRAM = """
import os, select, signal, subprocess, sys, time
from pathlib import Path
from foldserve.service.server.orphans import Orphans
from foldserve.service.metrics.process import children

def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
mine = []
with Orphans(lambda: mine) as orphans:
    own = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
    mine.append(own.pid)
    while state(own.pid) != "Z":
        time.sleep(0.01)
    # A parent that is killed while its child waits for the end of its stdin.
    child = "import os, sys; print(os.getpid(), flush=True); sys.stdin.read()"
    body = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(1000)"
    parent = subprocess.Popen([sys.executable, "-c", body], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    mine.append(parent.pid)
    orphan = int(parent.stdout.readline())
    parent.kill()
    assert parent.wait() == -9
    while orphan not in children(os.getpid()):
        time.sleep(0.01)
    parent.stdin.close()
    while orphan in children(os.getpid()):
        assert select.select([orphans], [], [], 60)[0]
        orphans.renew()
    assert state(own.pid) == "Z"
    assert own.wait() == 7
assert signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
print("done")
"""


def test_an_orphan_is_buried_and_a_child_that_is_waited_for_keeps_its_exit_code() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.stdout == "done\n", done.stderr
