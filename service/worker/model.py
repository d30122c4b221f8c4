"""One model version in a worker: loads its instances, lets them serve, ends them when it is unloaded."""

import gc
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from foldserve.service.backends import LoadError
from foldserve.service.backends.base import DeviceLost, InsufficientMemory, SessionOptions
from foldserve.service.errors import new_error_id
from foldserve.service.ipc.model_table import ModelKey
from foldserve.service.ipc.resources import Transport
from foldserve.service.ipc.scoreboard import READY, RESTARTING, MappedScoreboard
from foldserve.service.ipc.slots.tensor_layout import TensorLayout
from foldserve.service.ipc.ticket_queue import TicketReader
from foldserve.service.logs.records import ALWAYS
from foldserve.service.metrics.recorder import Metrics
from foldserve.service.repository.buckets import buckets_for
from foldserve.service.repository.loading import load_model
from foldserve.service.repository.model_version import ModelVersion
from foldserve.service.worker.ageing import Ageing
from foldserve.service.worker.batcher import Batcher
from foldserve.service.worker.batches.batch_runner import BatchRunner
from foldserve.service.worker.device_gate import DeviceGate, Gate
from foldserve.service.worker.instance import Instance, end_without_device, end_without_room
from foldserve.service.worker.instance_loop import InstanceLoop
from foldserve.service.worker.ticket_consumer import TicketConsumer, WorkerMemory
from foldserve.service.worker.times import BatchTimes
from foldserve.service.worker.turn import turn_of

_log = logging.getLogger("foldserve.worker")


@dataclass(frozen=True)
class WorkerParts:
    """What every model of a worker needs of it."""

    device: str
    transport: Transport
    metrics: Metrics
    shared: WorkerMemory


class LoadedModel:
    """One version, from before it is loaded until it is unloaded. Thread-safe.

    Args:
        key: its row of the model table, which is its index on the scoreboard and among the queues.
        options: of its sessions, threads settled.
        numbers: for each instance, its index on the scoreboard.
    """

    def __init__(
        self,
        worker: WorkerParts,
        key: ModelKey,
        version: ModelVersion,
        options: SessionOptions,
        numbers: Sequence[int],
    ) -> None:
        self.key = key
        self.numbers = numbers
        self._worker = worker
        self._config, self._artifact = version.config, version.artifact
        self._options = options
        self._name = (key.model, key.version)
        board, index = worker.shared.board, worker.shared.worker
        # On a CPU each instance has threads of its own; a device computes one batch at a time.
        shares_device = worker.device != "cpu" and len(numbers) > 1
        self._gate = DeviceGate() if shares_device else Gate()
        self._layout = TensorLayout(self._artifact.signature)
        self._batch_limit = ModelBatchLimit(board, index, key.row, self._artifact.max_batch_size)
        self._times = BatchTimes(board, index, key.row)
        self._lock = threading.Lock()
        self._wanted = True
        self._loaded: list[Instance] = []

    def __repr__(self) -> str:
        wanted = "" if self._wanted else ", to be unloaded"
        return (
            f"<LoadedModel {self.key.model}/{self.key.version} in row {self.key.row}.{self.key.generation} on "
            f"{self._worker.device}: {len(self._loaded)} of {len(self.numbers)} instances loaded{wanted}>"
        )

    def load(self) -> None:
        """Load every instance, one after the other; none when one fails; the scoreboard has the reason."""
        worker = self._worker
        started_s = time.monotonic()
        instances: list[Instance] = []
        notes: list[str] = []
        problem = ""
        try:
            for number in self.numbers:
                instances.append(Instance(worker.device, partial(self._make, number)))
                notes += instances[-1].wait_loaded()
        except DeviceLost as error:
            end_without_device(worker.device, error)
        except LoadError as error:
            if isinstance(error, InsufficientMemory) and self._ready() == RESTARTING:
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
            problem = f"loading failed unexpectedly; the server's log says why, under error id {error_id}"
        if problem:
            drop(instances)
            gc.collect()  # an error holds its frames, and they a session's memory, which the next model may need
            self.cannot_serve(problem)
            return
        notes = list(dict.fromkeys(notes))  # of instances that run alike, one line
        for note in notes:
            _log.info("model %s version %s on %s: %s", *self._name, worker.device, note, extra=ALWAYS)
        with self._lock:
            self._loaded = instances
            if self._wanted:
                board = worker.shared.board
                board.write_load_error(worker.shared.worker, self.key.row, "")
                board.write_notes(worker.shared.worker, self.key.row, notes)
                worker.metrics.model_loaded(self.key.row, time.monotonic() - started_s)

    def serve(self) -> None:
        """Let what is loaded serve, and tell the scoreboard: ready means that requests are taken."""
        with self._lock:
            if not self._wanted:
                drop(self._loaded)
                return
            for instance in self._loaded:
                instance.serve()
            if self._loaded:
                self._set_ready(READY)

    def give_up(self, limit_s: float) -> None:
        """It took too long: tell, drop what is loaded, and do not serve."""
        problem = (
            f"loading took longer than {limit_s:g} s on {self._worker.device}, so it is not served; look at its file "
            "and its reference.npz, or set a longer --load-limit"
        )
        _log.error("model %s version %s: %s", *self._name, problem)
        self.cannot_serve(problem)
        with self._lock:
            drop(self._loaded)

    def cannot_serve(self, problem: str) -> None:
        """Tell the scoreboard why not, unless nobody asks any more."""
        with self._lock:
            if self._wanted:
                self._set_ready(0)
                self._worker.shared.board.write_load_error(self._worker.shared.worker, self.key.row, problem)

    def unload(self) -> None:
        """End its instances, which see in the table that they are to; what is being loaded is dropped when it is."""
        with self._lock:
            self._wanted = False
            serving, self._loaded = (self._loaded, []) if self._ready() == READY else ([], self._loaded)
            self._set_ready(0)
            self._worker.metrics.model_loaded(self.key.row, 0.0)
        for instance in serving:
            instance.wait_ended()
        gc.collect()

    def _ready(self) -> int:
        return self._worker.shared.board.ready[self._worker.shared.worker, self.key.row]

    def _set_ready(self, ready: int) -> None:
        self._worker.shared.board.ready[self._worker.shared.worker, self.key.row] = ready

    def _make(self, number: int) -> tuple[InstanceLoop, Sequence[str]]:
        """Load a session, and make the loop that it serves in. Returns: the loop, the session's notes."""
        worker, config, artifact, row = self._worker, self._config, self._artifact, self.key.row
        session = load_model(artifact, config, worker.device, self._options)
        queue, shared = worker.transport.queues[row], worker.shared
        readers = config.instances * worker.transport.dimensions.workers
        consumer = TicketConsumer(shared, row, self.key.generation, number)
        runner = BatchRunner(
            self.key.model,
            worker.device,
            session,
            self._layout,
            shared,
            number,
            artifact.max_batch_size,
            buckets_for(worker.device, config.batch_buckets, artifact.max_batch_size),
            partial(worker.metrics.retried, row),
            partial(self._batch_limit.moved, number),
        )
        levels, age_ns = config.queue.priority_levels, int(config.queue.priority_age_s * 1e9)
        batcher = Batcher(
            TicketReader(queue, levels),
            turn_of(queue, shared.board, row, readers),
            consumer,
            int(config.max_queue_delay_s * 1e9),
            self._times.run_ns,
            runner.bucket,
            levels,
            age_ns,
        )
        parts = (consumer, batcher, runner, self._gate, self._times, worker.metrics)
        return InstanceLoop(row, *parts, Ageing(levels, age_ns), levels), session.notes


def drop(instances: list[Instance]) -> None:
    """End instances that do not serve."""
    while instances:
        instances.pop().drop()


class ModelBatchLimit:
    """Shows on the scoreboard the lowest batch limit of a model's instances in this worker. Thread-safe."""

    def __init__(self, board: MappedScoreboard, worker: int, row: int, max_batch_size: int) -> None:
        self._cells = board.batch_limit_rows
        self._place = (worker, row)
        self._max_batch_size = max_batch_size
        self._of: dict[int, int] = {}
        self._lock = threading.Lock()

    def moved(self, instance: int, rows: int) -> None:
        """An instance's batch limit fell or rose to `rows`."""
        with self._lock:
            self._of[instance] = rows
            lowest = min(self._of.values())
            self._cells[self._place] = lowest if lowest < self._max_batch_size else 0
