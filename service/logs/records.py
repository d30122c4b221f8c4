"""How the server's processes log: one bounded line per record on stderr, with the process that wrote it.

    record -> limits.py: may this place write again? -> lines.py: nothing raw from clients -> Outlet: one write

Stdout and stderr are files, or pipes that never block (pipes.py). A line is one write of at most
LINE_BYTES, which such a pipe takes whole or not at all: a line that does not fit is dropped and counted, and nobody
waits for whoever reads the log. What is written here stands even if the process ends at once.
"""

import logging
import os
from typing import Any, Final

from foldserve.service.logs.limits import ALWAYS, Limits
from foldserve.service.logs.lines import FORMATTERS, LINE_BYTES, Lines, LogStyle, bounded, without_control

__all__ = ["ALWAYS", "LogStyle", "Outlet", "configure_logging", "flush_logs", "print_lines"]

_SHORT_BYTES: Final = 500
"""Of a record whose traceback is left out, because the like was written already."""
_STDOUT: Final = 1
_STDERR: Final = 2
# What the server stands on says at level info what ours says better; its warnings and errors are shown.
_QUIET: Final = ("litserve", "uvicorn", "asyncio")


def configure_logging(style: LogStyle) -> None:
    """Log this process's records to stderr, warnings of Python's among them."""
    outlet = Outlet(_STDERR, FORMATTERS[style.format](), Limits())
    logging.basicConfig(level=style.level.upper(), handlers=[outlet], force=True)
    logging.captureWarnings(True)
    for name in _QUIET:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.DEBUG if style.level == "debug" else logging.WARNING)


def flush_logs() -> None:
    """Write what is held back, such as the count of records that were left out; for a process that is about to end."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def print_lines(text: str) -> None:
    """Print lines on stdout, for the eye: where they cannot be written, they are not."""
    outlet = Outlet(_STDOUT)
    for line in text.splitlines():
        outlet.write(bounded(without_control(line), LINE_BYTES - 1))


class Outlet(logging.Handler):
    """Writes each record to a descriptor in one piece, or drops and counts it. Raises nothing.

    lines: what a record looks like. limits: how many records a place in the code may write; None = all.
    """

    def __init__(self, fd: int, lines: Lines | None = None, limits: Limits | None = None) -> None:
        super().__init__()
        self._fd = fd
        self._lines = lines or Lines()
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
            line = self._lines.line(record, nbytes)
        except (
            Exception
        ) as error:  # arguments that do not fit the message: a fault of the caller's, not worth an end
            record = logging.makeLogRecord({**record.__dict__, "args": (), "exc_info": None})
            record.msg = f"a log record of {record.name} cannot be written: {type(error).__name__}"
            line = self._lines.line(record, nbytes)
        self.write(line)

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
            self.write(self._lines.line(summary, LINE_BYTES - 1))
        finally:
            self.release()


def _without_traceback(record: logging.LogRecord) -> logging.LogRecord:
    short: dict[str, Any] = {**record.__dict__, "exc_info": None, "exc_text": None}
    return logging.makeLogRecord(short)
