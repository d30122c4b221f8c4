"""Registered regions of shared memory: one table, many processes."""

import contextlib
import fcntl
import os
from multiprocessing import get_context
from typing import Any

import pytest

from foldserve.service.ipc.region_table import MOST_REGIONS, RegionTable, TableBusy, TableFull

PROCESSES = 4
EACH = 50


def test_every_view_sees_what_one_has_registered() -> None:
    table = RegionTable()
    first, second = table.map(), table.map()
    assert second.regions() == {}
    assert first.add("a", "/key", 8, 64)
    assert second.regions()["a"][:3] == ("/key", 8, 64)
    assert not second.add("a", "/other", 0, 1)
    assert second.add("b", "/key", 0, 1)
    second.remove("a")
    second.remove("none")
    assert set(first.regions()) == {"b"}
    first.remove(None)
    assert second.regions() == {}


def test_registration_has_a_number_that_no_earlier_one_had() -> None:
    mapped = RegionTable().map()
    numbers = set()
    for _ in range(3):
        mapped.add("a", "/key", 0, 1)
        numbers.add(mapped.regions()["a"].number)
        mapped.remove("a")
    assert len(numbers) == 3


def test_there_is_room_for_the_most_with_the_longest_names_and_no_more() -> None:
    mapped = RegionTable().map()
    for number in range(MOST_REGIONS):
        mapped.add(f"{number:04}" + "é" * 125, "/" + "k" * 255, 2**63 - 1, 2**63 - 1)
    with pytest.raises(TableFull):
        mapped.add("one more", "/key", 0, 1)
    assert len(mapped.regions()) == MOST_REGIONS


def _register_many(table: RegionTable, who: int) -> None:
    mapped = table.map()
    for number in range(EACH):
        name = f"{who}-{number}"
        while True:
            with contextlib.suppress(TableBusy):
                assert mapped.add(name, "/key", who, number + 1)
                break
        assert mapped.regions()[name][:3] == ("/key", who, number + 1)


def test_processes_that_write_at_once_lose_nothing_of_each_other() -> None:
    table, context = RegionTable(), get_context("fork")
    running: list[Any] = [
        context.Process(target=_register_many, args=(table, who)) for who in range(PROCESSES)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join()
        assert process.exitcode == 0
    assert len(table.map().regions()) == PROCESSES * EACH


def test_writer_that_is_stopped_holds_up_nobody_for_long_and_one_that_dies_none() -> None:
    table = RegionTable()
    mapped = table.map()
    mapped.add("a", "/key", 0, 1)
    ready, ours = os.pipe()
    ends, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        fcntl.lockf(table.memory.handle.fd, fcntl.LOCK_EX)
        os.write(ours, b"x")
        os.read(ends, 1)
        os._exit(0)
    os.read(ready, 1)
    assert set(mapped.regions()) == {"a"}  # readers do not wait
    with pytest.raises(TableBusy):
        mapped.add("b", "/key", 0, 1)
    os.write(theirs, b"x")
    os.waitpid(pid, 0)
    assert mapped.add("b", "/key", 0, 1)
