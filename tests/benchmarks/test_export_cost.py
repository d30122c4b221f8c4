"""The benchmark of what an export costs: its sums, and a run of a small network from end to end."""

import re

import pytest

from benchmarks.export import Cost, Work, main, table


def cost(seconds: float, peak_bytes: int) -> Cost:
    return Cost(seconds, 2 * seconds, seconds / 4, peak_bytes, 100, 25, {"copy": 1.0, "fold": 3.0})


def test_the_table_has_ratios_to_torch_onnx_and_to_the_weights():
    costs = {"foldserve": cost(8.0, 450), "torch.onnx": cost(4.0, 300), "trace": cost(1.0, 200)}
    row = table({Work("mlp", 6, 2): costs}).splitlines()[-1]
    assert row == (
        "| mlp, 6 layers of 2 | 0.0 M | 8.0, 4.0, 1.0 | 16.0, 8.0, 2.0 | 2.0 | 2.0 | 4.5, 3.0, 2.0 | fold 3.0, copy 1.0 |"
    )


@pytest.mark.parametrize(("network", "layers", "each"), [("mlp", 6, 1), ("conv", 13, 9)])
def test_a_network_has_about_the_parameters_that_were_asked_for(network, layers, each):
    built, _ = Work(network, layers, round((0.5e6 / layers / each) ** 0.5)).build()
    # The width is rounded to a whole number, and biases and norms come on top.
    assert sum(p.numel() for p in built.parameters()) == pytest.approx(0.5e6, rel=0.05)


def test_a_small_network_is_measured_in_every_way(capsys):
    assert main(["--networks", "mlp", "--parameters", "0.01"]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    numbers = [[float(number) for number in cell.split(",")] for cell in row.split("|")[3:5]]
    assert all(number > 0 for cell in numbers for number in cell)
    assert re.search(r"mlp, 6 layers of 41 \| 0\.0 M", row)
