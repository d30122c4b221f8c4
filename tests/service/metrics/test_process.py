"""What /proc tells of a tree of processes."""

import os
import subprocess
import sys
import time

import pytest

from foldserve.service.metrics.process import descendants, process_families, read_use


@pytest.fixture
def child() -> subprocess.Popen[bytes]:
    program = "import sys; print('up', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(3)
    yield process
    process.communicate()


def test_children_are_found(child: subprocess.Popen[bytes]) -> None:
    assert child.pid in descendants(os.getpid())


def test_figures_of_a_process_are_plausible(child: subprocess.Popen[bytes]) -> None:
    use = read_use(child.pid)
    assert use is not None
    assert 2**20 < use.resident_bytes < use.virtual_bytes
    assert 0 <= use.cpu_s < 60
    assert use.open_fds >= 3
    assert abs(time.time() - use.start_s) < 60


def test_process_that_ended_has_none() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert read_use(process.pid) is None
    assert list(process_families(process.pid)) == []


# Ends once it has used 0.2 s of CPU by its own clock, however quick the machine is.
BUSY = "import time\nwhile time.process_time() < 0.2: pass"
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def test_cpu_time_of_ended_children_is_kept() -> None:
    before = read_use(os.getpid())
    subprocess.run([sys.executable, "-c", BUSY], check=True)
    after = read_use(os.getpid())
    assert before is not None
    assert after is not None
    # /proc counts user and system time in whole ticks, each rounded down.
    assert after.cpu_s - before.cpu_s >= 0.2 - 2 * TICK_S


def test_memory_is_summed_over_the_tree(child: subprocess.Popen[bytes]) -> None:
    families = {family.name: family.samples[0].value for family in process_families(os.getpid())}
    alone = read_use(child.pid)
    assert alone is not None
    assert families["process_virtual_memory_bytes"] > alone.virtual_bytes + 2**20
