"""A model that is slow to load, or for ever, holds back none."""

import threading
from collections.abc import Callable

import pytest

from foldserve.service.worker import loading_order
from foldserve.service.worker.loading_order import load_all

LIMIT_S = 60.0
"""Of waiting for what must come."""


class Version:
    """Loads when it is let."""

    def __init__(self, waits_for: Callable[[], object] = lambda: None) -> None:
        self._waits_for = waits_for
        self.serving = threading.Event()
        self.given_up: list[float] = []
        self.told = threading.Event()

    def load(self) -> None:
        self._waits_for()

    def serve(self) -> None:
        self.serving.set()

    def give_up(self, limit_s: float) -> None:
        self.given_up.append(limit_s)
        if len(self.given_up) == 2:
            self.told.set()


@pytest.mark.parametrize("side_by_side", [True, False])
def test_each_version_serves_as_soon_as_it_is_loaded(side_by_side: bool) -> None:
    first = Version()
    second = Version(lambda: first.serving.wait(LIMIT_S))
    load_all([first, second], None, side_by_side)
    assert first.serving.is_set()
    assert second.serving.is_set()


def test_on_the_cpu_the_next_does_not_wait_for_a_slow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading_order, "PATIENCE_S", 0.01)
    quick = Version()
    slow = Version(lambda: quick.serving.wait(LIMIT_S))
    load_all([slow, quick], None, side_by_side=True)
    assert slow.serving.is_set()
    assert quick.serving.is_set()


@pytest.mark.parametrize("side_by_side", [True, False])
def test_version_that_passes_the_limit_is_given_up_and_dropped_at_its_end(side_by_side: bool) -> None:
    release = threading.Event()
    endless, good = Version(lambda: release.wait(LIMIT_S)), Version()
    load_all([endless, good], 0.05, side_by_side)
    assert good.serving.is_set()
    assert endless.given_up == [0.05]
    release.set()
    assert endless.told.wait(LIMIT_S)
    assert not endless.serving.is_set()
    assert good.given_up == []
