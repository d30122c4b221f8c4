"""Attention with other than four dims is in the ONNX file too."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from foldserve.models.export.writers.onnx_writer import run_onnx, to_onnx
from tests.models.export.support import captured, largest_difference, onnx_session


class Attention(nn.Module):
    """x (rows, ..., steps, 8) in and out; a step sees its neighbours, and others by a mask of each row."""

    def __init__(self, mask: str) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 24)
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.mix(x).chunk(3, -1)
        steps = torch.arange(x.shape[-2])
        seen = (steps[:, None] - steps).abs() < 2
        if self.mask == "of each row":
            seen = seen | (x[..., :1] > 0)
        return scaled_dot_product_attention(query, key, value, seen, scale=0.3)


@pytest.mark.parametrize(("shape", "mask"), [((), "of each row"), ((2, 3), "of all")])
def test_attention_of_any_number_of_dims_is_in_the_onnx_file(shape, mask):
    network = Attention(mask).eval()
    steps = len(shape) + 1
    graph = captured(network, torch.randn(2, *shape, 5, 8), axes={"x": {steps: "steps"}})
    session = onnx_session(to_onnx(graph))
    for rows, length in ((1, 1), (3, 7)):
        x = torch.randn(rows, *shape, length, 8)
        with torch.no_grad():
            # 1e-5: float32 sums of eight numbers in another order.
            assert largest_difference(run_onnx(session, (x,)), (network(x),)) < 1e-5
