"""Stdout and stderr as pipes that never block: what is written comes out, and who does not read stops nobody."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

PROGRAM = """
import os, sys, time
from foldserve.service.logs.pipes import LogPipes
from foldserve.service.logs.records import print_lines

with LogPipes() as pipes:
    print(pipes._process.pid if pipes.pumps else 0, file=sys.stderr, flush=True)
    {body}
"""


def started(body: str, **streams: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM.format(body=body)], **streams)  # type: ignore[call-overload,no-any-return]


# Of children and C libraries too, and more than a pipe holds.
MUCH = "\n    ".join(
    [
        "for n in range(200):",
        "    print_lines(f'{n:05} ' + 'x' * 80)",
        "import ctypes; ctypes.CDLL(None).dprintf(2, b'from C\\n')",
        "__import__('subprocess').run(['sh', '-c', 'echo from a child'])",
    ]
)


def test_everything_comes_out_in_order_before_the_process_has_ended() -> None:
    process = started(MUCH, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = out.decode().splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [f"{n:05}" for n in range(200)]
    assert lines[-1] == "from a child"
    assert err.endswith(b"from C\n")
    assert int(err.split()[0])


def test_a_file_is_written_directly(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        assert started(MUCH, stdout=file, stderr=file).wait(60) == 0
    first, *lines = (tmp_path / "log").read_text().splitlines()
    assert first == "0"
    assert [line.split()[0] for line in lines[:-2]] == [f"{n:05}" for n in range(200)]
    assert lines[-2:] == ["from C", "from a child"]


def test_a_last_line_is_written_though_the_process_ends_at_once() -> None:
    process = started(
        "os.write(2, b'the last\\n'); os._exit(3)", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.communicate(timeout=60)[1].endswith(b"the last\n")
    assert process.returncode == 3


def test_a_reader_that_does_not_read_stops_neither_the_work_nor_the_end() -> None:
    body = "[print_lines('x' * 200) for _ in range(20_000)]; os.write(2, b'done\\n')"
    process = started(body, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert process.stdout is not None
    process.stderr.readline()
    assert process.stderr.readline() == b"done\n"
    assert process.wait(60) == 0
    process.stdout.close()
    process.stderr.close()


def test_a_stalled_stdout_does_not_hold_up_stderr() -> None:
    body = "[print_lines('x' * 200) for _ in range(20_000)]; os.write(2, b'still here\\n'); sys.stdin.read()"
    process = started(body, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.readline()
    assert process.stderr.readline() == b"still here\n"
    process.communicate()


SILENT = """
import logging
from foldserve.service.logs.pipes import LogPipes
from foldserve.service.logs.records import LogStyle, configure_logging, print_lines

configure_logging(LogStyle("info"))
with LogPipes():
    for _ in range(100):
        print_lines("x")
        logging.info("y")
"""


@pytest.mark.parametrize("target", ["/dev/full", "a closed pipe", "closed"])
def test_a_log_that_cannot_be_written_harms_nothing(target: str) -> None:
    program = [sys.executable, "-c", SILENT]
    if target == "closed":
        done = subprocess.run(["sh", "-c", '"$@" >&- 2>&-', "sh", *program], timeout=60, check=False)
        assert done.returncode == 0
        return
    if target == "/dev/full":
        stdout = os.open(target, os.O_WRONLY)
    else:
        reader, stdout = os.pipe()
        os.close(reader)
    try:
        assert subprocess.run(program, stdout=stdout, stderr=stdout, timeout=60, check=False).returncode == 0
    finally:
        os.close(stdout)


def test_lines_that_a_full_disk_swallowed_are_counted_when_there_is_room_again(tmp_path: Path) -> None:
    from foldserve.service.logs.pump import copy

    source, writer = os.pipe()
    end_reader, end_writer = os.pipe()
    target = os.open("/dev/full", os.O_WRONLY)
    copying = threading.Thread(target=copy, args=(source, target, end_reader))
    copying.start()
    os.write(writer, b"one\ntwo\n")
    waiting = select.poll()
    waiting.register(source, select.POLLIN)
    while waiting.poll(0):
        pass  # until it has taken them
    file = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(file, target)
    os.write(writer, b"three\n")
    os.close(end_writer)
    copying.join(60)
    text = (tmp_path / "log").read_text()
    for fd in (source, writer, end_reader, target, file):
        os.close(fd)
    assert text.endswith("three\n")
    assert "lines are missing here: No space left on device" in text or text == "one\ntwo\nthree\n"


def test_a_pump_that_is_killed_is_replaced_and_no_line_of_the_pipe_is_lost() -> None:
    body = "\n    ".join(
        [
            "import select, signal",
            "os.kill(pipes._process.pid, signal.SIGKILL)",
            "select.select([pipes], [], [])",
            "print_lines('in between')",
            "pipes.renew()",
            "print_lines('after')",
        ]
    )
    process = started(body, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.communicate(timeout=60)[0] == b"in between\nafter\n"


def test_a_pump_that_cannot_be_started_again_now_leaves_all_as_it_was_and_can_be_tried_again() -> None:
    body = "\n    ".join(
        [
            "import resource, select, signal",
            "os.kill(pipes._process.pid, signal.SIGKILL)",
            "select.select([pipes], [], [])",
            "before = len(os.listdir('/proc/self/fd'))",
            "top = max(map(int, os.listdir('/proc/self/fd')))",
            "limits = resource.getrlimit(resource.RLIMIT_NOFILE)",
            "for free in range(5):",
            "    resource.setrlimit(resource.RLIMIT_NOFILE, (top + free, limits[1]))",
            "    try:",
            "        pipes.renew()",
            "    except OSError as error:",
            "        print_lines(f'error {error.errno}') if free == 0 else None",
            "    else:",
            "        break",
            "resource.setrlimit(resource.RLIMIT_NOFILE, limits)",
            "pipes.renew() if pipes._process.poll() is not None else None",
            "print_lines(str(len(os.listdir('/proc/self/fd')) - before))",
        ]
    )
    process = started(body, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.communicate(timeout=60)[0] == b"error 24\n0\n"
    assert process.returncode == 0


def test_the_pump_ends_soon_after_its_parent_even_while_nobody_reads() -> None:
    body = "[print_lines('x' * 200) for _ in range(20_000)]; os.write(2, b'full\\n'); sys.stdin.read()"
    process = started(body, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    pump = int(process.stderr.readline())
    assert process.stderr.readline() == b"full\n"
    gone = os.pidfd_open(pump)
    process.send_signal(signal.SIGKILL)
    process.wait()
    waiting = select.poll()
    waiting.register(gone, select.POLLIN)
    assert waiting.poll(60_000)
    os.close(gone)
    with contextlib.suppress(OSError):
        process.communicate()
