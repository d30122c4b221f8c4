"""The helper, as its API server holds it: started when it is needed, spoken to over a socket, reaped when it is gone.

Owned by the event loop thread; nothing here blocks. Knows no jobs: what is said, and what to do when the process dies,
is client.py's.
"""

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
from collections.abc import Callable
from typing import Final

from foldserve.service.engine.codec_process import helper, messages
from foldserve.service.engine.codec_process.messages import CodecPlan
from foldserve.service.host.processes import stop_signals_blocked
from foldserve.service.ipc.handles import pickled_for_exec

_log = logging.getLogger("foldserve.codecs")

_ENVIRONMENT: Final = {
    "OPENBLAS_NUM_THREADS": "1",  # it computes on one core
    # What a picture is decoded into is as large each time. glibc would give it back to the system each time, and a
    # quarter of the decoding be page faults.
    "MALLOC_MMAP_THRESHOLD_": str(8 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(32 * 2**20),
}


class Helper:
    """The process of one API server, or its place while there is none.

    Args:
        plan: what it is given when it starts.
        arena_fd: the arena's memory.
        on_message: called with each message of it.
        on_exit: called when it is gone, after its last message.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        plan: CodecPlan,
        arena_fd: int,
        on_message: Callable[[bytes], None],
        on_exit: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._plan = plan
        self._arena_fd = arena_fd
        self._on_message = on_message
        self._on_exit = on_exit
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    def __repr__(self) -> str:
        return f"<Helper {self.pid}>"

    @property
    def pid(self) -> int | None:
        """The process, when there is one."""
        return None if self._process is None else self._process.pid

    def order(self, message: bytes) -> None:
        """Send it, to a new process where there is none.

        Raises: OSError: it cannot be started (`pid` is None then), or it died this moment and on_exit comes next.
        """
        channel = self._channel or self._start()
        channel.send(message)

    def tell(self, message: bytes) -> None:
        """Send the answer to what it asked. Nothing happens if it died this moment: on_exit comes next."""
        channel = self._channel
        assert channel is not None
        with contextlib.suppress(OSError):
            channel.send(message)

    def kill(self) -> None:
        """End it at once; on_exit comes when it is gone."""
        if self._process is not None:
            self._process.kill()

    def _start(self) -> socket.socket:
        """Start the process. Raises: OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        plan_fd = os.memfd_create("foldserve-codecs", os.MFD_CLOEXEC)
        try:
            plan, plan_fds = pickled_for_exec(self._plan)
            with open(plan_fd, "wb", closefd=False) as file:
                file.write(plan)
            os.lseek(plan_fd, 0, os.SEEK_SET)
            fds = (theirs.fileno(), plan_fd, self._arena_fd)
            with stop_signals_blocked():
                process = subprocess.Popen(
                    helper.arguments(os.getpid(), *fds),
                    stdin=subprocess.DEVNULL,
                    pass_fds=(*fds, *plan_fds),
                    env={**os.environ, **_ENVIRONMENT},
                )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(plan_fd)
        ours.setblocking(False)
        self._process, self._channel = process, ours
        self._loop.add_reader(ours.fileno(), self._receive)
        return ours

    def _receive(self) -> None:
        channel = self._channel
        assert channel is not None
        try:
            packet = channel.recv(messages.PACKET_BYTES)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if packet:
            self._on_message(packet)
        else:
            self._reap()

    def _reap(self) -> None:
        """It is gone.

        A dying process lets go of its memory before its descriptors: who sees this end of the socket close knows that
        nothing of the arena will be touched any more.
        """
        process, channel = self._process, self._channel
        assert process is not None
        assert channel is not None
        self._loop.remove_reader(channel.fileno())
        channel.close()
        process.kill()  # it may have closed the socket itself, on its way out after a fault
        code = process.wait()
        self._process = self._channel = None
        _log.warning("the codec process %d ended with code %d", process.pid, code)
        self._on_exit()
