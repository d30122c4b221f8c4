"""Puts pipes that never block in the place of stdout and stderr, for this process and all it starts.

    every process, C libraries too  -> fd 1, 2: pipes, O_NONBLOCK -> pump.py -> the real stdout and stderr

Where they are files, nothing is put in between: a write to a file does not wait for a reader, it succeeds or fails.

A stalled reader, a full disk or a closed pipe then costs lines, and stops nobody. A process of its own copies, so that
a line written by a process that ends at once is not lost, and no thread has to live through forks. The pipes' reading
ends are held here too: when the pump dies nobody gets EPIPE, and the next one goes on where it ended.
"""

import contextlib
import fcntl
import logging
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final

from foldserve.service.host.processes import open_standard_streams, stop_signals_blocked
from foldserve.service.logs.records import flush_logs

_log = logging.getLogger("foldserve.logs")

_STREAMS: Final = (1, 2)
_PIPE_BYTES: Final = 256 * 1024
"""What may wait while the pump is busy: a thousand lines or so. Less where the user is over the pipe quota."""
_END_S: Final = 2.0
"""How long the last lines may take at the end, and no longer: a reader that has stopped does not stop the end."""
_YOUNG_S: Final = 1.0
"""A pump that ends sooner is started again after such a pause."""
_PUMP: Final = Path(__file__).with_name("pump.py")


class LogPipes:
    """A context manager; entered once, before other processes are started, by the process that starts them."""

    def __enter__(self) -> "LogPipes":
        open_standard_streams()
        _flush()
        self._real = {fd: os.dup(fd) for fd in _STREAMS}
        waits = [fd for fd in _STREAMS if _may_wait(fd)]
        # Two that are one: through one pipe, so that no line gets into another.
        shared = os.path.samestat(*(os.fstat(fd) for fd in _STREAMS))
        pipes = {fd: _nonblocking_pipe() for fd in (waits[:1] if shared else waits)}
        self._sources = {fd: reader for fd, (reader, _) in pipes.items()}
        if pipes:
            self._start(0.0)
        for fd in waits:
            os.dup2(pipes[waits[0] if shared else fd][1], fd)
        for _, writer in pipes.values():
            os.close(writer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        flush_logs()
        _flush()
        for fd, real in self._real.items():
            os.dup2(real, fd)
            os.close(real)
        if not self.pumps:
            return
        os.close(self._control)
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for fd in (self._alive, *self._sources.values()):
            os.close(fd)

    @property
    def pumps(self) -> bool:
        """Whether there is a pump to look after."""
        return bool(self._sources)

    @property
    def pids(self) -> set[int]:
        """Of the pump, if there is one."""
        return {self._process.pid} if self._sources else set()

    def fileno(self) -> int:
        """Readable when the pump has ended; another one after each renew()."""
        return self._alive

    def renew(self) -> None:
        """Start another pump in the place of one that ended. Raises: OSError; then all is as before."""
        code = self._process.wait()
        gone = (self._control, self._alive)
        self._start(_YOUNG_S if time.monotonic() - self._started_s < _YOUNG_S else 0.0)
        for fd in gone:
            os.close(fd)
        _log.error("the process that writes the log ended with code %s, and was started again", code)

    def _start(self, pause_s: float) -> None:
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            alive, alive_writer = _pipe(ours, theirs)  # the pump alone holds the writing end
            control, control_reader = reversed(_pipe(theirs, ours))
            ways = [f"{source}={fd}" for fd, source in self._sources.items()]
            command = [sys.executable, "-I", "-S", str(_PUMP), str(os.getpid()), str(pause_s), *ways]
            self._started_s = time.monotonic()
            with stop_signals_blocked():
                self._process = subprocess.Popen(
                    command,
                    stdin=control_reader,
                    stdout=self._real[1],
                    stderr=self._real[2],
                    pass_fds=(alive_writer, *self._sources.values()),
                    cwd="/",
                )
            self._alive, self._control = alive, control
            ours.pop_all()


def _pipe(readers: contextlib.ExitStack, writers: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe, each end of which is closed with a stack."""
    reader, writer = os.pipe()
    readers.callback(os.close, reader)
    writers.callback(os.close, writer)
    return reader, writer


def _may_wait(fd: int) -> bool:
    """Whether a write may have to wait for somebody who reads: to a pipe, a socket, a terminal."""
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)


def _nonblocking_pipe() -> tuple[int, int]:
    """A pipe, as its reading and its writing end, whose writers never wait."""
    reader, writer = os.pipe()
    with contextlib.suppress(PermissionError):
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    os.set_blocking(writer, False)
    return reader, writer


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # full; closed; there is none
            stream.flush()
