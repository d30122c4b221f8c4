"""Tickets through a model's pipe: whole, in order, also when it is full; the turn to read them goes to one instance."""

import multiprocessing
import os
import time

import numpy as np
import pytest

from foldserve.service.ipc.records import (
    GENERATIONS,
    PIPE_BUF,
    TICKET,
    TICKETS_PER_TURN,
    TICKETS_PER_WRITE,
    TURN_STRUCT,
)
from foldserve.service.ipc.ticket_queue import TicketQueue, TicketReader, TicketWriter


def make() -> tuple[TicketQueue, TicketWriter, TicketReader]:
    queue = TicketQueue()
    return queue, TicketWriter(queue.levels[0]), TicketReader(queue)


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


def test_tickets_outside_a_full_pipe_can_be_dropped() -> None:
    _, writer, reader = make()
    for first in range(0, 6000, 100):
        writer.write(tickets(first, 100))
    writer.drop()
    assert not writer.overflow
    got = read_all(reader)
    assert got == list(range(len(got)))
    assert len(got) < 6000


def test_wait_returns_when_a_ticket_comes_and_when_the_time_is_up() -> None:
    _, writer, reader = make()
    for wait_ns in (0, 200_000, 5_000_000):
        began_ns = time.monotonic_ns()
        reader.wait_ns(wait_ns)
        # poll(2) counts whole milliseconds, of which what is left over is waited for at the next call.
        assert time.monotonic_ns() - began_ns >= wait_ns // 1_000_000 * 1_000_000
    writer.write(tickets(0, 1))
    reader.wait()
    reader.wait_ns(60 * 10**9)


def take_and_tell(queue: TicketQueue, pipe: "multiprocessing.connection.Connection") -> None:
    pipe.send("waits")
    pipe.send(os.read(queue.turn_reader.fd, PIPE_BUF))


def test_turn_with_its_tickets_goes_to_exactly_one_process_however_many_wait() -> None:
    queue = TicketQueue()
    pairs = [multiprocessing.Pipe() for _ in range(3)]
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=take_and_tell, args=(queue, theirs)) for _, theirs in pairs]
    for child in children:
        child.start()
    for ours, _ in pairs:
        assert ours.recv() == "waits"
    sent = [(number, tickets(number, TICKETS_PER_TURN - number)) for number in range(3)]
    for generation, carried in sent:
        assert queue.pass_turn(generation, carried)
    got = [ours.recv() for ours, _ in pairs]
    assert sorted(got) == sorted(TURN_STRUCT.pack(number) + carried for number, carried in sent)
    for child in children:
        child.join()


def test_turns_that_nobody_takes_fill_the_pipe_and_then_are_refused() -> None:
    queue = TicketQueue()
    for generation in range(1000):
        if not queue.pass_turn(generation):
            break
    else:
        pytest.fail("1,000 turns found room")


def test_reader_that_sleeps_is_woken_by_a_ticket_of_no_generation_of_its_own() -> None:
    queue, _, reader = make()
    for generation in (0, 7, 255, 256):
        queue.wake_reader(generation)
        reader.wait()
        (ticket,) = np.frombuffer(reader.read(8), TICKET)
        assert ticket["generation"] != generation % GENERATIONS


def test_queue_that_nobody_reads_any_more_is_emptied_of_tickets_and_turns() -> None:
    queue, writer, reader = make()
    writer.write(tickets(0, 5000))
    queue.pass_turn(3, tickets(0, 2))
    queue.pass_turn(4)
    queue.empty()
    writer.drop()
    assert reader.read(8) == b""
    queue.pass_turn(5)
    assert os.read(queue.turn_reader.fd, PIPE_BUF) == TURN_STRUCT.pack(5)
