"""What a person is told: the own line, the real reason, one mend, and nothing of torch's advice."""

import json

import pytest
import torch
from torch import Tensor, nn

from foldserve.models.errors import ExportError
from foldserve.models.export import export_model
from foldserve.models.export.network.refusals import reason, user_line, without_advice
from tests.models.export.support import Fn, captured


class Energy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def energy(self, x: Tensor) -> Tensor:
        return self.layer(x).pow(2).sum()


class ByGrad(Energy):
    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            return torch.autograd.grad(self.energy(y), y)[0]


class ByBackward(Energy):
    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            self.energy(y).backward()
        assert y.grad is not None
        return y.grad


class ByFunction(Energy):
    def forward(self, x: Tensor) -> Tensor:
        return torch.func.grad(self.energy)(x)


class Packs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(4, 5, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(self.layer(packed)[0], batch_first=True, total_length=6)[0]


class DropsAlways(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def train(self, mode: bool = True) -> "DropsAlways":
        super().train(mode)
        self.drop.train()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x)


class DoesNotPassOn(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def train(self, mode: bool = True) -> "DoesNotPassOn":
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x)


@pytest.mark.parametrize(
    ("network", "inputs", "message"),
    [
        (
            ByGrad(),
            1,
            r"forward computes gradients at test_refusals.py, line \d+, in forward: `return torch.autograd",
        ),
        (
            ByBackward(),
            1,
            r"forward computes gradients at .*`self.energy\(y\).backward\(\)`: .*Write the derivative",
        ),
        (ByFunction(), 1, r"forward computes gradients at test_refusals.py.*Write the derivative out"),
        (
            Packs(),
            2,
            r"packs a padded batch at .*`packed = nn.utils.rnn.pack_padded.* Run the recurrent layer",
        ),
        (
            DropsAlways(),
            1,
            r"drop \(aten.*dropout\) at test_refusals.py, line .*` draws random numbers.*eval\(\) that reaches it",
        ),
        (
            DoesNotPassOn(),
            1,
            r"drop \(aten.*dropout\) at test_refusals.py, line \d+, in .*` draws random numbers, also in eval",
        ),
        (Fn(lambda x: json.loads("{")), 1, r"JSONDecodeError: .* at test_refusals.py, line \d+, in <lambda>"),
        (Fn(lambda x: x * json.loads(str(float(x.sum())))), 1, r"depends on values at test_refusals.py"),
    ],
)
def test_a_refusal_names_the_users_line_the_reason_and_one_mend(network, inputs, message):
    example = (torch.randn(2, 6, 4), torch.tensor([6, 4]))[:inputs]
    with pytest.raises(ExportError, match=message) as raised:
        captured(network, *example)
    assert not any(word in str(raised.value) for word in ("github", "Please", "TORCH_", "issue"))
    assert torch.autograd.grad.__module__ == "torch.autograd"


class Asserts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert (x < 100).all()
        return x + 1


def test_an_assertion_on_values_is_refused_with_the_way_to_leave_it_out():
    line = r"forward asserts something of the values at test_refusals.py, line \d+, in forward: `assert \(x < 100"
    with pytest.raises(ExportError, match=line + r".*PYTHONOPTIMIZE=1"):
        captured(Asserts(), torch.randn(2, 4))


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*quantize.*:UserWarning")
def test_a_quantised_module_is_refused_by_its_place():
    network = nn.Sequential(nn.ReLU(), nn.Linear(4, 4))
    quantised = torch.ao.quantization.quantize_dynamic(network, {nn.Linear})
    with pytest.raises(ExportError, match=r"submodule '1' is quantised .*Export the float network"):
        captured(quantised, torch.randn(2, 4))


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*quantize.*:UserWarning")
def test_fake_quantisation_is_refused_with_a_mend_that_works():
    network = nn.Sequential(nn.Linear(4, 4), torch.ao.quantization.FakeQuantize())
    network(torch.randn(2, 4))
    with pytest.raises(
        ExportError, match=r"rounds as if it were quantised.*nn\.Identity\(\) in the place of"
    ):
        captured(network, torch.randn(2, 4))
    network[1] = nn.Identity()
    assert captured(network, torch.randn(2, 4)).output_names == ("y",)


def test_weights_without_values_are_refused_by_name_and_nothing_is_written(tmp_path):
    attribute = nn.ReLU()
    attribute.table = [torch.zeros(3, device="meta")]
    buffer = nn.Sequential(nn.BatchNorm1d(4))
    buffer[0].running_var = buffer[0].running_var.to("meta")
    deep = nn.Sequential(*[nn.Linear(4, 4, device="meta") for _ in range(4)])
    for network, names in (
        (attribute, "table"),
        (buffer, "0.running_var"),
        (deep, "0.weight, 0.bias, 1.weight and 5 more"),
    ):
        with pytest.raises(ExportError, match=rf"{names} are on the device 'meta'.* to_empty|.*to_empty"):
            export_model(network, (torch.randn(2, 4),), tmp_path, name="m")
    assert list(tmp_path.iterdir()) == []


def test_the_innermost_line_of_the_project_is_told_and_not_that_of_a_library():
    def forward():
        json.loads("{")  # fails in Python's own library

    with pytest.raises(ValueError) as raised:  # noqa: PT011  # any error will do
        forward()
    assert 'in forward: `json.loads("{")' in user_line(raised.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Sizes differ. Please file an issue on github.com/pytorch.", "Sizes differ"),
        ("\n  Please report this.\nThe real one\nmore", "The real one"),
        ("You can set TORCH_LOGS=dynamic for more", ""),
        ("a [1, 2] and b", "a [1, 2] and b"),
    ],
)
def test_advice_is_taken_out_of_what_torch_says(text, said):
    assert without_advice(text) == said
    assert reason(TypeError(text)) == (f"TypeError: {said}" if said else "TypeError")
