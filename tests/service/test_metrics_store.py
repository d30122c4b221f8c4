"""Rows of cells shared by processes: laid out alike, written apart, summed when read."""

import multiprocessing
import threading
from pathlib import Path

import pytest

from service.metrics_store import Layout, Metric, Store

COUNT = Metric("count", "counter", "Counts.", ("kind",))
LEVEL = Metric("level", "gauge", "A level.", ())
TOP = Metric("top", "gauge", "A level.", (), combine="max")
TIMES = Metric("times", "histogram", "Times.", (), buckets=(1.0, 2.0))
LAYOUT = Layout(
    (COUNT, LEVEL, TOP, TIMES), {"count": [("a",), ("b",)], "level": [()], "top": [()], "times": [()]}
)


def cell(name: str, *labels: str) -> int:
    return LAYOUT.offsets[name][labels]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "cells", LAYOUT, rows=3)


def test_series_do_not_overlap() -> None:
    assert LAYOUT.width == 2 + 1 + 1 + 4
    starts = sorted(start for of_metric in LAYOUT.offsets.values() for start in of_metric.values())
    assert starts == [0, 1, 2, 3, 4]


def test_label_values_that_do_not_match_the_labels_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"metric count has labels \('kind',\), got \('a', 'b'\)"):
        Layout((COUNT,), {"count": [("a", "b")]})


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
    assert store.total(cell("count", "a")) == 8000


def count_in_child(path: Path, row: int) -> None:
    cells = Store(path, LAYOUT, rows=3).row(row)
    for _ in range(1000):
        cells.add(cell("count", "b"), 1.0)


def test_spawned_processes_count_into_the_same_file(store: Store) -> None:
    spawn = multiprocessing.get_context("spawn")
    children = [spawn.Process(target=count_in_child, args=(store.path, row)) for row in (1, 2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert store.total(cell("count", "b")) == 2000


def test_counts_go_on_in_the_row_of_a_writer_that_died(store: Store) -> None:
    store.row(1).add(cell("count", "a"), 5.0)
    store.reset_gauges(1)
    again = Store(store.path, LAYOUT, rows=3)
    again.row(1).add(cell("count", "a"), 1.0)
    assert store.total(cell("count", "a")) == 6.0


def test_gauges_of_a_writer_that_died_are_forgotten_and_others_stay(store: Store) -> None:
    for index in (0, 1):
        store.row(index).set(cell("level"), 3.0)
    store.reset_gauges(1)
    assert store.total(cell("level")) == 3.0


def test_file_of_another_size_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="was made for other metrics"):
        Store(store.path, LAYOUT, rows=4)


def test_existing_file_is_never_taken_over(store: Store) -> None:
    with pytest.raises(FileExistsError):
        Store.create(store.path, LAYOUT, rows=3)
