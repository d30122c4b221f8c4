import collections
import dataclasses
import types
from typing import NamedTuple

import pytest
import torch
from torch.utils import _pytree as pytree

from foldserve.models.export.network.example.structure import leaves, rebuilt


class Point(NamedTuple):
    x: object
    y: object


@dataclasses.dataclass(frozen=True)
class Answer:
    logits: object
    loss: object = None


class Record(collections.OrderedDict):
    """A mapping with attributes, as the outputs of transformers are."""

    def __getattr__(self, name):
        return self[name]


class Registered:
    def __init__(self, first, second, setting):
        self.first, self.second, self.setting = first, second, setting


pytree.register_pytree_node(
    Registered,
    lambda value: ([value.first, value.second], value.setting),
    lambda children, setting: Registered(*children, setting=setting),
)

STRUCTURES = [
    (3, [()]),
    ((1, 2), [(0,), (1,)]),
    ([1, (2, None)], [(0,), (1, 0), (1, 1)]),
    ({"a": 1, "b": {"c": 2}}, [("a",), ("b", "c")]),
    ({0: 1, 1: 2}, [("0",), ("1",)]),
    (Point(1, 2), [("x",), ("y",)]),
    (Answer(1), [("logits",), ("loss",)]),
    (Record(logits=1, hidden=(2, 3)), [("logits",), ("hidden", 0), ("hidden", 1)]),
    (types.MappingProxyType({"a": 1}), [("a",)]),
    (collections.defaultdict(list, a=1), [("a",)]),
    (collections.UserDict(a=1), [("a",)]),
    (types.SimpleNamespace(a=1, b=2), [("a",), ("b",)]),
    (Registered(1, 2, "setting"), [(0,), (1,)]),
    (torch.Size([4, 5]), [(0,), (1,)]),
    ((), []),
]


@pytest.mark.parametrize(("value", "paths"), STRUCTURES, ids=lambda v: type(v).__name__)
def test_a_structure_is_taken_apart_and_put_together_again(value, paths):
    found = leaves(value)
    assert [path for path, _ in found] == paths
    again = rebuilt(value, iter([10 * (place + 1) for place in range(len(found))]))
    assert type(again) is type(value)
    assert leaves(again) == [(path, 10 * (place + 1)) for place, path in enumerate(paths)]
    assert leaves(value) == found  # the template is as it was


def test_a_registered_class_keeps_what_is_no_leaf_of_it():
    assert rebuilt(Registered(1, 2, "setting"), iter([3, 4])).setting == "setting"


def test_a_sorted_answer_of_torch_is_taken_apart_by_position():
    assert [path for path, _ in leaves(torch.sort(torch.zeros(2)))] == [(0,), (1,)]
