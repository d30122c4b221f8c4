"""Each network of the registry: its shapes, its size, and that torch.export captures it with dynamic rows."""

import pytest
import torch
from torch import nn
from torch.export import Dim, export
from torch.nn.modules.batchnorm import _NormBase

from foldserve.models.activations import ACTIVATIONS
from foldserve.models.convnet import ConvNet, output_size
from foldserve.models.image_input import ImageInput
from foldserve.models.mlp import NeuralNetwork
from foldserve.models.mobilenet import MobileNet
from foldserve.models.recurrent import symbolic_length
from foldserve.models.registry import Target, available, resolve
from foldserve.models.resnet import BasicBlock, ResNet
from foldserve.models.transformer import TransformerEncoder
from foldserve.models.unet import UNet
from tests.models.support import randomise_norms

# Parameters and batch norms. The published counts where there are some: resnet18, 34 and 50 in torchvision's
# documentation; MobileNet 4.2 million in table 8 of its paper; EfficientNet-Lite0 4.7 million by its authors.
# The rest was worked out by hand from the layers.
SIZES = {
    "mlp": (10 * 20 + 20 + 20 * 5 + 5, 0),
    "convnet": (24_346, 3),
    "resnet18": (11_689_512, 20),
    "resnet34": (21_797_672, 36),
    "resnet50": (25_557_032, 53),
    "resnet_small": (272_474, 21),
    "mobilenet": (4_231_976, 27),
    "unet": (482_866, 17),
    "lstm": (17_380, 1),
    "transformer": (131_332, 0),
    "digits": (38_442, 3),
    "efficientnet_lite0": (4_652_008, 49),
    "efficientnet_lite0_uint8": (4_652_008, 49),
}
ANSWERS = {
    "mlp": (2, 5),
    "convnet": (2, 10),
    "resnet18": (2, 1000),
    "resnet34": (2, 1000),
    "resnet50": (2, 1000),
    "resnet_small": (2, 10),
    "mobilenet": (2, 1000),
    "unet": (2, 2, 64, 64),
    "lstm": (2, 4),
    "transformer": (2, 4),
    "digits": (2, 10),
    "efficientnet_lite0": (2, 1000),
    "efficientnet_lite0_uint8": (2, 1000),
}


@pytest.fixture(autouse=True)
def _same_numbers_each_time():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(params=available(), scope="module")
def target(request: pytest.FixtureRequest) -> Target:
    """Each network of the registry, built once, with norms that do something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = resolve(request.param)
        if not request.param.startswith(("digits", "efficientnet")):  # these have trained norms
            randomise_norms(found.module)
    found.module.eval()
    return found


def more_rows(target: Target, rows: int, length: int = 5) -> torch.Tensor:
    (example,) = target.example_inputs
    shape = [rows, *example.shape[1:]]
    for dim in (target.dynamic_axes or {}).get("x", {}):
        shape[dim] = length
    if example.dtype.is_floating_point:
        return torch.randn(shape)
    return torch.randint(0, int(example.max()) + 1, shape, dtype=example.dtype)


def test_network_has_the_parameters_and_norms_of_its_docstring(target):
    parameters = sum(p.numel() for p in target.module.parameters())
    norms = sum(isinstance(m, _NormBase) for m in target.module.modules())
    assert (parameters, norms) == SIZES[target.name]


def test_network_answers_its_example_with_one_finite_answer_per_row(target):
    with torch.inference_mode():
        answer = target.module(*target.example_inputs)
    assert answer.shape == ANSWERS[target.name]
    assert answer.dtype is torch.float32
    assert answer.isfinite().all()


def test_row_is_answered_the_same_alone_and_in_company(target):
    """A network whose rows look at each other could not be batched."""
    (example,) = target.example_inputs
    network = target.module.double()
    x = example.double() if example.dtype.is_floating_point else example
    with torch.inference_mode():
        together = network(x)
        alone = torch.cat([network(row[None]) for row in x])
    network.float()
    # In float64 another order of summation shows at 1e-15, a row that leaks into another at 1e-3 and more.
    torch.testing.assert_close(alone, together, rtol=1e-10, atol=1e-12)


def test_captured_network_answers_other_numbers_of_rows_and_lengths_as_eager_does(target):
    axes = (target.dynamic_axes or {}).get("x", {})
    dims = ({0: Dim("rows")} | {dim: Dim(name, max=512) for dim, name in axes.items()},)
    with symbolic_length(), torch.no_grad():
        captured = export(target.module, target.example_inputs, dynamic_shapes=dims).run_decompositions({})
    graph = captured.module(check_guards=False)
    for rows, length in [(1, 1), (3, 20)]:
        x = more_rows(target, rows, length)
        with torch.inference_mode():
            # The same kernels on the same numbers; 1e-5 leaves room for one that chooses by layout.
            torch.testing.assert_close(graph(x), target.module(x), rtol=1e-5, atol=1e-5)


def test_two_networks_built_from_one_seed_are_equal():
    torch.manual_seed(3)
    one = resolve("convnet").module
    torch.manual_seed(3)
    other = resolve("convnet").module
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("batch_norm", [True, False], ids=["norm", "no norm"])
def test_convnet_of_any_arguments_has_maps_of_the_size_it_says(name, stride, batch_norm):
    network = ConvNet(
        1, 4, widths=(3, 5), stride=stride, hidden_activation=name, batch_norm=batch_norm
    ).eval()
    for height, width in [(1, 1), (7, 12), (32, 31)]:
        pictures = torch.randn(2, 1, height, width)
        assert network.features(pictures).shape[2:] == network.map_size(height, width)
        assert network(pictures).shape == (2, 4)
    assert any(isinstance(m, nn.BatchNorm2d) for m in network.modules()) is batch_norm


def test_output_size_is_the_same_for_stride_one_and_half_rounded_up_for_stride_two():
    assert [output_size(n, 1) for n in (1, 7, 32)] == [1, 7, 32]
    assert [output_size(n, 2) for n in (1, 7, 32)] == [1, 4, 16]


def test_mlp_has_the_dims_of_its_arguments():
    assert NeuralNetwork(input_dim=3, hidden_dim=7, output_dim=2)(torch.randn(4, 3)).shape == (4, 2)


def test_mobilenet_of_a_quarter_width_answers_small_pictures():
    network = MobileNet(num_classes=7, width=0.25).eval()
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    # Table 7 of the paper: 0.5 million parameters with 1000 classes.
    assert sum(p.numel() for p in MobileNet(width=0.25).parameters()) == pytest.approx(0.5e6, rel=0.1)


def test_image_input_normalises_bytes_before_the_network():
    pictures = torch.tensor([0, 127, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    network = ImageInput(nn.Identity(), mean=[10.0, 127.0, 255.0], std=[1.0, 2.0, 4.0])
    assert network(pictures).flatten().tolist() == [-10.0, 0.0, 0.0]
    assert network.double()(pictures).dtype is torch.float64
    assert ImageInput(nn.Identity(), mean=127.0, std=128.0)(pictures).flatten().tolist() == [
        -127 / 128,
        0.0,
        1.0,
    ]


def test_image_input_keeps_the_state_dict_of_its_network():
    network = ConvNet()
    assert list(ImageInput(network, 0.0, 255.0).state_dict()) == [
        f"network.{name}" for name in network.state_dict()
    ]


def test_transformer_with_sine_positions_tells_the_order_of_tokens():
    network = TransformerEncoder().eval()
    tokens = torch.tensor([[1, 2, 3, 4]])
    assert not torch.allclose(network(tokens), network(tokens.flip(1)), atol=1e-4)
    # Section 3.5: PE(pos, 2i) = sin(pos / 10000^(2i / width)), and cos in the odd columns.
    assert network.positions[7, 0].item() == pytest.approx(0.6569866)  # sin 7
    assert network.positions[7, 1].item() == pytest.approx(0.7539023)  # cos 7


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConvNet(widths=()), "no widths; expected"),
        (lambda: ConvNet(stride=0), "stride 0; expected 1 or more"),
        (lambda: ConvNet(hidden_activation="relu6"), "no activation 'relu6'"),
        (lambda: ResNet(BasicBlock, (2, 2)), "2 depths and 4 widths"),
        (lambda: MobileNet(width=0), "width 0; expected"),
        (lambda: UNet(widths=(16, 24)), r"widths \(16, 24\); expected"),
        (lambda: UNet(widths=(16,)), r"widths \(16,\); expected two or more"),
        (lambda: TransformerEncoder(width=30, heads=4), "width 30 and 4 heads"),
        (lambda: ImageInput(nn.Identity(), 0.0, 0.0), "std 0.0; expected numbers above 0"),
        (
            lambda: ImageInput(nn.Identity(), [0.0, 1.0], [1.0]),
            "expected one number each, or one per channel",
        ),
    ],
)
def test_network_refuses_arguments_it_cannot_be_built_from(build, message):
    with pytest.raises(ValueError, match=message):
        build()
