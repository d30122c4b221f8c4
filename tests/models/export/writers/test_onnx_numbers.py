"""Arithmetic with a size that varies is in the ONNX file too."""

import torch

from foldserve.models.export.writers.onnx_writer import run_onnx, to_onnx
from tests.models.export.support import Fn, captured, largest_difference, onnx_session


def _places(x):
    """Of the largest value in a flattened map (rows, height, width) its row and column, and more of sizes."""
    width = x.shape[2]
    best = x.flatten(1).argmax(1)
    powers = (x[:, 0, 0].abs() + 1) ** width
    return torch.stack([best % width, best // width, width % (best + 1), best & width]), powers


def test_a_size_is_the_number_of_a_remainder_a_power_and_of_bits():
    graph = captured(Fn(_places), torch.rand(2, 4, 6), axes={"x": {1: "height", 2: "width"}})
    session = onnx_session(to_onnx(graph))
    for shape in ((1, 3, 2), (5, 4, 7)):
        x = torch.rand(shape)
        places, powers = run_onnx(session, (x,))
        assert torch.equal(places.T, _places(x)[0])
        # 1e-5: at most 2 ** 7, in float32.
        assert largest_difference((powers / _places(x)[1],), (torch.ones(shape[0]),)) < 1e-5
