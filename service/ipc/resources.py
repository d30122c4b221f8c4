"""All shared memory and pipes of one server, made by the parent before any other process exists."""

import contextlib
import fcntl
import os
from dataclasses import dataclass
from typing import Final

from foldserve.service.ipc.handles import Handle
from foldserve.service.ipc.model_table import ModelTable
from foldserve.service.ipc.records import DONE
from foldserve.service.ipc.region_table import RegionTable
from foldserve.service.ipc.scoreboard import Dimensions, Scoreboard
from foldserve.service.ipc.slots.arena import Arena
from foldserve.service.ipc.ticket_queue import TicketQueue


@dataclass(frozen=True)
class Sizes:
    """What an API server's arena holds. slots: requests in flight; data_bytes: their inputs and outputs."""

    slots: int
    data_bytes: int


class Pipe:
    """An anonymous pipe whose two ends go to different processes."""

    def __init__(self, capacity_bytes: int) -> None:
        read_fd, write_fd = os.pipe()
        # The user may be over the pipe quota (pipe(7)): writers then wait for their reader now and then.
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, capacity_bytes)
        self.reader, self.writer = Handle(read_fd), Handle(write_fd)


class Transport:
    """Arenas and done pipes by API server, the model table and a queue for each of its rows, the scoreboard, the pipe
    of reports to the parent, and, where it is on, the table of clients' shared memory.

    Picklable while a worker is being spawned; inherited by forked API servers.
    """

    def __init__(self, dimensions: Dimensions, sizes: Sizes, *, client_shared_memory: bool = False) -> None:
        self.dimensions = dimensions
        self.regions = RegionTable() if client_shared_memory else None
        self.board = Scoreboard(dimensions)
        self.arenas = [Arena(index, sizes.slots, sizes.data_bytes) for index in range(dimensions.api_servers)]
        # Room for a record of every slot, so that a worker never waits for an API server that is slow or stopped.
        # Twice: a write that does not fit into what is left of a page begins a new one, and pages may be half empty.
        capacity = 1 << (max(sizes.slots * DONE.itemsize * 2, 4096) - 1).bit_length()
        self.done = [Pipe(capacity) for _ in self.arenas]
        for pipe in self.done:
            os.set_blocking(pipe.reader.fd, False)
        self.models = ModelTable(dimensions.models)
        self.queues = [TicketQueue(dimensions.levels) for _ in range(dimensions.models)]
        self.reports = Pipe(_REPORT_BYTES)
        os.set_blocking(self.reports.writer.fd, False)  # a supervisor that is stopped must stop nobody else

    def report(self, message: bytes) -> bool:
        """Send it to the parent; False when its pipe is full: what has to arrive is sent again."""
        with contextlib.suppress(BlockingIOError):
            os.write(self.reports.writer.fd, message)
            return True
        return False


_REPORT_BYTES: Final = 4096
