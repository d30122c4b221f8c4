"""A few numbers that every process reads without asking: draining, queued rows, ready models, busy instances.

Each cell has one writer (named below), is 8 bytes, aligned, and is read whole; no process waits for another
here. Sums over writers may be a request or so old, which is what admission needs and all it needs.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Final, TypeAlias

from foldserve.service.ipc.handles import SharedMemory


@dataclass(frozen=True)
class Dimensions:
    """How many of each there are at most; fixed when the server starts. models: rows of the model table. levels:
    priority levels of a queue."""

    api_servers: int
    workers: int
    models: int
    instances: int
    """Instances per worker, over all its models."""
    levels: int = 1


class Scoreboard:
    """The shared numbers; give it to every process, and map() it there."""

    def __init__(self, dimensions: Dimensions) -> None:
        self.dimensions = dimensions
        cells = sum(prod(shape) for shape in _shapes(dimensions).values())
        self.texts_at = cells * 8
        texts = len(_TEXTS) * dimensions.workers * dimensions.models
        self.memory = SharedMemory("board", self.texts_at + texts * TEXT_BYTES)

    def map(self) -> "MappedScoreboard":
        """This process's view of the scoreboard."""
        return MappedScoreboard(self)


TEXT_BYTES: Final = 1024
"""Room for a text about a model in a worker, UTF-8."""
_LOAD_ERROR: Final = 0
_NOTES: Final = 1
_TEXTS: Final = (_LOAD_ERROR, _NOTES)
"""The texts that there are of each model in each worker."""

READY: Final = 1
RESTARTING: Final = 2
"""In the table `ready`: the worker had the model and died; it is being started again, and requests wait for it."""

SETTLE_NS: Final = 1_000_000
"""How long after a store of this process it is sure to be seen by all others, and theirs by it: ample."""

Cells: TypeAlias = memoryview
"""Signed 8-byte integers, indexed by as many indices as the table has dims."""


def _shapes(of: Dimensions) -> dict[str, tuple[int, ...]]:
    return {
        "draining": (1,),
        "epoch": (of.api_servers,),
        "connections": (of.api_servers,),
        "queued_rows": (of.api_servers, of.models, of.levels),
        "queued_bytes": (of.api_servers, of.models, of.levels),
        "ready": (of.workers, of.models),
        "busy_since_ns": (of.workers, of.instances),
        "marking_since_ns": (of.workers, of.instances),
        "step_since_ns": (of.workers, of.instances),
        "taken_ns": (of.workers, of.models),
        "turn": (of.models,),
        "alive_ns": (of.workers + of.api_servers,),
        "run_fixed_ns": (of.workers, of.models),
        "run_row_ns": (of.workers, of.models),
        "run_measured_ns": (of.workers, of.models),
        "batch_limit_rows": (of.workers, of.models),
        "let_go": (of.workers + of.api_servers, of.models),
    }


class MappedScoreboard:
    """The scoreboard's cells in this process, as views of 8-byte integers: quick to read and write one by one.

    draining: [0] is 1 once shutdown has begun (supervisor).
    epoch: which life of an API server; tickets of its earlier lives are void (supervisor).
    connections: [api server] 1 + how many it has open (that API server); 0 when it takes none (it, and the supervisor,
        once it is dead).
    queued_rows, queued_bytes: [api server, model, level] what it has queued or in a batch, of this priority level and
        of those before it (that API server).
    ready: [worker, model] READY when it serves the model, loaded, warmed and agreeing with its reference (that worker);
        RESTARTING when it had (the supervisor, once the worker is dead); else 0.
    busy_since_ns: [worker, instance] CLOCK_MONOTONIC since when the tickets that it holds are known to be of their API
        servers' present lives, 0 when it holds none (it).
    marking_since_ns: [worker, instance] CLOCK_MONOTONIC when it began to look at slots and to mark them, 0 when it does
        not (it).
    step_since_ns: [worker, instance] CLOCK_MONOTONIC when it began the present step of its work, none of which may take
        longer than the run limit; 0 while it waits for tickets (it).
        The three are cleared by the supervisor when the worker has died.
    taken_ns: [worker, model] CLOCK_MONOTONIC when an instance last took tickets of the model (that worker's instances).
    turn: [model] the generation of the turn that is valid (supervisor); see ticket_queue.py.
    alive_ns: [worker, then API server] CLOCK_MONOTONIC when it last answered the supervisor's question (it).
    run_fixed_ns, run_row_ns: [worker, model] what a batch takes, and each of its rows (that worker's instances, and the
        supervisor, once the worker is dead); see run_time.py. run_measured_ns: CLOCK_MONOTONIC of the last measurement.
    batch_limit_rows: [worker, model] rows that a run may have where its device did not have memory for more, the lowest
        of its instances' (that worker); 0 while only max_batch_size bounds them (that worker, and the supervisor, once
        the worker is dead).
    let_go: [worker, then API server; model] 1 + the generation of the row's last version that it has no part in any
        more, or never had (it).
    """

    def __init__(self, board: Scoreboard) -> None:
        self._map = board.memory.map()
        whole = memoryview(self._map)
        at = 0
        cells: dict[str, Cells] = {}
        for name, shape in _shapes(board.dimensions).items():
            nbytes = prod(shape) * 8
            cells[name] = whole[at : at + nbytes].cast("q", shape)
            at += nbytes
        self.dimensions = board.dimensions
        self._texts = whole[board.texts_at :]
        self._models = board.dimensions.models
        self.draining = cells["draining"]
        self.epoch = cells["epoch"]
        self.connections = cells["connections"]
        self.queued_rows = cells["queued_rows"]
        self.queued_bytes = cells["queued_bytes"]
        self.ready = cells["ready"]
        self.busy_since_ns = cells["busy_since_ns"]
        self.marking_since_ns = cells["marking_since_ns"]
        self.step_since_ns = cells["step_since_ns"]
        self.taken_ns = cells["taken_ns"]
        self.turn = cells["turn"]
        self.alive_ns = cells["alive_ns"]
        self.run_fixed_ns = cells["run_fixed_ns"]
        self.run_row_ns = cells["run_row_ns"]
        self.run_measured_ns = cells["run_measured_ns"]
        self.batch_limit_rows = cells["batch_limit_rows"]
        self._let_go = cells["let_go"]

    def write_load_error(self, worker: int, model: int, text: str) -> None:
        """Say why a worker does not serve a model; "" when it does."""
        self._write(_LOAD_ERROR, worker, model, text)

    def load_error(self, worker: int, model: int) -> str:
        """Why a worker does not serve a model."""
        return self._read(_LOAD_ERROR, worker, model)

    def write_notes(self, worker: int, model: int, notes: Iterable[str]) -> None:
        """Say how a worker runs a model, as its sessions' notes tell; cut where they are longer than their room."""
        self._write(_NOTES, worker, model, "\n".join(" ".join(note.split()) for note in notes))

    def notes(self, worker: int, model: int) -> list[str]:
        """How a worker runs a model: what is worth knowing of it."""
        return self._read(_NOTES, worker, model).splitlines()

    def _write(self, kind: int, worker: int, model: int, text: str) -> None:
        data = text.encode()[: TEXT_BYTES - 1]
        at = self._text_at(kind, worker, model)
        self._texts[at : at + TEXT_BYTES] = data.ljust(TEXT_BYTES, b"\0")

    def _read(self, kind: int, worker: int, model: int) -> str:
        at = self._text_at(kind, worker, model)
        return bytes(self._texts[at : at + TEXT_BYTES]).rstrip(b"\0").decode(errors="replace")

    def _text_at(self, kind: int, worker: int, model: int) -> int:
        return ((worker * self._models + model) * len(_TEXTS) + kind) * TEXT_BYTES

    def requests_are_taken(self) -> bool:
        """Whether some worker serves a model, or died and is being started again: requests may wait for it."""
        workers, models = range(self.dimensions.workers), range(self._models)
        return any(self.ready[worker, model] for worker in workers for model in models)

    def serves(self, worker: int, models: Iterable[int]) -> bool:
        """Whether a worker serves all of these models."""
        return all(self.ready[worker, model] == READY for model in models)

    def let_go(self, is_worker: bool, index: int, model: int, generation: int) -> None:
        """Say that this worker or API server has no part in a version that was in this row."""
        self._let_go[self._process(is_worker, index), model] = generation + 1

    def has_let_go(self, is_worker: bool, index: int, model: int, generation: int) -> bool:
        """Whether that worker or API server has no part in it any more."""
        return self._let_go[self._process(is_worker, index), model] == generation + 1

    def _process(self, is_worker: bool, index: int) -> int:
        return index if is_worker else self.dimensions.workers + index

    def lowest_batch_limit_rows(self, model: int) -> int:
        """Rows that a run of the model may have in every worker; 0 when no device lacked room."""
        rows = [self.batch_limit_rows[worker, model] for worker in range(self.dimensions.workers)]
        return min(filter(None, rows), default=0)

    def run_time(self, worker: int, model: int) -> tuple[int, int]:
        """What a batch of the model takes in that worker, and each of its rows."""
        return self.run_fixed_ns[worker, model], self.run_row_ns[worker, model]

    def write_run_time(self, worker: int, model: int, run_time: tuple[int, int], measured_ns: int) -> None:
        """Publish it. The two cells are not written together: a reader may see a new one with an old one, which both
        were good forecasts."""
        self.run_fixed_ns[worker, model], self.run_row_ns[worker, model] = run_time
        self.run_measured_ns[worker, model] = measured_ns

    def answer(self, is_worker: bool, index: int) -> None:
        """Tell the supervisor, which has asked, that this worker or API server is alive."""
        self.alive_ns[self._process(is_worker, index)] = time.monotonic_ns()

    def answered_ns(self, is_worker: bool, index: int) -> int:
        """CLOCK_MONOTONIC when that worker or API server last answered."""
        return self.alive_ns[self._process(is_worker, index)]

    def markings_are_over(self, since_ns: int) -> bool:
        """Whether every instance that was looking at slots at since_ns has been seen not to, or to do so anew.

        What this process wrote before since_ns is seen by whoever marks later. False for a moment at first: the store
        by which an instance says that it marks may not have left its core (x86-TSO: a load may pass an earlier
        store; a store buffer drains in nanoseconds).
        """
        if time.monotonic_ns() - since_ns < SETTLE_NS:
            return False
        workers, instances = range(self.dimensions.workers), range(self.dimensions.instances)
        return not any(
            0 < self.marking_since_ns[worker, instance] <= since_ns
            for worker in workers
            for instance in instances
        )

    def overdue_workers(self, since_ns: int) -> list[int]:
        """The workers with an instance whose present step began before since_ns."""
        instances = range(self.dimensions.instances)
        return [
            worker
            for worker in range(self.dimensions.workers)
            if any(0 < self.step_since_ns[worker, instance] < since_ns for instance in instances)
        ]

    def clear_model(self, model: int) -> None:
        """The row is to be another version's: what the last one left behind is nothing of it."""
        for worker in range(self.dimensions.workers):
            self._clear(worker, model)
            self.ready[worker, model] = self.taken_ns[worker, model] = 0
            self.write_load_error(worker, model, "")

    def _clear(self, worker: int, model: int) -> None:
        self.batch_limit_rows[worker, model] = 0
        self.write_run_time(worker, model, (0, 0), 0)
        self.write_notes(worker, model, ())

    def worker_died(self, worker: int) -> None:
        """It runs nothing any more, and what it served is to return; the next one finds its own batch limits."""
        for model in range(self._models):
            if self.ready[worker, model]:
                self.ready[worker, model] = RESTARTING
            self._clear(worker, model)
        for instance in range(self.dimensions.instances):
            self.busy_since_ns[worker, instance] = self.step_since_ns[worker, instance] = 0
            self.marking_since_ns[worker, instance] = 0

    def api_server_died(self, api_server: int) -> None:
        """It has nothing queued any more, and no connection."""
        for model in range(self._models):
            for level in range(self.dimensions.levels):
                self.queued_rows[api_server, model, level] = self.queued_bytes[api_server, model, level] = 0
        self.connections[api_server] = 0

    def worker_cannot_load(self, worker: int, why: str) -> None:
        """It crashes repeatedly while it loads: requests are not to wait for it."""
        for model in range(self._models):
            self.ready[worker, model] = 0
            self.write_load_error(worker, model, why)

    def all_busy_since_ns(self) -> list[int]:
        """busy_since_ns of every instance of every worker."""
        workers, instances = range(self.dimensions.workers), range(self.dimensions.instances)
        return [self.busy_since_ns[worker, instance] for worker in workers for instance in instances]
