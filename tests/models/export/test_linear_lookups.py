"""The time of a capture grows with the number of weights, and not with its square."""

import importlib

import pytest
import torch
from torch import nn
from torch.export.graph_signature import ExportGraphSignature

from models.export.capture import capture
from models.export.copying import eval_copy
from models.export.example import read_example
from models.export.linear_lookups import linear_lookups

NAMES = ["0", "0@1", "0@12", "00", "0@", "0@x", "0@1.2", "1", "a.b", "a.b@3", "aXb", "a", ""]


@pytest.fixture
def dicts_made(monkeypatch):
    """How often a dict of all weights was made."""
    made = []
    for name in ("inputs_to_parameters", "inputs_to_buffers"):
        original = getattr(ExportGraphSignature, name).fget
        counted = property(lambda self, original=original: made.append(1) or original(self))
        monkeypatch.setattr(ExportGraphSignature, name, counted)
    return made


def captured(layers):
    module = nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(3, 3), nn.BatchNorm1d(3))))
    x = torch.randn(2, 3)
    return module.eval(), x, capture(eval_copy(module), read_example(module, (x,), None, None))


def test_a_capture_makes_as_many_dicts_of_all_weights_for_few_layers_as_for_many(dicts_made):
    counts = []
    for layers in (2, 9):
        dicts_made.clear()
        module, x, graph = captured(layers)
        counts.append(len(dicts_made))
        assert torch.equal(graph.graph_module(x)[0], module(x))
    assert counts[0] == counts[1]


def test_names_of_calls_are_told_apart_as_torch_does():
    unflatten = importlib.import_module("torch.export.unflatten")
    want = {(name, base): unflatten._is_call_name(name, base) for name in NAMES for base in NAMES}
    with linear_lookups():
        assert {(name, base): unflatten._is_call_name(name, base) for name, base in want} == want
    assert sum(want.values()) > len(NAMES)


def test_what_is_replaced_in_torch_is_put_back_when_a_capture_fails():
    unflatten = importlib.import_module("torch.export.unflatten")
    before = unflatten._is_call_name
    with pytest.raises(ZeroDivisionError), linear_lookups():
        unflatten._is_call_name = 1 / 0
    assert unflatten._is_call_name is before
