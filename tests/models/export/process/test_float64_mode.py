import torch
from torch import nn

from foldserve.models.export import export_model
from foldserve.models.export.network.module_copy import double_copy, eval_copy
from foldserve.models.export.process.float64_mode import float64_arithmetic, widened


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


class LooksAtTypes(nn.Module):
    """A forward that computes with what it is told of types and limits."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.plain = torch.randn(3, 3)  # neither parameter nor buffer: double() does not reach it

    def forward(self, x):
        assert x.dtype == torch.float32
        y = self.linear(x) @ self.plain * x.element_size() * x.itemsize
        y = y / (y.norm(dim=1, keepdim=True) + torch.finfo(y.dtype).eps)
        y = (
            y
            + torch.finfo(torch.get_default_dtype()).eps * 1e5
            + torch.tensor(0.1)
            + y.new_tensor([0.1, 0.2, 0.3])
        )
        y = y + torch.FloatTensor([0.1, 0.2, 0.3]) + (0.0 if x.type() == "torch.FloatTensor" else 1.0)
        return y.masked_fill(y > 1, torch.finfo(torch.result_type(y, 1.0)).max / 1e38)


def test_questions_for_types_and_limits_are_answered_as_in_float32():
    single = LooksAtTypes()
    x = torch.randn(4, 3)
    with torch.no_grad():
        want = single(x)
        double = double_copy(eval_copy(single).module)
    with float64_arithmetic():
        got = double(x.double())
    assert got.dtype == torch.float64
    # A limit, a size or a number of the other type is off by 1e-2 and more; float32 carries 6e-8 a rounding.
    assert torch.allclose(got, want.double(), rtol=1e-5, atol=1e-5)
    assert not torch.equal(got, got.float().double())


def test_a_network_that_computes_with_the_limits_of_its_type_is_exported(tmp_path):
    report = export_model(LooksAtTypes(), (torch.randn(2, 3),), tmp_path, name="m").report
    assert report["parity"]["fold_float64"]["max_rel"] <= 1e-10


def test_what_is_written_to_keeps_its_own_memory():
    into, x = torch.zeros(3), torch.ones(3, dtype=torch.float64) / 3
    with float64_arithmetic():
        into += x
    assert into.dtype == torch.float32
    assert torch.equal(into, x.float())


class SpectralLayer(nn.Module):
    """As the layers of Fourier neural operators are written: weights and a buffer of zeros in complex64."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(4, dtype=torch.cfloat, generator=torch.Generator().manual_seed(0))
        )

    def forward(self, x):
        low = torch.fft.rfft(x)[:, :4] * self.weight
        spectrum = torch.zeros(len(x), 9, dtype=torch.cfloat)
        spectrum[:, :4] = low if low.dtype == torch.complex64 else torch.zeros_like(low)
        return torch.fft.irfft(torch.einsum("nk,k->nk", spectrum[:, :4], self.weight), n=16)


def test_complex_numbers_are_computed_in_two_float64_and_said_to_be_complex64():
    module = SpectralLayer()
    x = torch.randn(3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with float64_arithmetic():
        got = module.double()(x)
    want = torch.fft.irfft(torch.fft.rfft(x)[:, :4] * module.weight.to(torch.complex128) ** 2, n=16)
    assert got.dtype == torch.float64
    assert torch.allclose(got, want, rtol=1e-14, atol=1e-14)  # float64 roundings; complex64 makes 1e-7
