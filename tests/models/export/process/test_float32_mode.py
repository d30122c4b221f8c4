import pytest
import torch
from torch import Tensor, nn

from foldserve.models.export import export_model
from foldserve.models.export.cli.summary import table
from foldserve.models.export.process.float32_mode import weights_in_float32
from foldserve.models.export.writers.torchscript_writer import load_torchscript
from tests.models.export.support import ConvNorm, captured, pictures

METHODS = {torch.float16: Tensor.half, torch.bfloat16: Tensor.bfloat16, torch.float64: Tensor.double}
OLD_NAMES = {torch.float16: "HalfTensor", torch.bfloat16: "BFloat16Tensor", torch.float64: "DoubleTensor"}


class Mixed(nn.Module):
    """The norm in float32, the rest in another type, as mixed-precision training leaves a network."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.conv = nn.Conv2d(3, 4, 3).to(dtype)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3).to(dtype)
        self.scale = torch.rand(3).to(dtype)  # a plain attribute, which Module.float() does not reach

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x.to(self.dtype)).float()))
        y = METHODS[self.dtype](y.mean((2, 3)))
        y = self.head(y) * self.scale + torch.ones(3, dtype=self.dtype)
        return y.type(f"torch.{OLD_NAMES[self.dtype]}").float()


@pytest.mark.parametrize("dtype", list(METHODS))
def test_a_network_of_mixed_types_is_exported_and_what_was_converted_is_said(dtype, tmp_path):
    network = Mixed(dtype)
    result = export_model(network, (pictures(),), tmp_path, name="m")
    word = str(dtype).removeprefix("torch.")
    assert result.report["converted_weights"] == [word]
    assert f"weights in {word} were converted to float32" in table(result)
    assert result.report["fold"]["folded"] == 1
    # The type's own rounding of the user's network: 8 roundings of 2**-11 or 2**-8, relative to the largest value.
    x = pictures(5)
    want = network.eval()(x)
    bound = {torch.float16: 8 * 2**-11, torch.bfloat16: 8 * 2**-8, torch.float64: 1e-4}[dtype]
    off = (load_torchscript(result.torchscript_path)(x) - want).abs().max() / want.abs().max()
    assert float(off.detach()) <= bound


@pytest.mark.parametrize("dtype", list(METHODS))
def test_a_network_of_one_type_takes_examples_in_its_own_type_and_in_float32(dtype):
    network = ConvNorm().to(dtype)
    for example in (pictures().to(dtype), pictures()):
        values = [
            n.meta["val"] for n in captured(network, example).graph_module.graph.nodes if "val" in n.meta
        ]
        assert {v.dtype for v in values if isinstance(v, Tensor) and v.is_floating_point()} == {torch.float32}


def test_tables_in_float64_beside_weights_in_float32_keep_their_digits(tmp_path):
    class Waves(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer(
                "frequencies", torch.tensor([1 / 3, 1 / 7, 1 / 11, 1 / 13], dtype=torch.float64)
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.layer((x.double() * 1e6 * self.frequencies).cos().float())

    network = Waves()
    result = export_model(network, (torch.rand(2, 4),), tmp_path, name="m")
    assert "converted_weights" not in result.report
    x = torch.rand(5, 4)
    got = load_torchscript(result.torchscript_path)(x)
    # In float32 the angles, up to 3e5, would be off by 1e-2.
    assert torch.allclose(got, network.eval()(x), rtol=1e-5, atol=1e-5)


def test_only_the_types_that_weights_had_are_read_as_float32():
    x = torch.ones(2)
    with weights_in_float32({torch.float16}):
        assert x.half().dtype == torch.float32
        assert torch.zeros(2, dtype=torch.half).dtype == torch.float32
        assert x.to("cpu", torch.float16).dtype == torch.float32
        assert x.type("torch.HalfTensor").dtype == torch.float32
        assert x.double().dtype == torch.float64
        assert x.bfloat16().dtype == torch.bfloat16
        assert x.type(torch.int64).dtype == torch.int64
