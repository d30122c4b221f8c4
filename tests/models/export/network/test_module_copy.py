import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from foldserve.models.errors import NotCapturable
from foldserve.models.export.network.module_copy import double_copy, eval_copy
from tests.models.export.support import ConvNorm, pictures


def test_the_given_module_keeps_its_mode_its_flags_and_every_value():
    module = ConvNorm()
    module.norm.eval()  # a mixed state: the network trains, its norm does not
    before = copy.deepcopy(module.state_dict())
    duplicate = eval_copy(module).module
    with torch.no_grad():
        duplicate(pictures())
        for parameter in duplicate.parameters():
            parameter.add_(1)
    assert module.training
    assert not module.norm.training
    assert all(p.requires_grad for p in module.parameters())
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


class AlwaysDrops(nn.Dropout):
    def train(self, mode: bool = True) -> "AlwaysDrops":
        return super().train(True)


def test_the_copy_trains_exactly_where_the_networks_own_eval_leaves_it_training():
    modes = {
        path: m.training
        for path, m in eval_copy(nn.Sequential(AlwaysDrops(), ConvNorm())).module.named_modules()
    }
    assert {path for path, training in modes.items() if training} == {"0"}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_modules_whose_weight_is_computed_are_copied_and_keep_their_own():
    pruned = nn.Conv2d(3, 4, 3)
    prune.l1_unstructured(pruned, "weight", 0.5)
    for layer in (pruned, nn.utils.weight_norm(nn.Conv2d(3, 4, 3))):
        layer(pictures())
        with pytest.raises(RuntimeError, match="deepcopy"):
            copy.deepcopy(layer)  # why the memo is needed at all
        weight = layer.weight
        want = layer(pictures(1) * 0 + 1)
        assert torch.equal(eval_copy(layer).module(pictures(1) * 0 + 1), want)
        assert layer.weight is not None
        assert weight.grad_fn is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_become_float32_and_the_module_keeps_its_own(dtype):
    module = ConvNorm().to(dtype)
    assert {p.dtype for p in eval_copy(module).module.parameters()} == {torch.float32}
    assert {p.dtype for p in module.parameters()} == {dtype}


def test_double_copy_is_float64_and_leaves_the_float32_copy():
    single = eval_copy(ConvNorm()).module
    assert {p.dtype for p in double_copy(single).parameters()} == {torch.float64}
    assert {p.dtype for p in single.parameters()} == {torch.float32}


def test_a_module_that_cannot_be_copied_is_refused_with_the_reason():
    module = ConvNorm()
    module.lock = threading.Lock()
    with pytest.raises(NotCapturable, match=r"ConvNorm cannot be copied .*lock.* Keep files, locks"):
        eval_copy(module)


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")
def test_a_script_module_inside_is_refused_by_its_place():
    module = nn.Sequential(nn.Linear(2, 2), torch.jit.script(nn.Linear(2, 2)))
    with pytest.raises(NotCapturable, match=r"submodule '1' is a ScriptModule"):
        eval_copy(module)


def test_parameters_without_a_size_are_refused_by_name():
    with pytest.raises(NotCapturable, match=r"weight, bias have no size yet"):
        eval_copy(nn.LazyLinear(3))
