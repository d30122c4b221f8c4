"""What an export does to the garbage collector of its process, and undoes."""

import gc
import weakref

import pytest

from foldserve.models.export.process.tidying import give_back_memory, older_objects_aside


class Cycle:
    def __init__(self):
        self.itself = self


@pytest.fixture(autouse=True)
def nothing_frozen():
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_only_what_was_made_meanwhile_is_collected_and_the_rest_later():
    older = weakref.ref(Cycle())
    with older_objects_aside():
        newer = weakref.ref(Cycle())
        give_back_memory()
        assert newer() is None
        assert older() is not None
    assert gc.get_freeze_count() == 0
    give_back_memory()
    assert older() is None


def test_what_the_caller_has_frozen_stays_frozen():
    gc.freeze()
    with older_objects_aside():
        pass
    assert gc.get_freeze_count() > 0


@pytest.mark.parametrize("callers", [(700, 10, 10), (50_000, 5, 5), (0, 10, 10)])
def test_the_collector_begins_less_often_meanwhile_and_then_as_the_caller_has_it(callers):
    before = gc.get_threshold()
    gc.set_threshold(*callers)
    try:
        with older_objects_aside():
            youngest, *older = gc.get_threshold()
        assert youngest == (max(callers[0], 10_000) if callers[0] else 0)
        assert older == list(callers[1:])
        assert gc.get_threshold() == callers
    finally:
        gc.set_threshold(*before)
