"""The benchmark of what an export costs: its sums, and a small network in every way."""

import pytest

from benchmarks.export import WAYS, Cost, Work, measure, table


def cost(seconds: float, peak_bytes: int) -> Cost:
    return Cost(seconds, 2 * seconds, seconds / 4, peak_bytes, 100, 25, {"copy": 1.0, "fold": 3.0})


def test_the_table_has_ratios_to_torch_onnx_and_to_the_weights():
    costs = {"foldserve": cost(8.0, 450), "torch.onnx": cost(4.0, 300), "trace": cost(1.0, 200)}
    cells = table({Work("mlp", 6, 2): costs}).splitlines()[-1].strip("| ").split(" | ")
    assert cells[:2] == ["mlp, 6 layers of 2", "0.0 M"]
    assert cells[2:5] == ["8.0, 4.0, 1.0", "16.0, 8.0, 2.0", "2.0"]
    assert cells[5:] == ["2.0", "4.5, 3.0, 2.0", "fold 3.0, copy 1.0"]


@pytest.mark.parametrize(("network", "layers", "each"), [("mlp", 6, 1), ("conv", 13, 9)])
def test_a_network_has_about_the_parameters_that_were_asked_for(network, layers, each):
    built, _ = Work(network, layers, round((0.5e6 / layers / each) ** 0.5)).build()
    # The width is rounded to a whole number, and norms come on top.
    assert sum(p.numel() for p in built.parameters()) == pytest.approx(0.5e6, rel=0.05)


@pytest.mark.parametrize("way", WAYS)
def test_a_small_network_is_measured_in_every_way(way):
    found = measure(way, Work("mlp", 3, 8))
    assert 0 < found.own_seconds < found.seconds or way == "trace"  # which calls none of the tools
    # The network itself is among what was needed; three layers without a bias, each with a norm.
    assert found.peak > 0
    assert found.weights_bytes > 4 * found.parameters == 4 * 3 * (8 * 8 + 2 * 8)
