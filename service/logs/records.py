"""How the server's processes log: one bounded line per record on stderr, with the process that wrote it.

    record -> limits.py: may this place write again? -> Lines: nothing raw from clients -> Outlet: one write

Stdout and stderr are files, or pipes that never block (pipes.py). A line is one write of at most
LINE_BYTES, which such a pipe takes whole or not at all: a line that does not fit is dropped and counted, and nobody
waits for whoever reads the log. What is written here stands even if the process ends at once.
"""

import logging
import os
from typing import Any, Final

from foldserve.service.logs.limits import ALWAYS, Limits

__all__ = ["ALWAYS", "LINE_BYTES", "Lines", "Outlet", "configure_logging", "flush_logs", "tell"]

LINE_BYTES: Final = 4096
"""Linux's PIPE_BUF: what a pipe takes whole, newline included."""

_FORMAT: Final = "%(asctime)s %(levelname)-7s %(processName)s %(name)s: %(message)s"
_SHORT_BYTES: Final = 500
"""Of a record whose traceback is left out, because the like was written already."""
_INDENT: Final = "\n    | "
"""Begins the further lines of a record: a text in a traceback, which may hold what a client sent, begins no record."""
_STDOUT: Final = 1
_STDERR: Final = 2
# What the server stands on says at level info what ours says better; its warnings and errors are shown.
_QUIET: Final = ("litserve", "uvicorn", "asyncio")
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


def configure_logging(level: str) -> None:
    """Log this process's records of at least `level` ("info") to stderr, warnings of Python's among them."""
    outlet = Outlet(_STDERR, Limits())
    outlet.setFormatter(Lines(_FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[outlet], force=True)
    logging.captureWarnings(True)
    for name in _QUIET:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.DEBUG if level == "debug" else logging.WARNING)


def flush_logs() -> None:
    """Write what is held back, such as the count of records that were left out; for a process that is about to end."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def tell(text: str) -> None:
    """Print lines on stdout, for the eye: where they cannot be written, they are not."""
    outlet = Outlet(_STDOUT)
    for line in text.splitlines():
        outlet.write(bounded(line.translate(_CONTROL), LINE_BYTES - 1))


class Lines(logging.Formatter):
    """A record's text: its message on one line, its traceback on indented ones, whoever made them."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        record.message = record.getMessage()
        record.asctime = self.formatTime(record)
        text = self.formatMessage(record).translate(_CONTROL)
        if record.exc_info and record.exc_info[0] is not None:
            lines = self.formatException(record.exc_info).split("\n")
            text += "".join(_INDENT + line.translate(_CONTROL) for line in lines)
        return text


def bounded(text: str, nbytes: int) -> bytes:
    """The text as UTF-8 of at most so many bytes: of a longer one the beginning and the end."""
    data = text.encode(errors="backslashreplace")
    if len(data) <= nbytes:
        return data
    mark = f" ... {len(data)} bytes in all ... "
    tail = (nbytes - len(mark)) // 3
    head = nbytes - len(mark) - tail
    # A character that is cut in two is left out.
    return b"%b%b%b" % (
        *(data[:head].decode(errors="ignore").encode(), mark.encode()),
        data[len(data) - tail :].decode(errors="ignore").encode(),
    )


class Outlet(logging.Handler):
    """Writes each record to a descriptor in one piece, or drops and counts it. Raises nothing.

    limits: how many records a place in the code may write; None = all.
    """

    def __init__(self, fd: int, limits: Limits | None = None) -> None:
        super().__init__()
        self._fd = fd
        self._dropped = 0
        self._limits = limits
        if limits is not None:
            limits.summarise = self._summarise

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        nbytes = LINE_BYTES - 1
        if self._limits is not None:
            verdict = self._limits.admit(record)
            if verdict is None:
                return
            if verdict == "short":
                nbytes, record = _SHORT_BYTES, _without_traceback(record)
        try:
            text = self.format(record)
        except (
            Exception
        ) as error:  # arguments that do not fit the message: a fault of the caller's, not worth an end
            text = f"a log record of {record.name} cannot be written: {type(error).__name__}"
        self.write(bounded(text, nbytes))

    def write(self, line: bytes) -> None:
        """Write one line, and before it how many could not be written since the last one that could."""
        if self._dropped:
            note = b"%d lines of this process are missing here: nobody took them" % self._dropped
            if not self._put(note):
                self._dropped += 1
                return
            self._dropped = 0
        if not self._put(line):
            self._dropped += 1

    def flush(self) -> None:
        """See logging.Handler."""
        if self._limits is not None:
            self._limits.flush()

    def _put(self, line: bytes) -> bool:
        try:
            os.write(self._fd, line + b"\n")
        except OSError:  # full, closed, no space: whoever reads the log must not stop who writes it
            return False
        return True

    def _summarise(self, record: logging.LogRecord, text: str) -> None:
        summary = logging.makeLogRecord({**record.__dict__, "msg": text, "args": (), "exc_info": None})
        self.acquire()
        try:
            self.write(bounded(self.format(summary), LINE_BYTES - 1))
        finally:
            self.release()


def _without_traceback(record: logging.LogRecord) -> logging.LogRecord:
    short: dict[str, Any] = {**record.__dict__, "exc_info": None, "exc_text": None}
    return logging.makeLogRecord(short)
