"""A worker process: load every model on its device, then serve until its lifeline ends.

The instances run in threads (instance.py): ONNX Runtime and libtorch let go of the interpreter while they compute, so
many models share one process and one CUDA context. They load one after the other, and each model serves as soon as it
is loaded (loading_order.py). The main thread then waits for the lifeline.
"""

import gc
import logging
import os
import select
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from foldserve.service.backends import LoadError, SessionOptions
from foldserve.service.backends.base import DeviceLost, NoRoom
from foldserve.service.errors import new_error_id
from foldserve.service.host.processes import freeze_garbage
from foldserve.service.ipc.control import MESSAGE, Word
from foldserve.service.ipc.handles import Handle, SharedMemory
from foldserve.service.ipc.resources import Transport
from foldserve.service.ipc.scoreboard import READY, RETURNING, MappedBoard
from foldserve.service.ipc.slots import slot_state
from foldserve.service.ipc.slots.tensor_layout import Layout
from foldserve.service.ipc.ticket_queue import TicketReader
from foldserve.service.logs.records import ALWAYS, flush_logs
from foldserve.service.metrics.recorder import Metrics, Plan
from foldserve.service.repository.artifact import Artifact
from foldserve.service.repository.buckets import buckets_for
from foldserve.service.repository.index import ModelEntry
from foldserve.service.repository.loading import load_model
from foldserve.service.worker.batch_runner import BatchRunner
from foldserve.service.worker.batcher import InstanceLoop
from foldserve.service.worker.collect import Collector
from foldserve.service.worker.dequeue import Shared, Taker
from foldserve.service.worker.gate import DeviceGate, Gate
from foldserve.service.worker.instance import Instance, end_without_device, end_without_room
from foldserve.service.worker.loading_order import load_all
from foldserve.service.worker.times import BatchTimes
from foldserve.service.worker.turn import turn_of

_log = logging.getLogger("foldserve.worker")


@dataclass(frozen=True)
class Seat:
    """Which worker this is: its place, the number it marks its slots with, and its lifeline."""

    index: int
    serial: int
    lifeline: Handle


@dataclass(frozen=True)
class WorkerPlan:
    """What every worker is given. options: session options by model, threads settled. writers: its metrics rows.

    load_limit_s: how long one model may take to load; None = no bound.
    """

    entries: tuple[ModelEntry, ...]
    options: Mapping[str, SessionOptions]
    metrics_memory: SharedMemory
    metrics_plan: Plan
    writers: tuple[str, ...]
    log_level: str
    check_moves: bool
    load_limit_s: float | None = None


@dataclass(frozen=True)
class _Worker:
    """What loading a model needs of the worker it is loaded in."""

    seat: Seat
    device: str
    transport: Transport
    plan: WorkerPlan
    metrics: Metrics
    shared: Shared


def serve(seat: Seat, device: str, transport: Transport, plan: WorkerPlan) -> None:
    """Load, tell the parent, serve; does not return."""
    slot_state.checking = plan.check_moves
    metrics = Metrics.attach(plan.metrics_memory, plan.metrics_plan, plan.writers[seat.index])
    shared = Shared(
        seat.serial,
        seat.index,
        [arena.map().bytes for arena in transport.arenas],
        transport.board.map(),
        [pipe.writer.fd for pipe in transport.done],
    )
    worker = _Worker(seat, device, transport, plan, metrics, shared)
    lanes = [(entry, artifact) for entry in plan.entries for artifact in entry.artifacts]
    versions = []
    instances = 0
    for lane, (entry, artifact) in enumerate(lanes):
        versions.append(_Version(worker, lane, entry, artifact, instances))
        instances += entry.config.instances
    load_all(versions, plan.load_limit_s, side_by_side=device == "cpu")
    freeze_garbage()  # once: what loading left is never looked at again
    while not transport.report(MESSAGE.pack(Word.WORKER_READY, seat.index)):
        select.select([], [transport.reports.writer.fd], [])
    # All that the parent says to a worker is the question whether it is alive, until it says no more.
    while os.read(seat.lifeline.fd, MESSAGE.size):
        shared.board.answer(True, seat.index)
    flush_logs()
    os._exit(0)


class _Version:
    """One model version in this worker. Its lane is its place on the board and among the queues."""

    def __init__(
        self, worker: _Worker, lane: int, entry: ModelEntry, artifact: Artifact, first_instance: int = 0
    ) -> None:
        self._worker = worker
        self._first_instance = first_instance
        self._lane = lane
        self._entry = entry
        self._artifact = artifact
        self._name = (entry.name, artifact.version)
        board, index = worker.shared.board, worker.seat.index
        # On a CPU each instance has threads of its own; a device computes one batch at a time.
        shares_device = worker.device != "cpu" and entry.config.instances > 1
        self._gate = DeviceGate() if shares_device else Gate()
        self._layout = Layout(artifact.signature)
        self._ceiling = ModelCeiling(board, index, lane, artifact.max_batch_size)
        self._times = BatchTimes(board, index, lane)
        self._loaded: list[Instance] = []

    def load(self) -> None:
        """Load every instance, one after the other; none when one fails, and the board tells the reason."""
        worker, lane, index = self._worker, self._lane, self._worker.seat.index
        board = worker.shared.board
        started_s = time.monotonic()
        instances: list[Instance] = []
        remarks: list[str] = []
        problem = ""
        try:
            first = self._first_instance
            for number in range(first, first + self._entry.config.instances):
                instances.append(Instance(worker.device, partial(self._make, number)))
                remarks += instances[-1].wait_loaded()
        except DeviceLost as error:
            end_without_device(worker.device, error)
        except LoadError as error:
            if isinstance(error, NoRoom) and board.ready[index, lane] == RETURNING:
                end_without_room(worker.device, self._name, error)
            problem = error.shown_in(self._artifact.folder.parents[1])
            _log.error("model %s version %s is not served: %s", *(*self._name, str(error)), extra=ALWAYS)
        except Exception:
            error_id = new_error_id()
            _log.exception(
                "loading model %s version %s failed unexpectedly, error id %s",
                *(*self._name, error_id),
                extra=ALWAYS,
            )
            problem = f"loading failed unexpectedly; the server's log tells why, under error id {error_id}"
        board.write_note(index, lane, problem)
        if problem:
            board.ready[index, lane] = 0
            while instances:
                instances.pop().drop()
            gc.collect()  # an error holds its frames, and they a session's memory, which the next model may need
            return
        remarks = list(dict.fromkeys(remarks))  # of instances that run alike, one line
        for remark in remarks:
            _log.info("model %s version %s on %s: %s", *self._name, worker.device, remark, extra=ALWAYS)
        board.write_remarks(index, lane, remarks)
        worker.metrics.model_loaded(*self._name, time.monotonic() - started_s)
        self._loaded = instances

    def serve(self) -> None:
        """Let what is loaded serve until the process ends, and tell the board: ready means that requests are taken."""
        for instance in self._loaded:
            instance.serve()
        if self._loaded:
            self._worker.shared.board.ready[self._worker.seat.index, self._lane] = READY

    def give_up(self, limit_s: float) -> None:
        """It took too long: tell, drop what is loaded, and do not serve."""
        worker, board, index = self._worker, self._worker.shared.board, self._worker.seat.index
        problem = (
            f"loading took longer than {limit_s:g} s on {worker.device}, so it is not served; look at its file and its "
            "reference.npz, or set a longer --load-limit"
        )
        _log.error("model %s version %s: %s", *self._name, problem)
        board.ready[index, self._lane] = 0
        board.write_note(index, self._lane, problem)
        while self._loaded:
            self._loaded.pop().drop()

    def _make(self, instance: int) -> tuple[InstanceLoop, Sequence[str]]:
        """Load a session, and make the loop that it serves in. Returns: the loop, the session's notes."""
        worker, entry, artifact = self._worker, self._entry, self._artifact
        session = load_model(artifact, entry.config, worker.device, worker.plan.options[entry.name])
        queue, shared = worker.transport.queues[self._lane], worker.shared
        taker = Taker(shared, self._lane, instance)
        collector = Collector(
            TicketReader(queue),
            turn_of(queue, shared.board, self._lane),
            taker,
            int(entry.config.max_queue_delay_s * 1e9),
            self._times.run_ns,
        )
        runner = BatchRunner(
            entry.name,
            worker.device,
            session,
            self._layout,
            worker.shared,
            instance,
            artifact.max_batch_size,
            buckets_for(worker.device, entry.config.batch_buckets, artifact.max_batch_size),
            partial(worker.metrics.retried, *self._name),
            partial(self._ceiling.moved, instance),
        )
        loop = InstanceLoop(self._name, taker, collector, runner, self._gate, self._times, worker.metrics)
        return loop, session.notes


class ModelCeiling:
    """Shows on the board the lowest of the ceilings that a model's instances in this worker have. Thread-safe."""

    def __init__(self, board: MappedBoard, worker: int, lane: int, max_batch_size: int) -> None:
        self._cells = board.ceiling_rows
        self._place = (worker, lane)
        self._max_batch_size = max_batch_size
        self._of: dict[int, int] = {}
        self._lock = threading.Lock()

    def moved(self, instance: int, rows: int) -> None:
        """An instance's ceiling fell or rose to `rows`."""
        with self._lock:
            self._of[instance] = rows
            lowest = min(self._of.values())
            self._cells[self._place] = lowest if lowest < self._max_batch_size else 0
