"""Records as JSON: one object a line, of a bounded size, whatever is in it. As text: test_records.py."""

import json
import logging
import sys
from typing import Any

import pytest

from foldserve.service.logs.lines import LINE_BYTES, JsonLines, Lines, bounded


def record(message: str, *args: Any, error: bool = False) -> logging.LogRecord:
    info = None
    if error:
        try:
            raise ValueError("odd\nthings")
        except ValueError:
            info = sys.exc_info()
    made = logging.LogRecord("foldserve.here", logging.ERROR, "place.py", 1, message, args, info)
    made.created, made.msecs = 1.25, 250.0
    return made


def test_record_is_an_object_with_its_time_in_utc_its_level_process_logger_and_message() -> None:
    line = JsonLines().line(record("took %d s", 7), LINE_BYTES)
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:01.250Z",
        "level": "ERROR",
        "process": "MainProcess",
        "logger": "foldserve.here",
        "message": "took 7 s",
    }


def test_traceback_is_a_value_of_its_own_on_the_same_line() -> None:
    line = JsonLines().line(record("failed", error=True), LINE_BYTES)
    assert b"\n" not in line
    assert json.loads(line)["traceback"].endswith("ValueError: odd\nthings")


@pytest.mark.parametrize(
    "text", ["x" * 10_000, "ü" * 10_000, "\n" * 10_000, "\u2028" * 10_000, "\ud800" * 5000]
)
@pytest.mark.parametrize("nbytes", [LINE_BYTES - 1, 500])
def test_line_of_any_message_is_whole_ascii_and_no_longer_than_allowed(text: str, nbytes: int) -> None:
    line = JsonLines().line(record("from %s to", text, error=True), nbytes)
    assert len(line) <= nbytes
    assert b"\n" not in line
    assert line.isascii()
    told = json.loads(line)
    assert told["message"].startswith("from ")
    assert told["level"] == "ERROR"


def test_bare_line_is_the_message() -> None:
    assert Lines().line(record("{%s}", 1), 100) == b"{1}"


@pytest.mark.parametrize("nbytes", [1, 30, 31, 100])
def test_text_is_cut_to_any_size(nbytes: int) -> None:
    assert len(bounded("x" * 1000, nbytes)) <= max(nbytes, len(" ... 1000 bytes in all ... "))
