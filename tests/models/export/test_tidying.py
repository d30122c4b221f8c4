"""What an export does to the garbage collector of its process, and undoes."""

import gc
import weakref

import pytest

from models.export.tidying import give_back_memory, older_objects_aside


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
