"""A program: the process that writes what GET /metrics answers, one for each API server that was ever scraped.

    scrapes.py (API server)  -- one byte: which format -->  this process  -- length, body -->  scrapes.py

Writing twenty thousand lines takes the interpreter for tens of milliseconds. In a thread of the API server that would
stop the event loop as often; here it stops nobody: all numbers lie in shared memory, which is mapped. A child of its
API server, so that nobody else has to know of it: it ends when the other end of its stdin does, and the API server
starts another when it is gone. It sleeps between scrapes.
"""

import contextlib
import multiprocessing
import os
import pickle
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from foldserve.service.host.processes import freeze_garbage
from foldserve.service.ipc.handles import SharedMemory
from foldserve.service.ipc.model_table import MappedModelTable, ModelTable
from foldserve.service.ipc.scoreboard import READY, MappedScoreboard, Scoreboard
from foldserve.service.ipc.slots.arena import Arena, MappedArena
from foldserve.service.ipc.slots.slot_counts import count_slots
from foldserve.service.logs.lines import LogStyle
from foldserve.service.logs.records import configure_logging
from foldserve.service.metrics.device import DeviceMetrics
from foldserve.service.metrics.exposition import Exposition, LiveGauges
from foldserve.service.metrics.recorder import Metrics, MetricsLayoutSpec

LENGTH_BYTES: Final = 8
_NICE: Final = 10
"""Once it has started: requests go before scrapes where cores are short."""
FORMATS: Final = {b"t": "", b"o": "application/openmetrics-text"}
"""What is asked for, and the Accept header that means it."""
COUNTS: Final = b"c"
"""What is asked for to compute with: counts.py."""


@dataclass(frozen=True)
class ExporterPlan:
    """What the process is given. Picklable by handles.pickled_for_exec(), with the memory that it names.

    uuids: see device.py. supervisor_pid: whose process tree is the server.
    """

    metrics_memory: SharedMemory
    metrics_spec: MetricsLayoutSpec
    arenas: Sequence[Arena]
    board: Scoreboard
    models: ModelTable
    uuids: Mapping[str, str]
    supervisor_pid: int
    log_style: LogStyle

    def exposition(self) -> Exposition:
        """What answers scrapes, over this process's view of the memory."""
        metrics = Metrics.attach(self.metrics_memory, self.metrics_spec, self.metrics_spec.writers[0])
        arenas = [arena.map() for arena in self.arenas]
        board, models = self.board.map(), self.models.map()
        return Exposition(
            metrics,
            models,
            lambda: live_gauges(arenas, board, models),
            self.supervisor_pid,
            DeviceMetrics(self.uuids).families,
        )


def live_gauges(
    arenas: Sequence[MappedArena], board: MappedScoreboard, models: MappedModelTable
) -> LiveGauges:
    """What is waiting, in flight, ready and below its batch limit now."""
    rows = range(models.capacity)
    workers = range(board.dimensions.workers)
    counts = count_slots(arenas, models)
    return LiveGauges(
        counts.queued_rows.tolist(),
        counts.requests.tolist(),
        [float(any(board.ready[worker, row] == READY for worker in workers)) for row in rows],
        [float(board.lowest_batch_limit_rows(row) or models.max_batch_size[row]) for row in rows],
    )


def main(asked: socket.socket) -> None:
    """Answer until the API server is gone."""
    length = int.from_bytes(_receive(asked, LENGTH_BYTES), "little")
    plan: ExporterPlan = pickle.loads(_receive(asked, length))  # from the process that started this one
    multiprocessing.current_process().name = "exporter"
    configure_logging(plan.log_style)
    exposition = plan.exposition()
    freeze_garbage()
    os.nice(_NICE)
    while wanted := asked.recv(1):
        body = exposition.counts() if wanted == COUNTS else exposition(FORMATS[wanted])[0]
        asked.sendall(len(body).to_bytes(LENGTH_BYTES, "little"))
        asked.sendall(body)


def _receive(asked: socket.socket, nbytes: int) -> bytes:
    data = asked.recv(nbytes, socket.MSG_WAITALL)
    if len(data) < nbytes:
        raise EOFError
    return data


if __name__ == "__main__":
    with (
        contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError),
        socket.socket(fileno=0) as ours,
    ):
        main(ours)
