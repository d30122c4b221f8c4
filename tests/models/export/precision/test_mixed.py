"""Which operator runs in which type, on networks small enough to say so by hand; and what is kept, with its reason."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foldserve.models.errors import PrecisionNotUsable
from foldserve.models.export.precision import convert as under_test
from foldserve.models.export.precision.convert import Converted, convert
from foldserve.models.export.precision.mixed import Measurements, choose
from foldserve.models.export.precision.precision import PRECISIONS
from tests.models.export.support import Fn, captured

FP16, BF16 = PRECISIONS["fp16"], PRECISIONS["bf16"]


def converted(module: nn.Module, *inputs: torch.Tensor, precision=FP16) -> Converted:
    return convert(captured(module, *inputs), precision, [inputs])


def types(result: Converted) -> dict[str, str]:
    """Operator → the type that it gives, such as {"linear": "float16"}; casts are left out."""
    nodes = result.captured.graph_module.graph.nodes
    return {
        node.target._opname: str(node.meta["val"].dtype).removeprefix("torch.")
        for node in nodes
        if node.op == "call_function"
        and isinstance(node.meta["val"], torch.Tensor)
        and "_as_" not in node.name
    }


class Chain(nn.Module):
    """A linear layer with function behind it, and another linear layer behind that."""

    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.function, self.last = nn.Linear(8, 8), function, nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.function(self.first(x)))


ROWS = torch.linspace(-2.0, 2.0, 32).reshape(4, 8)


@pytest.mark.parametrize(
    "function", [torch.relu, F.gelu, torch.tanh, lambda y: y * 0.5 + 1, lambda y: y - y.mean(1, True)]
)
def test_what_follows_a_matrix_product_is_in_sixteen_bits_too(function):
    assert set(types(converted(Chain(function), ROWS)).values()) == {"float16"}


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda y: torch.softmax(y, 1), "softmax"),
        (lambda y: F.layer_norm(y, (8,)), "layer_norm"),
        (lambda y: F.group_norm(y, 2), "group_norm"),
        (lambda y: F.log_softmax(y, 1), "log_softmax"),
    ],
)
def test_a_norm_or_softmax_is_in_float32_and_what_follows_is_not(function, name):
    got = types(converted(Chain(lambda y: torch.relu(function(y))), ROWS))
    assert (got[name], got["relu"], got["linear"]) == ("float32", "float16", "float16")


@pytest.mark.parametrize(
    "function", [torch.exp, lambda y: y.pow(2), lambda y: y.sum(1, True) + y, F.softplus]
)
def test_what_follows_an_exponential_a_power_or_a_sum_stays_in_float32_until_the_next_product(function):
    got = types(converted(Chain(lambda y: torch.sigmoid(function(y))), ROWS))
    assert (got["sigmoid"], got["linear"]) == ("float32", "float16")


def test_the_arithmetic_on_a_raw_input_stays_in_float32():
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 3)

        def forward(self, x):
            return self.linear((x - 1000.0) / 0.5)

    # Values around 1000 are half a unit apart in fp16: their difference to 1000 would have one digit left.
    x = 1000.0 + ROWS
    got = types(converted(Normalised(), x))
    assert (got["sub"], got["div"], got["linear"]) == ("float32", "float32", "float16")


def test_bytes_become_float32_and_the_signature_stays():
    net = nn.Sequential(Fn(lambda x: x.float() / 255), nn.Linear(8, 3))
    graph = converted(net, torch.arange(32, dtype=torch.uint8).reshape(4, 8)).captured.graph_module.graph
    given = [node.meta["val"].dtype for node in graph.nodes if node.op == "placeholder"]
    answers = [node.meta["val"].dtype for node in graph.output_node().all_input_nodes]
    assert (given, answers) == ([torch.uint8], [torch.float32])


KEPT = {
    "large results": (lambda y: y * 1e4, r"mul.* up to .*e\+04, and fp16 is used from 6.1e-05 to 4094"),
    "small results": (lambda y: y * 0.01 * 0.001, r"mul.* up to .*e-05, and fp16 is used"),
    "large number": (lambda y: y.masked_fill(y > 9, -3e38), r"the number -3e\+38 stands in its call"),
    "small number": (lambda y: y / (y.abs().amax(1, True) + 1e-12), r"add.*the number 1e-12 stands"),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_fp16_cannot_hold_stays_in_float32_with_the_reason(case):
    function, reason = KEPT[case]
    kept = converted(Chain(function), ROWS).kept
    assert re.search(reason, "\n".join(f"{one.where} {one.reason}" for one in kept)), kept


def test_bfloat16_has_float32s_range_so_nothing_is_kept():
    for case in ("large results", "small results", "small number"):
        assert converted(Chain(KEPT[case][0]), ROWS, precision=BF16).kept == ()


def test_tiny_weights_stay_as_they_are():
    chain = Chain(torch.relu)
    with torch.no_grad():
        chain.first.weight.mul_(1e-7)
        chain.first.bias.fill_(1.0)
    result = converted(chain, ROWS)
    assert [one.where for one in result.kept] == ["first (aten.linear)"]
    assert re.search(r"its weight first.weight goes up to .*e-08, and fp16 holds", result.kept[0].reason)
    assert result.captured.graph_module.first.weight.dtype == torch.float32
    assert result.captured.graph_module.last.bias_fp16.dtype == torch.float16


def test_weights_beyond_the_largest_fp16_stay_as_they_are_and_are_not_clamped():
    chain = Chain(torch.relu)
    with torch.no_grad():
        chain.first.weight[:, 0] = 1e5
    x = ROWS.clone()
    x[:, 0] = 0.0
    result = converted(chain, x)
    assert [one.where for one in result.kept] == ["first (aten.linear)"]
    assert "its weight first.weight goes up to 1e+05, and fp16 holds" in result.kept[0].reason
    assert torch.equal(result.captured.graph_module.first.weight, chain.first.weight)


def test_a_tiny_bias_does_not_keep_a_layer_in_float32():
    chain = Chain(torch.relu)
    with torch.no_grad():
        chain.first.bias.fill_(1e-7)
    assert converted(chain, ROWS).kept == ()


def test_an_input_that_fp16_cannot_hold_is_not_cast():
    chain = Chain(torch.sigmoid)
    with torch.no_grad():
        chain.first.weight.mul_(1e-3)
    result = converted(chain, ROWS * 1e5)
    assert result.kept[0].where == "first (aten.linear)"
    assert "input x goes up to 2e+05" in result.kept[0].reason
    outputs = result.captured.graph_module(ROWS * 1e5)
    assert all(bool(torch.isfinite(y).all()) for y in outputs)


def test_infinite_values_are_no_reason_to_keep_anything():
    # A mask of -inf, as in attention: fp16 has infinities.
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)
            self.register_buffer("mask", torch.tensor([0.0] * 6 + [-torch.inf] * 2))

        def forward(self, x):
            return self.last(torch.softmax(self.first(x) + self.mask, 1))

    result = converted(Masked(), ROWS)
    assert (result.kept, types(result)["add"]) == ((), "float16")


def test_what_is_made_of_weights_alone_keeps_its_digits():
    class Standardised(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 8))

        def forward(self, x):
            return F.linear(x, self.weight - self.weight.mean(1, True))

    got = types(converted(Standardised(), ROWS))
    assert got == {"mean": "float32", "sub": "float32", "linear": "float16"}


def test_an_operator_without_a_kernel_stays_in_float32_and_its_reader_does_not():
    graph = captured(Chain(torch.tanh), ROWS).graph_module.graph
    choices = {
        n.name: c for n, c in choose(graph, FP16, Measurements({}, {torch.ops.aten.tanh.default})).items()
    }
    assert choices["tanh"].runs == torch.float32
    assert "no fp16 kernel for it on the CPU" in choices["tanh"].reason
    assert choices["linear_1"].runs == torch.float16


def test_a_kernel_that_is_missing_is_found_by_running(monkeypatch):
    real = torch.ops.aten.tanh.default

    class Probe(under_test._Probe):
        def call_function(self, target, args, kwargs):
            if target is real and args[0].dtype == torch.float16:
                raise RuntimeError("\"tanh\" not implemented for 'Half'")
            return super().call_function(target, args, kwargs)

    monkeypatch.setattr(under_test, "_Probe", Probe)
    result = converted(Chain(torch.tanh), ROWS)
    assert [one.where for one in result.kept] == ["tanh (aten.tanh)"]
    assert types(result)["linear"] == "float16"


def test_a_network_with_nothing_for_sixteen_bits_is_refused():
    with pytest.raises(
        PrecisionNotUsable, match=r"no operator of this network would run in fp16.*precision fp32"
    ):
        converted(Fn(lambda x: torch.relu(x - 1)), ROWS)
