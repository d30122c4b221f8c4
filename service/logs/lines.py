"""What a record looks like: one line of at most LINE_BYTES, as text or as JSON, that nothing a client sent can end.

Knows nothing of where lines go (records.py), or of how many (limits.py).
"""

import json
import logging
import time
from typing import Final, NamedTuple

LINE_BYTES: Final = 4096
"""Linux's PIPE_BUF: what a pipe takes whole, newline included."""
LOG_FORMATS: Final = ("text", "json")

_TEXT: Final = "%(asctime)s %(levelname)-7s %(processName)s %(name)s: %(message)s"
_INDENT: Final = "\n    | "
"""Begins the further lines of a record: a text in a traceback, which may hold what a client sent, begins no record."""
# Control characters (C0, DEL, C1), line and paragraph separators, and what turns the direction of text.
_CONTROL: Final = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (
        *range(0x20),
        *range(0x7F, 0xA0),
        0x2028,
        0x2029,
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
    )
}
_CONTROL[0x0A], _CONTROL[0x09] = "\\n", "\t"


class LogStyle(NamedTuple):
    """How a process logs. level: one of settings.LOG_LEVELS. format: one of LOG_FORMATS."""

    level: str
    format: str = "text"


class Lines(logging.Formatter):
    """A record's message and no more; for messages that are lines already."""

    def line(self, record: logging.LogRecord, nbytes: int) -> bytes:
        """The record in at most so many bytes, without a newline at its end."""
        return bounded(self.format(record), nbytes)


class TextLines(Lines):
    """A record's text: its message on one line, its traceback on indented ones, whoever made them."""

    def __init__(self, template: str = _TEXT) -> None:
        super().__init__(template)

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        record.message = record.getMessage()
        record.asctime = self.formatTime(record)
        text = without_control(self.formatMessage(record))
        if record.exc_info and record.exc_info[0] is not None:
            lines = self.formatException(record.exc_info).split("\n")
            text += "".join(_INDENT + without_control(line) for line in lines)
        return text


class JsonLines(Lines):
    """A record as a JSON object in ASCII. time: of the record, in UTC."""

    default_msec_format = "%s.%03dZ"
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    converter = time.gmtime  # type: ignore[assignment]  # typeshed has it as a method

    def line(self, record: logging.LogRecord, nbytes: int) -> bytes:
        """See Lines; of values that are too long for the line the beginning and the end."""
        values = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "process": str(record.processName),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            values["traceback"] = self.formatException(record.exc_info)
        left = nbytes
        while len(line := json.dumps(values)) > nbytes:
            left //= 2
            values = {name: bounded(value, left).decode() for name, value in values.items()}
        return line.encode()


FORMATTERS: Final[dict[str, type[TextLines | JsonLines]]] = {"text": TextLines, "json": JsonLines}


def without_control(text: str) -> str:
    """The text with everything that would begin another line, or move a terminal's cursor, written as its escape."""
    return text.translate(_CONTROL)


def bounded(text: str, nbytes: int) -> bytes:
    """The text as UTF-8 of at most so many bytes: of a longer one the beginning and the end."""
    data = text.encode(errors="backslashreplace")
    if len(data) <= nbytes:
        return data
    mark = f" ... {len(data)} bytes in all ... "
    tail = max(0, nbytes - len(mark)) // 3
    head = max(0, nbytes - len(mark) - tail)
    # A character that is cut in two is left out.
    return b"%b%b%b" % (
        *(data[:head].decode(errors="ignore").encode(), mark.encode()),
        data[len(data) - tail :].decode(errors="ignore").encode(),
    )
