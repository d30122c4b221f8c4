import torch
from torch import nn

from models.export.float64_mode import float64_arithmetic, widened


class Casts(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        scale = torch.zeros(2) + torch.ones(2, dtype=torch.float32)
        return self.linear(x.float() / 255).to(torch.float16) * scale


def test_casts_to_smaller_floats_stay_float64():
    module = Casts().double()
    pictures = torch.randint(0, 256, (4, 3), dtype=torch.uint8)
    with float64_arithmetic():
        got = module(pictures)
    assert got.dtype == torch.float64
    want = pictures.double() / 255 @ module.linear.weight.T + module.linear.bias
    assert torch.allclose(
        got, want, rtol=1e-14, atol=1e-14
    )  # float64 roundings; a cast to float16 makes 1e-4


def test_the_default_type_is_put_back_also_after_an_error():
    try:
        with float64_arithmetic():
            torch.zeros(2)
            assert torch.get_default_dtype() == torch.float32  # as the network is told
            raise KeyError
    except KeyError:
        pass
    assert torch.get_default_dtype() == torch.float32


def test_widened_leaves_integers():
    floats, ids = widened([torch.zeros(1), torch.zeros(1, dtype=torch.int32)])
    assert (floats.dtype, ids.dtype) == (torch.float64, torch.int32)
