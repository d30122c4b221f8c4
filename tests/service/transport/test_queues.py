"""Tickets through a model's pipe: whole, in order, also when it is full; its lock between threads and processes."""

import multiprocessing
import threading

import numpy as np

from service.transport.handles import SharedMemory
from service.transport.queues import ModelQueue, QueueLock, TicketReader, TicketWriter
from service.transport.records import TICKET, TICKETS_PER_WRITE


def make() -> tuple[ModelQueue, TicketWriter, TicketReader]:
    queue = ModelQueue(0, SharedMemory("locks", 1))
    lock = QueueLock(queue)
    return queue, TicketWriter(queue, lock), TicketReader(queue, lock)


def tickets(first: int, count: int, api: int = 0) -> bytes:
    records = np.zeros(count, TICKET)
    records["slot"] = np.arange(first, first + count)
    records["api"] = api
    return records.tobytes()


def read_all(reader: TicketReader) -> list[int]:
    slots: list[int] = []
    while data := reader.read(1000):
        assert len(data) % TICKET.itemsize == 0
        slots += np.frombuffer(data, TICKET)["slot"].tolist()
    return slots


def test_reads_give_whole_tickets_in_order_and_no_more_than_asked() -> None:
    _, writer, reader = make()
    writer.write(tickets(0, 5))
    assert np.frombuffer(reader.read(2), TICKET)["slot"].tolist() == [0, 1]
    assert read_all(reader) == [2, 3, 4]
    assert reader.read(1) == b""


def test_full_pipe_keeps_the_rest_outside_and_loses_nothing() -> None:
    _, writer, reader = make()
    count = 6000
    for first in range(0, count, 100):
        writer.write(tickets(first, 100))
    assert writer.overflow
    got: list[int] = []
    while len(got) < count:
        data = reader.read(TICKETS_PER_WRITE)
        got += np.frombuffer(data, TICKET)["slot"].tolist()
        writer.flush()
    assert got == list(range(count))
    assert not writer.overflow


def test_contents_shows_pipe_and_overflow_and_writes_them_back_in_order() -> None:
    _, writer, reader = make()
    for first in range(0, 4000, 40):
        writer.write(tickets(first, 40))
    with writer.contents() as seen:
        assert seen["slot"].tolist() == list(range(4000))
        assert reader.read(1) == b""
    got: list[int] = []
    while len(got) < 4000:
        got += np.frombuffer(reader.read(1000), TICKET)["slot"].tolist()
        writer.flush()
    assert got == list(range(4000))


def test_contents_keeps_the_tickets_of_other_api_servers() -> None:
    queue, writer, reader = make()
    other = TicketWriter(queue, QueueLock(queue))
    other.write(tickets(7, 1, api=1))
    with writer.contents() as seen:
        assert seen["api"].tolist() == [1]
    assert read_all(reader) == [7]


def test_wait_returns_when_a_ticket_comes_and_when_the_time_is_up() -> None:
    _, writer, reader = make()
    assert not reader.wait(0.01)
    writer.write(tickets(0, 1))
    assert reader.wait()


def test_lock_excludes_threads_of_one_process() -> None:
    queue, _, _ = make()
    lock = QueueLock(queue)
    inside, go = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            inside.set()
            go.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    assert not lock.passes()
    go.set()
    thread.join()
    assert lock.passes()


def hold_until_told(queue: ModelQueue, pipe: "multiprocessing.connection.Connection") -> None:
    with QueueLock(queue):
        pipe.send("held")
        pipe.recv()


def test_lock_excludes_processes_and_is_dropped_when_its_holder_is_killed() -> None:
    queue, _, _ = make()
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=hold_until_told, args=(queue, theirs))
    child.start()
    assert ours.recv() == "held"
    lock = QueueLock(queue)
    assert not lock.passes()
    child.kill()
    child.join()
    with lock:
        pass
    ours.close()
    theirs.close()


def test_locks_of_two_models_do_not_touch_each_other() -> None:
    locks = SharedMemory("locks", 2)
    first, second = QueueLock(ModelQueue(0, locks)), QueueLock(ModelQueue(1, locks))
    with first:
        assert second.passes()
