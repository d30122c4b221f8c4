"""Lines of the log: bounded, whole, nothing raw from clients, and never waited for."""

import contextlib
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from foldserve.service.logs.limits import FULL, INTERVAL_S, SHORT, Limits, with_id
from foldserve.service.logs.lines import LINE_BYTES, LogStyle, TextLines, bounded
from foldserve.service.logs.records import Outlet, configure_logging, print_lines


class Pipe:
    """A pipe whose writer never waits."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)

    def read(self) -> bytes:
        """What stands in it."""
        os.set_blocking(self.reader, False)
        found = b""
        with contextlib.suppress(BlockingIOError):
            while more := os.read(self.reader, 1 << 20):
                found += more
        return found

    def fill(self) -> None:
        """Leave no room."""
        for size in (4096, 1):
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(self.writer, b"." * size)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    for fd in (made.reader, made.writer):
        with contextlib.suppress(OSError):
            os.close(fd)


class Clock:
    """Stands still until it is moved."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def outlet(pipe: Pipe, limits: Limits | None = None) -> Outlet:
    return Outlet(pipe.writer, TextLines("%(levelname)s %(message)s"), limits)


def record(message: str, *args: Any, error: Exception | None = None, line: int = 1, **more: Any) -> Any:
    info = None if error is None else (type(error), error, error.__traceback__)
    made = logging.LogRecord("a", logging.ERROR, "place.py", line, message, args, info)
    made.__dict__.update(more)
    return made


def raised(text: str) -> Exception:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


HOSTILE = "a\r\n2026-01-01 CRITICAL forged\x1b[31m\x00\x7f\x9b\u2028\u202eb\ud800"


@pytest.mark.parametrize("where", ["in the message", "in an argument", "in the exception"])
def test_what_a_client_sends_neither_makes_a_line_nor_moves_a_terminal(pipe: Pipe, where: str) -> None:
    made = {
        "in the message": record(HOSTILE),
        "in an argument": record("path %s", HOSTILE),
        "in the exception": record("failed", error=raised(HOSTILE)),
    }[where]
    outlet(pipe).handle(made)
    text = pipe.read().decode()
    first, *further = text.removesuffix("\n").split("\n")
    assert first.startswith("ERROR ")
    assert all(line.startswith("    | ") for line in further)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]", text)
    assert "forged" in text


@pytest.mark.parametrize("text", ["x" * 100_000, "é\U0001f600" * 30_000])
@pytest.mark.parametrize("as_error", [False, True])
def test_a_record_is_one_write_that_a_pipe_takes_whole(pipe: Pipe, text: str, as_error: bool) -> None:
    outlet(pipe).handle(record("begin %s end", text, error=raised(text) if as_error else None))
    found = pipe.read()
    assert len(found) <= LINE_BYTES
    assert found.startswith(b"ERROR begin")
    assert re.search(rb"\.\.\. \d+ bytes in all \.\.\.", found)
    assert found.decode().endswith((text[-1:] if as_error else "end") + "\n")


def test_a_short_text_is_left_as_it_is() -> None:
    assert bounded("é" * 10, 20) == ("é" * 10).encode()


def test_lines_that_nobody_takes_are_dropped_and_counted_when_there_is_room_again(pipe: Pipe) -> None:
    writes = outlet(pipe)
    pipe.fill()
    for number in range(5):
        writes.handle(record("lost %d", number))
    pipe.read()
    writes.handle(record("taken"))
    assert pipe.read() == b"5 lines of this process are missing here: nobody took them\nERROR taken\n"


@pytest.mark.parametrize("closed", ["its reader is gone", "the descriptor is closed"])
def test_a_log_that_cannot_be_written_raises_nothing(pipe: Pipe, closed: str) -> None:
    writes = outlet(pipe)
    os.close(pipe.reader if closed == "its reader is gone" else pipe.writer)
    writes.handle(record("unheard"))
    Outlet(-1).handle(record("unheard"))


def test_a_record_whose_arguments_do_not_fit_is_told_as_that(pipe: Pipe) -> None:
    outlet(pipe).handle(record("%d", "x"))
    assert b"a log record of a cannot be written: TypeError" in pipe.read()


def test_failures_of_one_place_are_told_whole_then_short_then_as_a_count_with_every_id(pipe: Pipe) -> None:
    clock = Clock()
    limits = Limits(clock)
    writes = outlet(pipe, limits)
    many = 1000
    for number in range(many):
        writes.handle(record("id %s", f"e{number}", error=raised("odd"), **with_id(f"e{number}")))
    writes.handle(record("another place", line=2))
    writes.flush()
    text = pipe.read().decode()
    assert text.count("Traceback") == FULL
    assert "ERROR another place\n" in text
    assert set(re.findall(r"\be\d+\b", text)) == {f"e{number}" for number in range(many)}
    left_out = sum(map(int, re.findall(r"(\d+) more like the ones before", text)))
    assert left_out == many - FULL - SHORT
    assert len(text) < 20 * many
    clock.now_s += INTERVAL_S
    writes.handle(record("id %s", "e", error=raised("odd")))
    assert pipe.read().count(b"Traceback") == 1


def test_the_count_comes_without_another_record(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foldserve.service.logs.limits.INTERVAL_S", 0.05)
    writes = outlet(pipe, Limits())
    for _ in range(FULL + SHORT + 7):
        writes.handle(record("again"))
    found = b""
    os.set_blocking(pipe.reader, True)
    while b"7 more like the ones before" not in found:
        found += os.read(pipe.reader, 4096)


def test_a_forked_process_begins_anew_and_tells_nothing_of_what_its_parent_left_out(pipe: Pipe) -> None:
    writes = outlet(pipe, Limits(Clock()))
    for number in range(FULL + SHORT + 5):
        writes.handle(record("number %d", number))
    pipe.read()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            writes.handle(record("of the child"))
            writes.flush()
        os._exit(0)
    os.waitpid(child, 0)
    assert pipe.read() == b"ERROR of the child\n"
    writes.flush()
    assert b"5 more like the ones before" in pipe.read()


def test_what_is_left_out_holds_no_frames() -> None:
    limits = Limits(Clock())
    for _ in range(FULL + SHORT + 1):
        limits.admit(record("id %s", object(), error=raised("odd")))
    (place,) = limits._places.values()
    assert place.last is not None
    assert (place.last.exc_info, place.last.args) == (None, ())


def test_records_whose_number_the_server_bounds_are_all_written(pipe: Pipe) -> None:
    writes = outlet(pipe, Limits(Clock()))
    for _ in range(10 * (FULL + SHORT)):
        writes.handle(record("a model is not served", always=True))
    assert pipe.read().count(b"\n") == 10 * (FULL + SHORT)


def test_pythons_warnings_are_lines_of_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            configure_logging(LogStyle("info"))
            warnings.warn("odd\nthings", stacklevel=1)
            logging.captureWarnings(False)
    finally:
        root.handlers, root.level = before, level
    (line,) = capfd.readouterr().err.splitlines()
    assert "WARNING" in line
    assert "odd\\nthings" in line


def test_what_is_printed_for_the_eye_is_lost_without_harm_where_it_cannot_be_written() -> None:
    program = (
        "import sys; from foldserve.service.logs.records import print_lines\n"
        "print_lines('one\\ntwo'); print('on', file=sys.stderr)"
    )
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (0, "on\n")


def test_what_is_printed_is_printed_line_by_line(capfd: pytest.CaptureFixture[str]) -> None:
    print_lines("one\ntwo\x1b[2J")
    assert capfd.readouterr().out == "one\ntwo\\x1b[2J\n"
