"""GET /metrics in an API server: asks the exporter process, and passes on what it writes.

Concurrent scrapes share one exposition: whoever comes while one is written gets the next, so that what was counted
before a scrape is in it. Owned by the event loop. What is written: exporter.py.
"""

import asyncio
import contextlib
import errno
import logging
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from prometheus_client.exposition import choose_encoder

from foldserve.service.errors import MetricsUnavailable
from foldserve.service.ipc.handles import pickled_for_exec
from foldserve.service.metrics.counts import ModelCounts, read_counts
from foldserve.service.metrics.exporter import COUNTS, FORMATS, LENGTH_BYTES, ExporterPlan

_log = logging.getLogger("foldserve.scrapes")
_T = TypeVar("_T")

ANSWER_S: Final = 10.0
"""How long a scrape may take: Prometheus waits no longer."""
START_S: Final = 60.0
"""How long the process may take to start and to answer for the first time; scrapes do not wait for that."""


class _Exporter(NamedTuple):
    """ours: this end of its stdin. plan: what it is sent first."""

    process: subprocess.Popen[bytes]
    ours: socket.socket
    plan: bytes


class Scrapes:
    """Answers scrapes; starts the exporter at the first one, and again when it has ended or gives no answer."""

    def __init__(self, plan: ExporterPlan, answer_s: float = ANSWER_S) -> None:
        self._plan = plan
        self._answer_s = answer_s
        self._lock = asyncio.Lock()
        self._next: dict[bytes, asyncio.Task[bytes]] = {}
        """By format, the exposition that has not begun."""
        self._exporter: _Exporter | None = None

    async def __call__(self, accept: str) -> tuple[bytes, str]:
        """The body and its content type for a scraper's Accept header. Raises: MetricsUnavailable."""
        _, content_type = choose_encoder(accept)
        return await self._shared(b"o" if content_type.startswith(FORMATS[b"o"]) else b"t"), content_type

    async def counts(self) -> dict[tuple[str, str], ModelCounts]:
        """What was counted, by model and version. Raises: MetricsUnavailable."""
        return read_counts(await self._shared(COUNTS))

    async def _shared(self, wanted: bytes) -> bytes:
        """What is written for all who ask for it meanwhile."""
        task = self._next.get(wanted)
        if task is None:
            task = self._next[wanted] = asyncio.create_task(self._exposition(wanted))
            task.add_done_callback(_take_note)
        try:
            async with asyncio.timeout(self._answer_s):
                return await asyncio.shield(task)
        except TimeoutError:
            raise MetricsUnavailable(
                f"the metrics were not written within {self._answer_s:g} s; ask again: the process that does it may "
                "be starting, and one that hangs is replaced"
            ) from None

    async def _exposition(self, wanted: bytes) -> bytes:
        async with self._lock:
            del self._next[wanted]  # whoever comes from here on is to see what is counted from here on
            while True:
                fresh = self._exporter is None
                try:
                    async with asyncio.timeout(START_S if fresh else self._answer_s):
                        return await self._ask(wanted)
                except (OSError, EOFError) as error:  # it ended, or the time is over
                    _log.error("the process that writes the metrics is ended: %r", error)
                    await self.close()
                    if fresh:
                        raise MetricsUnavailable(
                            "the process that writes the metrics cannot be started; the server's log says more: ask "
                            "again later"
                        ) from None

    async def _ask(self, wanted: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        if self._exporter is None:
            self._exporter = await _in_thread(self._start)
            data = self._exporter.plan
            await loop.sock_sendall(self._exporter.ours, len(data).to_bytes(LENGTH_BYTES, "little") + data)
        ours = self._exporter.ours
        await loop.sock_sendall(ours, wanted)
        length = await _receive(ours, LENGTH_BYTES)
        return bytes(await _receive(ours, int.from_bytes(length, "little")))

    def _start(self) -> _Exporter:
        """Start the process."""
        data, fds = pickled_for_exec(self._plan)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            # -P: what lies in the working folder is no module of ours.
            command = [sys.executable, "-P", "-m", "foldserve.service.metrics.exporter"]
            process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, pass_fds=fds
            )
        return _Exporter(process, ours, data)

    async def close(self) -> None:
        """End the process, if there is one; the next scrape starts another."""
        if self._exporter is None:
            return
        process, ours, _ = self._exporter
        self._exporter = None
        ours.close()
        process.kill()
        with contextlib.suppress(OSError):  # no thread can be had: it is buried when the next is started
            await _in_thread(process.wait)


async def _in_thread(what: Callable[[], _T]) -> _T:
    """Call something that blocks. Raises: OSError also when the limit on processes allows no thread."""
    loop = asyncio.get_running_loop()
    try:
        future = loop.run_in_executor(None, what)
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, str(error)) from error
    return await future


async def _receive(source: socket.socket, nbytes: int) -> bytearray:
    loop = asyncio.get_running_loop()
    data = bytearray(nbytes)
    left = memoryview(data)
    while left:
        count = await loop.sock_recv_into(source, left)
        if not count:
            raise EOFError("it ended")
        left = left[count:]
    return data


def _take_note(task: "asyncio.Task[bytes]") -> None:
    """All who waited may have left: then nobody asks after its error, and that is no fault."""
    if not task.cancelled():
        task.exception()
