"""Records folded in bulk count as if counted one by one, whoever reads, and whenever the writer dies."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldserve.service.ipc.handles import SharedMemory
from foldserve.service.metrics.request_ring import RECORDS, RequestRing, RingLayout, ring_cells

BOUNDS = [np.array([1.0, 2.0]), np.array([0.5]), *(np.array([10.0]) for _ in range(6))]
COLUMN_CELLS = [len(bounds) + 2 for bounds in BOUNDS]
LANES = 2
COUNTERS = 3
WIDTH = COUNTERS + LANES * sum(COLUMN_CELLS)
FIRST = COUNTERS + np.cumsum([0, *COLUMN_CELLS, *COLUMN_CELLS])[:-1].reshape(LANES, len(BOUNDS))
COLUMNS = RingLayout(FIRST, BOUNDS)

Record = tuple[float, ...]


def ring_in(memory: SharedMemory) -> RequestRing:
    return RequestRing(memoryview(memory.map()).cast("d"), WIDTH, COLUMNS)


@pytest.fixture
def memory() -> SharedMemory:
    return SharedMemory("ring", ring_cells(WIDTH) * 8)


def read(ring: RequestRing) -> np.ndarray:
    cells = np.zeros(WIDTH)
    ring.read_into(cells)
    return cells


def counted_one_by_one(records: Sequence[Record]) -> np.ndarray:
    cells = np.zeros(WIDTH)
    for counter, row, *values in records:
        cells[int(counter)] += 1
        for column, value in enumerate(values):
            first = FIRST[int(row), column]
            above = [bound for bound in BOUNDS[column] if value > bound]
            cells[first + len(above)] += 1
            cells[first + len(BOUNDS[column]) + 1] += value
    return cells


# Eighths: their sums are exact, so that equal means equal.
values = st.integers(0, 160).map(lambda n: n / 8)
records = st.tuples(st.integers(0, COUNTERS - 1), st.integers(0, LANES - 1), *[values] * 8)


@settings(max_examples=50, deadline=None)
@given(st.lists(records, min_size=1, max_size=20), st.integers(1, 2 * RECORDS + 5))
def test_records_in_bulk_count_as_one_by_one(few: list[Record], count: int) -> None:
    ring = ring_in(SharedMemory("ring", ring_cells(WIDTH) * 8))
    many = (few * (count // len(few) + 1))[:count]
    for record in many:
        ring.append(*record)
    np.testing.assert_array_equal(read(ring), counted_one_by_one(many))


@pytest.mark.parametrize("count", [0, 1, RECORDS - 1, RECORDS, RECORDS + 1, 2 * RECORDS, 2 * RECORDS + 1])
def test_every_record_counts_at_once_and_once(memory: SharedMemory, count: int) -> None:
    ring, reader = ring_in(memory), ring_in(memory)
    for _ in range(count):
        ring.append(1, 0, *[1.0] * 8)
    assert read(reader)[1] == count
    assert read(reader)[FIRST[0, 0] + len(BOUNDS[0]) + 1] == count


def test_reading_adds_to_what_is_there(memory: SharedMemory) -> None:
    ring = ring_in(memory)
    ring.append(2, 0, *[0.0] * 8)
    cells = np.ones(WIDTH)
    ring.read_into(cells)
    assert (cells[2], cells[0]) == (2, 1)


def test_next_writer_goes_on_where_the_last_one_ended(memory: SharedMemory) -> None:
    before = ring_in(memory)
    after = ring_in(memory)  # mapped before anything was counted, as a parent's is
    for ring in (before, after):
        for _ in range(RECORDS - 3):
            ring.append(0, 1, *[1.0] * 8)
    assert read(before)[0] == 2 * (RECORDS - 3)


class KilledInTheFold(Exception):
    """Stands for the writer's death."""


class DeadlyRingLayout(RingLayout):
    """Folds a part of the records, and dies."""

    def fold(self, records: np.ndarray, cells: np.ndarray) -> None:
        super().fold(records[:100], cells)
        raise KilledInTheFold


def test_writer_that_dies_in_a_fold_leaves_exact_numbers(memory: SharedMemory) -> None:
    writer = ring_in(memory)
    for _ in range(2 * RECORDS):  # one fold so far, and the ring full
        writer.append(0, 0, *[1.0] * 8)
    dying = RequestRing(memoryview(memory.map()).cast("d"), WIDTH, DeadlyRingLayout(FIRST, BOUNDS))
    with pytest.raises(KilledInTheFold):
        dying.append(0, 0, *[1.0] * 8)
    assert read(writer)[0] == 2 * RECORDS
    ring_in(memory).append(0, 0, *[1.0] * 8)
    expected = counted_one_by_one([(0, 0, *[1.0] * 8)]) * (2 * RECORDS + 1)
    np.testing.assert_array_equal(read(writer), expected)


class WordThatMoves:
    """A ring's word for one reader; lets the writer go on right after the first look at it."""

    def __init__(self, word: "memoryview[int]", go_on: list[int], writer: RequestRing) -> None:
        self._word, self._go_on, self._writer = word, go_on, writer

    def __getitem__(self, index: int) -> int:
        value = self._word[index]
        if self._go_on:
            for _ in range(self._go_on.pop()):
                self._writer.append(0, 0, *[1.0] * 8)
        return value


@pytest.mark.parametrize("meanwhile", [1, RECORDS - 10, RECORDS, 2 * RECORDS, 3 * RECORDS])
def test_reader_that_the_writer_overtakes_sees_one_state(memory: SharedMemory, meanwhile: int) -> None:
    writer, reader = ring_in(memory), ring_in(memory)
    for _ in range(10):
        writer.append(0, 0, *[1.0] * 8)
    reader._word = WordThatMoves(reader._word, [meanwhile], writer)  # type: ignore[assignment]
    cells = read(reader)
    # What was there when it began, or all: nothing between, nothing twice, and every histogram agrees.
    assert cells[0] in (10, 10 + meanwhile)
    np.testing.assert_array_equal(cells, counted_one_by_one([(0, 0, *[1.0] * 8)]) * cells[0])


def test_reader_beside_a_busy_writer_always_sees_whole_records(memory: SharedMemory) -> None:
    ring, reader = ring_in(memory), ring_in(memory)
    total = 20 * RECORDS

    def write() -> None:
        for _ in range(total):
            ring.append(1, 1, *[1.0] * 8)

    thread = threading.Thread(target=write)
    thread.start()
    seen = [0.0]
    one = counted_one_by_one([(1, 1, *[1.0] * 8)])
    while seen[-1] < total:
        cells = read(reader)
        np.testing.assert_array_equal(cells, one * cells[1])
        seen.append(cells[1])
    thread.join()
    assert seen == sorted(seen)


def append_for_ever(memory: SharedMemory, ready: Connection) -> None:
    ring = ring_in(memory)
    ready.send(None)
    while True:
        ring.append(0, 0, *[1.0] * 8)


def test_killed_process_leaves_whole_records_and_a_spawned_one_goes_on(memory: SharedMemory) -> None:
    spawn = multiprocessing.get_context("spawn")
    reader = ring_in(memory)
    before = 0.0
    for _ in range(2):
        here, there = spawn.Pipe()
        child = spawn.Process(target=append_for_ever, args=(memory, there))
        child.start()
        here.recv()
        while read(reader)[0] <= before + 3 * RECORDS:  # it has folded some times
            os.sched_yield()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        cells = read(reader)
        assert cells[0] > before
        np.testing.assert_array_equal(cells, counted_one_by_one([(0, 0, *[1.0] * 8)]) * cells[0])
        before = cells[0]
