"""The time of a capture grows with the number of weights, and not with its square."""

import importlib
import types

import pytest
import torch
from torch import fx, nn
from torch.export import _unlift
from torch.export.graph_signature import ExportGraphSignature

from foldserve.models.export.capture.capture import capture
from foldserve.models.export.capture.tracing.linear_lookups import linear_lookups
from foldserve.models.export.network.example.example import read_example
from foldserve.models.export.network.module_copy import eval_copy


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


def test_a_layer_is_found_by_its_name_and_not_among_all(monkeypatch):
    unflatten = importlib.import_module("torch.export.unflatten")
    compared = []
    original = unflatten._is_call_name
    monkeypatch.setattr(
        unflatten, "_is_call_name", lambda name, base: compared.append(1) or original(name, base)
    )
    captured(9)
    assert not compared


@pytest.mark.parametrize("names", [("0", "00", "a"), ("0", "0@1", "0@12"), ("a", "a@2", "a@x")])
def test_weights_come_to_the_layers_that_torch_gives_them_to(names):
    def registered():
        to_module = fx.GraphModule(nn.Module(), fx.Graph())
        values = {
            f"{name}.inner.weight": nn.Parameter(torch.full((1,), float(i)), requires_grad=False)
            for i, name in enumerate(names)
        }
        signature = types.SimpleNamespace(
            buffers=["0.inner.seen"],
            non_persistent_buffers=["0.inner.seen"],
            parameters=[*values],
            lifted_custom_objs=[],
            lifted_tensor_constants=["table"],
        )
        constants = {"0.inner.seen": torch.ones(1), "table": torch.zeros(1)}
        _unlift._register_attrs_to_new_gm(to_module, signature, values, constants)
        return (
            {name: float(value) for name, value in to_module.named_parameters(remove_duplicate=False)},
            {name: float(value) for name, value in to_module.named_buffers()},
            float(to_module.table),
            [*to_module.state_dict()],
        )

    want = registered()
    with linear_lookups():
        assert registered() == want


def test_what_is_replaced_in_torch_is_put_back_when_a_capture_fails():
    before = _unlift._register_attrs_to_new_gm
    with pytest.raises(ZeroDivisionError), linear_lookups():
        _unlift._register_attrs_to_new_gm = 1 / 0
    assert _unlift._register_attrs_to_new_gm is before
