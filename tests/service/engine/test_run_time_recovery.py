"""Whatever happened to a server, clients whose deadlines it can keep are answered again soon.

A small server in simulated time: the real admission and forecasts, and in place of everything else a queue, workers
that take batches from it, pause and die, and clients that ask again and again.
"""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from foldserve.service.engine.admission import Bounds, Load, admit, is_large, queue_share
from foldserve.service.errors import DeadlinePassed, QueueFull
from foldserve.service.ipc.run_time import UNKNOWN, RunTime, RunTimes, combined

MS = 1_000_000
SECOND = 1000 * MS
MOST = 8
BOUNDS = Bounds(max_rows=64, max_bytes=1 << 40)
DOUBT_NS = SECOND


@dataclass(eq=False)
class RecordedRequest:
    """One request. cost: how many times as long as usual its rows take; only such of one cost share a batch."""

    client: "Client"
    rows: int
    cost: int
    deadline_ns: int
    left: int
    waited_for: bool = True


@dataclass(eq=False)
class Client:
    """Asks, waits for the answer or the refusal, and asks again. timeout_ns: 0 = no deadline of its own."""

    rows: int
    timeout_ns: int
    cost: int = 1
    think_ns: int = 20 * MS
    ends: list[tuple[int, int]] = field(default_factory=list)
    stopped: bool = False

    def share_answered(self, since_ns: int) -> float:
        statuses = [status for at_ns, status in self.ends if at_ns >= since_ns]
        return statuses.count(200) / len(statuses) if statuses else 0.0


@dataclass(eq=False)
class Worker:
    """life: counts its deaths, so that what it was running then ends nowhere."""

    times: RunTimes = field(default_factory=RunTimes)
    run_time: RunTime = UNKNOWN
    ended_ns: int = 0
    batch: list[RecordedRequest] = field(default_factory=list)
    paused_until_ns: int = 0
    life: int = 0


class World:
    """Events in simulated time."""

    def __init__(self, seed: int, workers: int) -> None:
        self.random = random.Random(seed)
        self.now_ns = 0
        self.workers = [Worker() for _ in range(workers)]
        self.queue: list[RecordedRequest] = []
        self.doubted_ns = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, when_ns: int, then: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when_ns, next(self._order), then))

    def run_until(self, end_ns: int) -> None:
        while self._events and self._events[0][0] <= end_ns:
            self.now_ns, _, then = heapq.heappop(self._events)
            then()
        self.now_ns = end_ns

    def join(self, client: Client) -> Client:
        self.at(self.now_ns + self.random.randrange(10 * MS), lambda: self.ask(client))
        return client

    def load(self) -> Load:
        there = [asked for asked in self._in_flight() if asked.waited_for]
        lines = [queue_share(asked.rows, asked.rows, MOST) for asked in there]
        large = any(is_large(asked.rows, asked.rows, MOST, BOUNDS) for asked in there)
        run_time = combined([(w.run_time, w.ended_ns) for w in self.workers], self.now_ns)
        rows, nbytes = sum(line[0] for line in lines), sum(line[1] for line in lines)
        return Load(rows, nbytes, MOST, len(self.workers), run_time, large)

    def _in_flight(self) -> list[RecordedRequest]:
        return self.queue + [asked for worker in self.workers for asked in worker.batch]

    def ask(self, client: Client) -> None:
        if client.stopped:
            return
        timeout_ns = client.timeout_ns or 30 * SECOND
        doubt = self.now_ns - self.doubted_ns >= DOUBT_NS
        try:
            doubted = admit("m", client.rows, client.rows, self.load(), BOUNDS, timeout_ns / 1e9, doubt)
        except DeadlinePassed:
            self._end(client, 504)
            return
        except QueueFull:
            self._end(client, 429)
            return
        if doubted:
            self.doubted_ns = self.now_ns
        deadline_ns = self.now_ns + timeout_ns
        asked = RecordedRequest(client, client.rows, client.cost, deadline_ns, client.rows)
        self.queue.append(asked)
        self.at(deadline_ns, lambda: self._expire(asked))
        self.work()

    def _end(self, client: Client, status: int) -> None:
        client.ends.append((self.now_ns, status))
        self.at(self.now_ns + client.think_ns + self.random.randrange(MS), lambda: self.ask(client))

    def _expire(self, asked: RecordedRequest) -> None:
        if asked.waited_for:
            asked.waited_for = False
            self._end(asked.client, 504)

    def work(self) -> None:
        """Every worker that is free takes what makes a batch."""
        for worker in self.workers:
            self.queue = [asked for asked in self.queue if asked.waited_for]
            if worker.batch or worker.paused_until_ns > self.now_ns or not self.queue:
                continue
            first, rows = self.queue[0], 0
            for asked in tuple(self.queue):
                take = min(asked.left, MOST)
                if asked.cost == first.cost and (not rows or rows + take <= MOST):
                    self.queue.remove(asked)
                    worker.batch.append(asked)
                    rows += take
            self._begin(worker, rows)

    def _begin(self, worker: Worker, rows: int) -> None:
        began_ns, life = self.now_ns, worker.life
        noise = 1 + self.random.random() * 0.3
        took_ns = int((2 * MS + rows * MS // 2) * worker.batch[0].cost * noise)

        def end() -> None:
            if worker.life != life:
                return
            if worker.paused_until_ns > self.now_ns:
                self.at(worker.paused_until_ns, end)
                return
            worker.run_time = worker.times.add(rows, self.now_ns - began_ns, self.now_ns)
            worker.ended_ns = self.now_ns
            batch, worker.batch = worker.batch, []
            for asked in batch:
                asked.left -= min(asked.left, MOST)
                if asked.left and asked.waited_for:
                    self.queue.append(asked)  # behind the others
                elif asked.waited_for:
                    asked.waited_for = False
                    self._end(asked.client, 200)
            self.work()

        self.at(began_ns + took_ns, end)

    def pause(self, worker: Worker, ns: int) -> None:
        worker.paused_until_ns = max(worker.paused_until_ns, self.now_ns + ns)
        self.at(worker.paused_until_ns, self.work)

    def die(self, worker: Worker, away_ns: int) -> None:
        """It comes back with nothing measured; what it held is run again."""
        worker.life += 1
        worker.times, worker.run_time, worker.ended_ns = RunTimes(), UNKNOWN, 0
        self.queue = worker.batch + self.queue
        worker.batch = []
        self.pause(worker, away_ns)


@pytest.mark.parametrize(("workers", "seed"), [(1, 1), (1, 2), (1, 3), (1, 4), (2, 5), (2, 6), (4, 7)])
def test_after_pauses_deaths_and_heavy_requests_deadlines_are_kept_again_within_seconds(
    seed: int, workers: int
) -> None:
    world = World(seed, workers)
    chance = world.random
    hurried = [
        world.join(Client(rows, timeout_ms * MS)) for rows, timeout_ms in ((1, 60), (2, 100), (8, 250))
    ]
    large = world.join(Client(200, 10 * SECOND, think_ns=SECOND))
    heavy = world.join(Client(1, 0, cost=chance.choice((50, 500)), think_ns=500 * MS))
    for _ in range(chance.randrange(1, 5)):
        world.run_until(world.now_ns + chance.randrange(2 * SECOND))
        worker = chance.choice(world.workers)
        if chance.random() < 0.6:
            world.pause(worker, chance.choice((SECOND // 2, 5 * SECOND, 15 * SECOND)))
        else:
            world.die(worker, chance.choice((0, 3 * SECOND)))
    heavy.stopped = large.stopped = True
    calm_ns = max([world.now_ns, *(worker.paused_until_ns for worker in world.workers)])
    if world.queue or any(worker.batch for worker in world.workers):
        calm_ns += 4 * SECOND  # what the heavy client had begun takes up to 1.6 s, and the large 25 batches
    world.run_until(calm_ns + 5 * SECOND)
    for client in hurried:
        assert client.share_answered(calm_ns + 2 * SECOND) > 0.95, client


def test_small_requests_beside_endless_heavy_ones_are_answered_when_they_can_be() -> None:
    # The heavy clients' runs are all that is measured, and they take longer than the others may wait; but one
    # of the two is about to end at any time.
    world = World(1, workers=2)
    for _ in range(2):
        world.join(Client(1, 0, cost=60, think_ns=0))
    world.run_until(2 * SECOND)
    hurried = [world.join(Client(1, 100 * MS)) for _ in range(3)]
    world.run_until(20 * SECOND)
    for client in hurried:
        answered = [status for _, status in client.ends].count(200)
        assert answered > 15, client.ends[:20]


def test_small_requests_are_served_while_a_large_one_is_under_way() -> None:
    world = World(1, workers=1)
    world.join(Client(100_000, 29 * SECOND))
    hurried = [world.join(Client(1, 60 * MS)) for _ in range(3)]
    world.run_until(5 * SECOND)
    for client in hurried:
        assert client.share_answered(0) > 0.95


def test_large_requests_are_served_beside_a_queue_that_is_always_full() -> None:
    world = World(1, workers=1)
    for _ in range(80):
        world.join(Client(1, 0, think_ns=MS))
    large = [world.join(Client(rows, 0, think_ns=10 * MS)) for rows in (33, 64, 300)]
    world.run_until(10 * SECOND)
    for client in large:
        assert [status for _, status in client.ends].count(200) >= 2


def test_what_cannot_be_in_time_is_refused_at_once_and_does_no_harm() -> None:
    world = World(1, workers=1)
    patient = [world.join(Client(4, 0, think_ns=0)) for _ in range(14)]
    world.run_until(SECOND)
    hopeless = world.join(Client(8, 10 * MS, think_ns=5 * MS))  # half a dozen full batches of 6 ms wait
    world.run_until(4 * SECOND)
    statuses = [status for _, status in hopeless.ends]
    assert 504 in statuses
    assert len(statuses) > 3 * 1000 / (10 + 6) * 1.5  # most of them at once, not when their time was over
    assert all(status == 200 for client in patient for _, status in client.ends)
