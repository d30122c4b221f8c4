"""A worker process: load every model on its device, then serve until its lifeline ends.

The instances run in threads: ONNX Runtime and libtorch let go of the interpreter while they compute, so many
models share one process and one CUDA context. The main thread waits for the lifeline.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from service.backends import LoadError, SessionOptions
from service.loading import load_model
from service.metrics import Metrics, Plan
from service.repository import ModelEntry
from service.supervisor import MESSAGE, Word
from service.transport.board import READY
from service.transport.handles import Handle, SharedMemory
from service.transport.layout import Layout
from service.transport.queues import QueueLock, TicketReader
from service.transport.transport import Transport
from service.worker.loop import Averages, InstanceLoop
from service.worker.run import BatchRunner
from service.worker.take import Shared, Taker

_log = logging.getLogger("foldserve.worker")
_BROKEN = 70
"""Exit code after a fault in an instance's loop (EX_SOFTWARE): the supervisor starts a new worker."""


@dataclass(frozen=True)
class Seat:
    """Which worker this is: its place, the number it marks its slots with, and its lifeline."""

    index: int
    serial: int
    lifeline: Handle


@dataclass(frozen=True)
class WorkerPlan:
    """What every worker is given. options: session options by model, threads settled. writers: its metrics rows."""

    entries: tuple[ModelEntry, ...]
    options: Mapping[str, SessionOptions]
    metrics_memory: SharedMemory
    metrics_plan: Plan
    writers: tuple[str, ...]
    log_level: str


def serve(seat: Seat, device: str, transport: Transport, plan: WorkerPlan) -> None:
    """Load, tell the parent, serve; does not return."""
    metrics = Metrics.attach(plan.metrics_memory, plan.metrics_plan, plan.writers[seat.index])
    board = transport.board.map()
    shared = Shared(
        seat.serial,
        seat.index,
        [arena.map().bytes for arena in transport.arenas],
        board,
        [pipe.writer.fd for pipe in transport.done],
    )
    loops: list[InstanceLoop] = []
    lanes = [(entry, artifact) for entry in plan.entries for artifact in entry.artifacts]
    for lane, (entry, artifact) in enumerate(lanes):
        started_s = time.monotonic()
        model = (entry.name, artifact.version)
        try:
            sessions = [
                load_model(artifact, entry.config, device, plan.options[entry.name])
                for _ in range(entry.config.instances)
            ]
        except LoadError as error:
            _log.error("model %s version %s is not served: %s", *model, error)
            board.write_note(seat.index, lane, str(error))
            board.ready[seat.index, lane] = 0
            continue
        except Exception as error:
            _log.exception("loading model %s version %s failed unexpectedly", *model)
            board.write_note(seat.index, lane, f"loading failed unexpectedly: {error!r}; the log tells more")
            continue
        lock = QueueLock(transport.queues[lane])
        layout = Layout(artifact.signature)
        for session in sessions:
            taker = Taker(TicketReader(transport.queues[lane], lock), shared, len(loops))
            runner = BatchRunner(
                entry.name,
                session,
                layout,
                shared,
                len(loops),
                artifact.max_batch_size,
                entry.config.batch_buckets,
                partial(metrics.retried, *model),
            )
            loops.append(
                InstanceLoop(
                    model,
                    taker,
                    runner,
                    entry.config.max_queue_delay_s,
                    Averages(board, seat.index, lane),
                    metrics,
                )
            )
        board.write_note(seat.index, lane, "")
        board.ready[seat.index, lane] = READY
        metrics.model_loaded(*model, time.monotonic() - started_s)
    for loop in loops:
        threading.Thread(target=_run, args=(loop,), daemon=True).start()
    os.write(transport.reports.writer.fd, MESSAGE.pack(Word.WORKER_READY, seat.index))
    while os.read(seat.lifeline.fd, 1):
        pass
    os._exit(0)


def _run(loop: InstanceLoop) -> None:
    try:
        loop.run_forever()
    except BaseException:
        # What the loop held must not stay held for ever: a death is what the API servers recover from.
        _log.critical("an instance's loop broke; the worker ends", exc_info=True)
        os._exit(_BROKEN)
