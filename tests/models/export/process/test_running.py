"""What is set around every run: torch's plain ways, whatever the caller's program has set."""

import contextlib

import pytest
import torch
from torch import Tensor, nn

from foldserve.models.export import export_model
from foldserve.models.export.process.running import plain_process, plain_ways
from foldserve.models.export.writers.torchscript_writer import load_torchscript
from tests.models.export.support import ConvNorm, captured, largest_difference, pictures


class Tokens(nn.Module):
    def __init__(self, **options):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, **options)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=not options)

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:
        return self.encoder(x, src_key_padding_mask=padded)


@pytest.mark.filterwarnings(
    "ignore:.*nested tensors is in prototype stage:UserWarning"
)  # the network's own fast path
@pytest.mark.parametrize("options", [{}, {"norm_first": True}], ids=["post-norm", "pre-norm"])
def test_an_encoder_with_padding_answers_each_token_as_the_network(options, tmp_path):
    network = Tokens(**options)
    padded = torch.tensor([[False] * 4 + [True] * 2, [False] * 5 + [True]])
    x = torch.randn(2, 6, 16)
    result = export_model(network, (x, padded), tmp_path, name="m")
    got = load_torchscript(result.torchscript_path)(x, padded)
    with torch.no_grad():
        want = network.eval()(x, padded)  # on the fast path: zeros at padded positions
    assert torch.allclose(
        got[~padded], want[~padded], rtol=1e-4, atol=1e-5
    )  # the export's promise in float32
    assert torch.backends.mha.get_fastpath_enabled()


class Autocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cuda", enabled=False):
            return self.linear(x)


def test_a_part_under_autocast_is_written_in_float32(tmp_path):
    report = export_model(Autocast(), (torch.randn(2, 4),), tmp_path, name="m").report
    assert report["outputs"][0]["datatype"] == "FP32"
    assert report["parity"]["onnx"]["max_rel"] <= 1e-4


@contextlib.contextmanager
def default_type_float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "surroundings",
    [
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.device("meta"),
        default_type_float64,
    ],
    ids=["inference_mode", "autocast", "default device", "default type"],
)
def test_what_the_callers_program_has_set_reaches_no_file(surroundings, tmp_path):
    network, x = ConvNorm(), pictures()
    with surroundings():
        result = export_model(network, (x,), tmp_path, name="m")
    got = load_torchscript(result.torchscript_path)(x)
    assert got.dtype == torch.float32
    assert torch.allclose(got, network.eval()(x), rtol=1e-4, atol=1e-5)  # the export's promise in float32


def test_what_is_set_is_put_back_after_an_error():
    enter = torch.autocast.__enter__
    grad = torch.is_grad_enabled()
    with default_type_float64():
        with contextlib.suppress(KeyError), plain_process(), plain_ways({torch.float16}):
            assert torch.get_default_dtype() == torch.float32
            raise KeyError
        assert torch.get_default_dtype() == torch.float64
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.autocast.__enter__ is enter
    assert torch.is_grad_enabled() == grad
    assert torch.zeros(1).half().dtype == torch.float16


class Mixture(nn.Module):
    """Shape: x (N, 4) and y (N) in, (N) out: the logarithm of the density of y under a mixture that x describes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 9)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shares, means, spreads = self.layer(x).chunk(3, -1)
        parts = torch.distributions.Normal(means, spreads.exp())
        return torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(logits=shares), parts
        ).log_prob(y)


def test_distributions_are_captured_without_looking_at_values(monkeypatch):
    # torch's own compiler turns these checks off for the whole process: whoever ran before may have.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    network = Mixture()
    graph = captured(network, torch.randn(3, 4), torch.randn(3))
    x, y = torch.randn(5, 4), torch.randn(5)
    with torch.no_grad():
        # 1e-5: logarithms and exponentials of a few float32 numbers.
        assert largest_difference(graph.graph_module(x, y), (network(x, y),)) < 1e-5
    with pytest.raises(ValueError, match="scale"):  # as before
        torch.distributions.Normal(0.0, -1.0)
