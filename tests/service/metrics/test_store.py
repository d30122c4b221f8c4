"""Rows of cells shared by processes: laid out alike, written apart, summed when read."""

import multiprocessing
import threading

import numpy as np
import pytest

from foldserve.service.ipc.handles import SharedMemory
from foldserve.service.metrics.request_ring import RingLayout
from foldserve.service.metrics.store import CellLayout, Metric, Store

COUNT = Metric("count", "counter", "Counts.", ("kind",))
LEVEL = Metric("level", "gauge", "A level.", ())
TOP = Metric("top", "gauge", "A level.", (), combine="max")
TIMES = Metric("times", "histogram", "Times.", (), buckets=(1.0, 2.0))
METRICS = {metric.name: metric for metric in (COUNT, LEVEL, TOP, TIMES)}
LAYOUT = CellLayout(METRICS.values(), {"count": [("a",), ("b",)]}, models=0)
# A record's one column is observed in `times`.
COLUMNS = RingLayout(np.array([[LAYOUT.cell(TIMES, 0)] + [0] * 7]), [np.array(TIMES.buckets)])


def cell(name: str, *labels: str) -> int:
    return LAYOUT.cell(METRICS[name], 0, *labels)


@pytest.fixture
def store() -> Store:
    return Store.create(LAYOUT, 3, COLUMNS)


def total(store: Store, name: str, *labels: str) -> float:
    return float(store.totals()[cell(name, *labels)])


def test_series_do_not_overlap() -> None:
    assert LAYOUT.width == 2 + 1 + 1 + 4
    starts = sorted(start for metric in METRICS.values() for start in LAYOUT.series(metric, []).values())
    assert starts == [0, 1, 2, 3, 4]


def test_label_values_that_do_not_match_the_labels_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"metric count has labels \('kind',\), got \('a', 'b'\)"):
        CellLayout((COUNT,), {"count": [("a", "b")]}, models=0)


def test_totals_sum_rows_but_take_the_largest_where_the_metric_says_so(store: Store) -> None:
    for index, amount in enumerate((1.0, 2.0, 4.0)):
        store.row(index).add(cell("count", "a"), amount)
        store.row(index).set(cell("top"), amount)
    totals = store.totals()
    assert totals[cell("count", "a")] == 7.0
    assert totals[cell("count", "b")] == 0.0
    assert totals[cell("top")] == 4.0


@pytest.mark.parametrize(("value", "bucket"), [(0.5, 0), (1.0, 0), (1.5, 1), (2.0, 1), (9.0, 2)])
def test_value_counts_in_the_first_bucket_that_is_not_below_it(
    store: Store, value: float, bucket: int
) -> None:
    store.row(0).observe(cell("times"), TIMES.buckets, value)
    counts = [0.0, 0.0, 0.0]
    counts[bucket] = 1.0
    start = cell("times")
    assert store.totals()[start : start + 4].tolist() == [*counts, value]


def test_threads_of_one_process_lose_no_count(store: Store) -> None:
    row = store.row(0)

    def count() -> None:
        for _ in range(2000):
            with row.lock:
                row.add(cell("count", "a"), 1.0)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total(store, "count", "a") == 8000


def test_rings_count_beside_the_rows(store: Store) -> None:
    store.row(0).add(cell("count", "a"), 2.0)
    for index in (0, 2):
        store.rings[index].append(cell("count", "a"), 0, 1.5, *[0.0] * 7)
    assert total(store, "count", "a") == 4.0
    start = cell("times")
    assert store.totals()[start : start + 4].tolist() == [0.0, 2.0, 0.0, 3.0]


def count_in_child(memory: SharedMemory, row: int) -> None:
    store = Store(memory, LAYOUT, 3, COLUMNS)
    cells = store.row(row)
    for _ in range(1000):
        cells.add(cell("count", "b"), 1.0)
        store.rings[row].append(cell("count", "b"), 0, 0.5, *[0.0] * 7)


def test_spawned_processes_count_into_the_same_memory(store: Store) -> None:
    spawn = multiprocessing.get_context("spawn")
    children = [spawn.Process(target=count_in_child, args=(store.memory, row)) for row in (1, 2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert total(store, "count", "b") == 4000


def test_counts_go_on_in_the_row_of_a_writer_that_died(store: Store) -> None:
    store.row(1).add(cell("count", "a"), 5.0)
    store.reset_gauges(1)
    again = Store(store.memory, LAYOUT, 3, COLUMNS)
    again.row(1).add(cell("count", "a"), 1.0)
    assert total(store, "count", "a") == 6.0


def test_gauges_of_a_writer_that_died_are_forgotten_and_others_stay(store: Store) -> None:
    for index in (0, 1):
        store.row(index).set(cell("level"), 3.0)
    store.reset_gauges(1)
    assert total(store, "level") == 3.0
