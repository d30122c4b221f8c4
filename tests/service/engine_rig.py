"""The engine's real parts in one process: an API server's dispatcher and workers' loops over real shared memory.

Workers are turned by hand, so that each can be stopped at any point, as by a death: what it did until then stays in
the shared memory, and nothing of it comes afterwards.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.engine.admission import Bounds
from foldserve.service.engine.dispatcher import Dispatcher
from foldserve.service.engine.model_queue import ModelQueue
from foldserve.service.engine.recovery import LostTickets, retry_held
from foldserve.service.engine.request import PendingRequest
from foldserve.service.errors import ServiceError
from foldserve.service.ipc.resources import Sizes, Transport
from foldserve.service.ipc.scoreboard import Dimensions
from foldserve.service.ipc.slots.tensor_layout import TensorLayout
from foldserve.service.ipc.ticket_queue import TicketReader, TicketWriter
from foldserve.service.repository.model_version import read_version
from foldserve.service.worker.ageing import Ageing
from foldserve.service.worker.batcher import Batcher
from foldserve.service.worker.batches.batch_runner import BatchRunner
from foldserve.service.worker.device_gate import Gate
from foldserve.service.worker.instance_loop import InstanceLoop
from foldserve.service.worker.ticket_consumer import TicketConsumer, WorkerMemory
from foldserve.service.worker.times import BatchTimes
from foldserve.service.worker.turn import turn_of
from tests.service.repositories import model_version

FIXED = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),))
"""y = x + 1."""
DYNAMIC = Signature((TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", (-1, -1)),))
"""The same, for rows of any length."""

MINUTE_NS = 60 * 10**9


class WorkerKilled(BaseException):
    """Raised where a worker is to die: nothing in the engine catches it."""


class RecordedRequest(PendingRequest):
    """A request whose end is noted."""

    def __init__(self, queue: ModelQueue, x: np.ndarray) -> None:
        super().__init__(queue)
        self.x = x
        self.ends: list[ServiceError | None] = []
        self.y: np.ndarray | None = None
        self.dispatcher: Dispatcher | None = None

    @property
    def request_id(self) -> str:
        return "asked"

    def completed(self, error: ServiceError | None) -> None:
        self.ends.append(error)
        if error is None:
            assert self.dispatcher is not None
            self.y = self.dispatcher.outputs(self)["y"].copy()
            self.dispatcher.release(self)

    @property
    def right(self) -> bool:
        """Whether it was answered once, with its own numbers."""
        return self.ends == [None] and self.y is not None and np.array_equal(self.y, self.x + 1)


@dataclass
class FakeSession:
    """y = x + 1, unless `on_run` does something else first."""

    on_run: Callable[[np.ndarray], Any] = lambda x: None
    batches: list[np.ndarray] = field(default_factory=list)
    notes: Sequence[str] = ()
    keeps_outputs = True
    pinned: bool = False
    """Whether it has memory of its own, `host`, in which batches are put together."""
    host: dict[str, np.ndarray] = field(default_factory=dict)

    def host_buffers(self, rows: int) -> Mapping[str, np.ndarray] | None:
        if self.pinned and not self.host:
            self.host = {"x": np.zeros((rows, 2), np.float32)}
        return self.host or None

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        x = inputs["x"]
        self.batches.append(x.copy())
        y = self.on_run(x)
        return {"y": x + 1 if y is None else y}


class NoMetrics:
    """What an instance's loop counts, kept."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int, str]] = []

    def batch_finished(self, model: int, rows: int, padding: int, reason: str) -> None:
        self.batches.append((rows, padding, reason))


@dataclass
class RigWorker:
    """One worker with one instance of each model."""

    index: int
    incarnation: int
    shared: WorkerMemory
    sessions: list[FakeSession]
    consumers: list[TicketConsumer]
    batchers: list[Batcher]
    loops: list[InstanceLoop]
    metrics: NoMetrics
    retried: list[int]
    batch_limits: list[int]
    """Every move of an instance's batch limit."""


class Rig:
    """Make it on a running event loop."""

    def __init__(
        self,
        *signatures: Signature,
        api_servers: int = 1,
        workers: int = 2,
        slots: int = 256,
        data_bytes: int = 1 << 20,
        max_rows: int = 1024,
        max_bytes: int = 1 << 20,
        max_batch_size: int = 8,
        timeout_s: float = 60.0,
        names: Sequence[tuple[str, str]] = (),
        manifests: Mapping[tuple[str, str], Mapping[str, Any]] = MappingProxyType({}),
        levels: int = 1,
        default_level: int = 0,
        age_s: float = 1.0,
    ) -> None:
        signatures = signatures or (FIXED,)
        names = names or [(f"m{row}", "1") for row in range(len(signatures))]
        models = len(signatures)
        self.transport = Transport(
            Dimensions(api_servers, workers, models, instances=models, levels=levels),
            Sizes(slots, data_bytes),
        )
        self.levels, self.default_level, self.age_ns = levels, default_level, int(age_s * 1e9)
        self.board = self.transport.board.map()
        self.models = self.transport.models.map()
        for row, signature in enumerate(signatures):
            said = {key: manifests.get(names[row], {}).get(key) for key in ("image", "labels")}
            said = {key: value for key, value in said.items() if value}
            model_version(*names[row], signature, max_batch_size, **said).add_to(self.models)
            self.renew_turn(row)
        self.signatures = signatures
        self.max_batch_size = max_batch_size
        self.bounds = Bounds(max_rows, max_bytes)
        self.timeout_s = timeout_s
        self.incarnations = 0
        self.run_timeouts: list[int] = []
        self.stalls: list[int] = []
        self.run_limit_s = 60.0
        self.dispatchers = [self.new_dispatcher(index) for index in range(api_servers)]

    @property
    def dispatcher(self) -> Dispatcher:
        return self.dispatchers[0]

    @property
    def arena(self) -> Any:
        return self.dispatcher.arena

    def new_dispatcher(self, index: int) -> Dispatcher:
        """An API server's first or next life."""
        dispatcher = Dispatcher(
            index,
            self.transport.arenas[index].map(),
            self.board,
            self.transport.done[index].reader.fd,
            self.run_limit_s,
            self.run_timeouts.append,
            self.stalls.append,
        )
        for row in range(len(self.signatures)):
            dispatcher.add_queue(self.new_queue(row))
        return dispatcher

    def new_queue(self, row: int) -> ModelQueue:
        """One API server's view of a row of the model table."""
        version = read_version(self.models, self.models.key(row))
        assert version is not None
        return ModelQueue(
            self.models.key(row),
            layout=TensorLayout(self.signatures[row]),
            bounds=self.bounds,
            timeout_s=self.timeout_s,
            instances=self.transport.dimensions.workers,
            max_batch_size=self.max_batch_size,
            writers=[TicketWriter(pipe) for pipe in self.transport.queues[row].levels],
            default_level=self.default_level,
            labels=version.artifact.labels,
            image=version.artifact.image,
        )

    def work(self, worker: "RigWorker", row: int = 0) -> None:
        """Turn an instance until nothing is left for it, and have every API server take what it answers."""
        while worker.loops[row].step(wait=False):
            for dispatcher in self.dispatchers:
                dispatcher.receive()
                dispatcher.flush()
        for dispatcher in self.dispatchers:
            dispatcher.receive()

    def worker_dies(self, worker: "RigWorker") -> None:
        """What the supervisor does at a worker's death."""
        self.board.worker_died(worker.index)
        for row in range(len(self.signatures)):
            self.renew_turn(row)

    def renew_turn(self, row: int) -> None:
        """Replace the turn to read a model's queue, as the supervisor does."""
        self.transport.queues[row].renew_turn(self.board, row)

    async def recover(self, worker: "RigWorker", api: int = 0) -> list[Any]:
        """What an API server does when it hears of a death, to the end. Returns: what is run again of what was held."""
        lost = LostTickets(self.dispatchers[api])
        again = retry_held(self.dispatchers[api], worker.incarnation)
        lost.check_later()
        while not lost.done:
            await asyncio.sleep(0.001)  # it looks again by itself, until nobody marks any more
        self.dispatchers[api].flush()
        return again

    def new_worker(
        self,
        index: int = 0,
        *,
        on_run: Callable[[np.ndarray], Any] = lambda x: None,
        buckets: Sequence[int] = (),
        window_s: float = 0.0,
        pinned: bool = False,
        sessions: Sequence[Any] = (),
    ) -> RigWorker:
        """A worker process as it is after loading."""
        self.incarnations += 1
        shared = WorkerMemory(
            self.incarnations,
            index,
            [arena.map().bytes for arena in self.transport.arenas],
            self.board,
            self.models,
            [pipe.writer.fd for pipe in self.transport.done],
        )
        metrics = NoMetrics()
        retried: list[Any] = []
        batch_limits: list[Any] = []
        sessions = sessions or [FakeSession(on_run, pinned=pinned) for _ in self.signatures]
        consumers, batchers, loops = [], [], []
        for row, signature in enumerate(self.signatures):
            session = sessions[row]
            queue = self.transport.queues[row]
            consumer = TicketConsumer(shared, row, 0, row)
            times = BatchTimes(self.board, index, row)
            runner = BatchRunner(
                f"m{row}",
                "cuda:0",
                session,
                TensorLayout(signature),
                shared,
                row,
                self.max_batch_size,
                buckets,
                retried.append,
                batch_limits.append,
            )
            batcher = Batcher(
                TicketReader(queue, self.levels),
                turn_of(queue, self.board, row, self.transport.dimensions.workers),
                consumer,
                int(window_s * 1e9),
                times.run_ns,
                runner.bucket,
                self.levels,
                self.age_ns,
            )
            ageing = Ageing(self.levels, self.age_ns)
            counts: Any = metrics
            consumers.append(consumer)
            batchers.append(batcher)
            loops.append(
                InstanceLoop(row, consumer, batcher, runner, Gate(), times, counts, ageing, self.levels)
            )
            self.board.ready[index, row] = 1
        return RigWorker(
            index,
            self.incarnations,
            shared,
            list(sessions),
            consumers,
            batchers,
            loops,
            metrics,
            retried,
            batch_limits,
        )

    def ask(
        self,
        *values: float,
        row: int = 0,
        api: int = 0,
        length: int = 2,
        deadline_ns: int | None = None,
        flush: bool = True,
        priority: int = 0,
    ) -> RecordedRequest:
        """Queue a request of one row per value."""
        import time

        dispatcher = self.dispatchers[api]
        x = np.repeat(np.float32(values)[:, None], length, axis=1)
        request = RecordedRequest(dispatcher.queues[row], x)
        request.dispatcher = dispatcher
        request.level = request.queue.level_of(priority, "priority")
        dispatcher.put(request, {"x": x}, len(x))
        now_ns = time.monotonic_ns()
        dispatcher.submit(request, now_ns, now_ns + MINUTE_NS if deadline_ns is None else deadline_ns)
        if flush:
            dispatcher.flush()
        return request

    def all_free(self, api: int = 0) -> bool:
        """Whether nothing is in flight and every slot is nobody's."""
        dispatcher = self.dispatchers[api]
        return (
            not dispatcher.in_flight
            and not dispatcher.arena.state.any()
            and not dispatcher._pool.allocated_bytes
        )
