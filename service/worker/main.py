"""A worker process: load every model on its device, then serve until its lifeline ends.

The instances run in threads (instance.py): ONNX Runtime and libtorch let go of the interpreter while they compute, so
many models share one process and one CUDA context. They load one after the other, and each model serves as soon as it
is loaded (loading_order.py). The main thread listens to the supervisor: which models are to be loaded or let go of
(models.py), whether it is alive, and, by the end of the pipe, that it is over.
"""

import os
import select
from dataclasses import dataclass
from typing import Final

from foldserve.service.host.processes import freeze_garbage
from foldserve.service.ipc.control import CONTROL_STRUCT, ControlMessage
from foldserve.service.ipc.handles import Handle, SharedMemory
from foldserve.service.ipc.resources import Transport
from foldserve.service.ipc.slots import slot_state
from foldserve.service.logs.lines import LogStyle
from foldserve.service.logs.records import flush_logs
from foldserve.service.metrics.recorder import Metrics, MetricsLayoutSpec
from foldserve.service.worker.model import WorkerParts
from foldserve.service.worker.models import WorkerModels
from foldserve.service.worker.ticket_consumer import WorkerMemory

_MESSAGES: Final = 64
"""Read at a time."""


@dataclass(frozen=True)
class WorkerIdentity:
    """Which worker this is: its index, the number it marks its slots with, and its lifeline."""

    index: int
    incarnation: int
    lifeline: Handle


@dataclass(frozen=True)
class WorkerPlan:
    """What every worker is given. writers: its metrics rows. per_device: how many workers share a device.

    load_limit_s: how long one model may take to load; None = no bound.
    """

    metrics_memory: SharedMemory
    metrics_spec: MetricsLayoutSpec
    writers: tuple[str, ...]
    log_style: LogStyle
    check_moves: bool
    per_device: int = 1
    load_limit_s: float | None = None


def serve(identity: WorkerIdentity, device: str, transport: Transport, plan: WorkerPlan) -> None:
    """Load, tell the parent, serve; does not return."""
    slot_state.checking = plan.check_moves
    metrics = Metrics.attach(plan.metrics_memory, plan.metrics_spec, plan.writers[identity.index])
    shared = WorkerMemory(
        identity.incarnation,
        identity.index,
        [arena.map().bytes for arena in transport.arenas],
        transport.board.map(),
        transport.models.map(),
        [pipe.writer.fd for pipe in transport.done],
    )
    worker = WorkerParts(device, transport, metrics, shared)
    models = WorkerModels(worker, shared.models, plan.load_limit_s, plan.per_device)

    def loaded() -> None:
        freeze_garbage()  # once: what loading left is never looked at again
        room = select.poll()  # not select.select, which takes no descriptor above 1023
        room.register(transport.reports.writer.fd, select.POLLOUT)
        while not transport.report(CONTROL_STRUCT.pack(ControlMessage.WORKER_READY, identity.index)):
            room.poll()

    models.load_held(loaded)
    while data := os.read(identity.lifeline.fd, CONTROL_STRUCT.size * _MESSAGES):
        for word, number in CONTROL_STRUCT.iter_unpack(data):
            if word == ControlMessage.MODEL_CHANGED:
                models.changed(number)
            else:
                shared.board.answer(True, identity.index)
    flush_logs()
    os._exit(0)
