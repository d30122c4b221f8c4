"""The table of moves, and that the code makes no other: random lives of many requests, with deaths at random points."""

import asyncio
import random
from typing import Any

import numpy as np
import pytest

import foldserve.service.ipc.scoreboard as board_module
from foldserve.service.engine.recovery import LostTickets, retry_held
from foldserve.service.errors import DeadlinePassed, ModelCrashed, QueueFull
from foldserve.service.ipc.slots.arena import HEADER
from foldserve.service.ipc.slots.slot_pool import SlotAllocation
from foldserve.service.ipc.slots.slot_state import COMPLETED, MOVES, Side, State, may_move
from foldserve.service.worker import ticket_consumer
from foldserve.service.worker.ticket_consumer import TicketConsumer
from tests.service.engine_rig import DYNAMIC, RecordedRequest, Rig, WorkerKilled


def test_every_state_is_reached_and_left() -> None:
    assert {before for before, _ in MOVES} == set(State)
    assert {after for _, after in MOVES} == set(State)


def test_only_the_side_in_the_table_may_move() -> None:
    assert may_move(Side.WORKER, State.QUEUED, State.TAKEN)
    assert not may_move(Side.API_SERVER, State.QUEUED, State.TAKEN)
    assert not may_move(Side.WORKER, State.FREE, State.TAKEN)


def test_settled_states_are_left_by_the_api_server_alone() -> None:
    assert {side for (before, _), side in MOVES.items() if before in COMPLETED} == {Side.API_SERVER}


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> set[tuple[Side, State, State]]:
    """Every move that is made, noted where the code makes it."""
    made: set[tuple[Side, State, State]] = set()

    def note(side: Side, memory: Any, slot: int, work: Any) -> Any:
        before = State(memory[slot * HEADER.itemsize])
        result = work()
        after = State(memory[slot * HEADER.itemsize])
        if before != after or work.__name__ == "begin":
            made.add((side, before, after))
        return result

    set_state, begin_attempt = SlotAllocation.set_state, SlotAllocation.begin_attempt
    mark, complete = TicketConsumer._mark, ticket_consumer.complete

    def noted_complete(shared: Any, tickets: Any, *args: Any, **keys: Any) -> None:
        befores = [State(shared.arenas[t.api][t.slot * HEADER.itemsize]) for t in tickets]
        try:
            complete(shared, tickets, *args, **keys)
        finally:
            for before, t in zip(befores, tickets, strict=True):
                made.add((Side.WORKER, before, State(shared.arenas[t.api][t.slot * HEADER.itemsize])))

    def noted_set_state(allocation: SlotAllocation, state: State) -> None:
        note(Side.API_SERVER, allocation._memory, allocation.slot, lambda: set_state(allocation, state))

    def noted_begin(allocation: SlotAllocation, *args: int) -> None:
        def begin() -> None:
            begin_attempt(allocation, *args)

        note(Side.API_SERVER, allocation._memory, allocation.slot, begin)

    def noted_mark(consumer: TicketConsumer, ticket: Any, *args: Any) -> bool:
        memory = consumer._shared.arenas[ticket.api]
        result: bool = note(Side.WORKER, memory, ticket.slot, lambda: mark(consumer, ticket, *args))
        return result

    monkeypatch.setattr(SlotAllocation, "set_state", noted_set_state)
    monkeypatch.setattr(SlotAllocation, "begin_attempt", noted_begin)
    monkeypatch.setattr(TicketConsumer, "_mark", noted_mark)
    for module in (
        "foldserve.service.worker.ticket_consumer.complete",
        "foldserve.service.worker.batches.batch_runner.complete",
    ):
        monkeypatch.setattr(module, noted_complete)
    return made


class SlotStateMachine:
    """Requests, workers and deaths, in an order that a seed decides."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        levels = {"levels": self.random.choice([1, 2, 3]), "age_s": self.random.choice([0.0, 60.0])}
        self.rig = Rig(DYNAMIC, api_servers=2, workers=2, slots=64, data_bytes=1 << 18, **levels)
        self.workers = [self.new_worker(index) for index in (0, 1)]
        self.asked: list[RecordedRequest] = []
        self.cancelled: list[RecordedRequest] = []
        self.countdown = -1
        self.searches: list[LostTickets] = []

    def new_worker(self, index: int) -> Any:
        buckets = (1, 4, 8) if self.rig.levels > 1 else ()
        return self.rig.new_worker(index, on_run=self.on_run, buckets=buckets)

    def on_run(self, x: np.ndarray) -> Any:
        self.tick()
        if x.shape[1] == 3:  # answers of another size than any guess: they outgrow their place
            return np.repeat(x + 1, 40, axis=1)
        if (x == 13).any():
            raise ValueError("13")
        return None

    def tick(self) -> None:
        """One of the points at which the present worker may die."""
        self.countdown -= 1
        if self.countdown == 0:
            raise WorkerKilled

    def ask(self) -> None:
        value = self.random.choice([1, 2, 3, 13])
        api, length = self.random.randrange(2), self.random.choice([2, 3, 4])
        rows = [float(value)] * self.random.choice([1, 1, 3, 11])
        late = self.random.random() < 0.1
        try:
            priority = self.random.randint(0, self.rig.levels)
            request = self.rig.ask(*rows, api=api, length=length, deadline_ns=None, priority=priority)
        except QueueFull:
            return
        if late:
            request.deadline_ns = 1
        self.asked.append(request)

    def cancel(self) -> None:
        request = self.random.choice(self.asked) if self.asked else None
        if request is not None and not request.ends:
            self.rig.dispatchers[request.dispatcher.index].cancel(request)  # type: ignore[union-attr]
            self.cancelled.append(request)

    def turn(self, mortal: bool = True) -> None:
        index = self.random.randrange(2)
        self.countdown = self.random.randrange(1, 12) if mortal and self.random.random() < 0.4 else -1
        worker = self.workers[index]
        try:
            worker.loops[0].step(wait=False)
        except WorkerKilled:
            self.rig.worker_dies(worker)
            for dispatcher in self.rig.dispatchers:
                self.searches.append(LostTickets(dispatcher))
                retry_held(dispatcher, worker.incarnation)
            self.workers[index] = self.new_worker(index)

    def look(self) -> None:
        """The moment in which recovery finds out which tickets are lost; any time may pass until then."""
        for search in self.searches:
            search.check()

    def stall(self) -> None:
        """The supervisor takes whoever has the turn to read for stopped, rightly or not."""
        self.rig.renew_turn(0)

    def complete(self) -> None:
        for dispatcher in self.rig.dispatchers:
            dispatcher.receive()
            dispatcher.flush()

    def live(self, steps: int) -> None:
        for _ in range(steps):
            acts = [self.ask, self.ask, self.turn, self.complete, self.cancel, self.look, self.stall]
            self.random.choice(acts)()
            if self.random.random() < 0.1:
                for dispatcher in self.rig.dispatchers:
                    dispatcher.watchdog.expire()
        for count in range(300):
            if count % 20 == 19:
                self.stall()  # the watch tells again, as long as nobody takes what waits
            if not any(dispatcher.in_flight for dispatcher in self.rig.dispatchers):
                break
            self.look()
            self.turn(mortal=False)
            self.complete()

    def check(self) -> None:
        for request in self.asked:
            if request in self.cancelled:
                assert len(request.ends) <= 1
                continue
            (end,) = request.ends
            if request.x[0, 0] == 13 and request.x.shape[1] != 3:
                assert end is not None
            elif end is None:
                repeats = 40 if request.x.shape[1] == 3 else 1
                np.testing.assert_array_equal(request.y, np.repeat(request.x + 1, repeats, axis=1))
            else:
                assert isinstance(end, ModelCrashed | DeadlinePassed)
                assert request.crashes == 2 or request.deadline_ns == 1
        assert all(self.rig.all_free(api) for api in (0, 1))


@pytest.mark.parametrize("first_seed", range(0, 60, 10))
def test_random_lives_end_right_by_moves_of_the_table_alone(
    moves: set[tuple[Side, State, State]], monkeypatch: pytest.MonkeyPatch, first_seed: int
) -> None:
    life: list[SlotStateMachine] = []
    real_send, real_mark = ticket_consumer.send_done, TicketConsumer._mark

    def send(*args: Any, **keys: Any) -> None:
        life[-1].tick()
        real_send(*args, **keys)
        life[-1].tick()

    def mark(consumer: TicketConsumer, *args: Any) -> bool:
        life[-1].tick()
        result = real_mark(consumer, *args)
        life[-1].tick()
        return result

    # One thread plays everybody: what one has written, all others see.
    monkeypatch.setattr(board_module, "SETTLE_NS", 0)
    monkeypatch.setattr(ticket_consumer, "send_done", send)
    monkeypatch.setattr(TicketConsumer, "_mark", mark)

    async def run(seed: int) -> None:
        life.append(SlotStateMachine(seed))
        life[-1].live(steps=60)
        life[-1].check()

    for seed in range(first_seed, first_seed + 10):
        asyncio.run(run(seed))
    assert [move for move in moves if not may_move(*move)] == []
    assert (Side.API_SERVER, State.TAKEN, State.QUEUED) in moves
    assert (Side.API_SERVER, State.QUEUED, State.QUEUED) in moves
    assert (Side.API_SERVER, State.OUTPUT_OVERFLOW, State.QUEUED) in moves
