"""An instance's thread: loads, then serves, and ends the process when it cannot go on."""

import logging
import os
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from foldserve.service.backends import LoadError
from foldserve.service.backends.base import DeviceLost, InsufficientMemory
from foldserve.service.worker.instance import Instance, end_without_room

LIMIT_S = 10.0


class Loop:
    """Stands in for an InstanceLoop: says which thread serves, and ends in some way."""

    def __init__(self, ends: BaseException) -> None:
        self.ends = ends
        self.made_in = threading.get_ident()
        self.served_in = 0
        self.served = threading.Event()

    def run(self) -> None:
        self.served_in = threading.get_ident()
        self.served.set()
        raise self.ends


class Made:
    """What makes loops, and keeps the last."""

    def __init__(self, ends: BaseException = RuntimeError("broken")) -> None:  # noqa: B008
        self.ends = ends
        self.loop: Loop
        self.thread: threading.Thread

    def __call__(self) -> tuple[Any, Sequence[str]]:
        self.loop = Loop(self.ends)
        self.thread = threading.current_thread()
        return self.loop, ("a note",)


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


@pytest.mark.parametrize(
    ("ends", "code", "text"),
    [
        (DeviceLost("CUDA error 719"), 69, "device cuda:1 is lost: CUDA error 719"),
        (RuntimeError("a fault of ours"), 70, "loop broke"),
        (SystemExit(), 70, "loop broke"),
    ],
)
def test_thread_that_loaded_serves_and_its_end_is_the_processs(
    exits: list[int], caplog: pytest.LogCaptureFixture, ends: BaseException, code: int, text: str
) -> None:
    made = Made(ends)
    instance = Instance("cuda:1", made)
    assert instance.wait_loaded() == ("a note",)
    assert exits == []
    assert not made.loop.served.is_set()  # not before it is told to
    with caplog.at_level(logging.CRITICAL, "foldserve.worker"):
        instance.serve()
        made.thread.join(LIMIT_S)
    assert made.loop.served_in == made.loop.made_in != threading.get_ident()
    assert exits == [code]
    assert text in caplog.text


@pytest.mark.parametrize("error", [LoadError("no such file"), DeviceLost("CUDA error 719"), SystemExit(3)])
def test_what_loading_raises_is_raised_to_the_one_who_waits(exits: list[int], error: BaseException) -> None:
    def fail() -> Any:
        raise error

    with pytest.raises(type(error)) as caught:
        Instance("cuda:0", fail).wait_loaded()
    assert caught.value is error
    assert exits == []


def test_dropped_instance_ends_without_serving(exits: list[int]) -> None:
    made = Made()
    instance = Instance("cuda:0", made)
    instance.wait_loaded()
    instance.drop()
    assert not made.thread.is_alive()
    assert not made.loop.served.is_set()
    assert exits == []


def test_worker_that_ends_for_want_of_room_says_so_and_is_told_from_others(
    exits: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "foldserve.worker"):
        end_without_room("cuda:1", ("m", "2"), InsufficientMemory("out of memory"))
    assert exits == [75]
    assert (
        "model m version 2 was served on cuda:1, which does not have enough memory for it now: out of memory"
        in caplog.text
    )
