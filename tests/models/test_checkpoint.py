"""models/checkpoint.py: the weights in what trainers write are found, renamed and told of, and never guessed."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from foldserve.models.errors import WeightsDoNotFit, WeightsUnreadable
from foldserve.models.weights import load_weights


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))


class Named(nn.Module):
    """A network whose parts have names."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        self.head = nn.Linear(2, 3)


class Holder(nn.Module):
    """A network as the part `network` of a wrapper without weights of its own, as in ImageInput."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


def numbered(module: nn.Module, first: int = 1) -> dict[str, torch.Tensor]:
    """The state dict of module with other numbers everywhere."""
    return {
        name: torch.full_like(tensor, number)
        for number, (name, tensor) in enumerate(module.state_dict().items(), start=first)
    }


STATE = numbered(small())
OTHER = numbered(small(), first=50)


def under(prefix: str, state: dict[str, torch.Tensor] = STATE) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def loaded(
    content: Any, tmp_path: Path, key: str | None = None, module: nn.Module | None = None
) -> tuple[nn.Module, str]:
    path = tmp_path / "w.pt"
    torch.save(content, path)
    module = small() if module is None else module
    return module, load_weights(module, path, key)


def holds(module: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


LIGHTNING = {
    "epoch": 1,
    "global_step": 10,
    "pytorch-lightning_version": "2.5",
    "hyper_parameters": {"lr": 0.1},
    "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}],
    "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (STATE, ""),
        ({"state_dict": STATE, "epoch": 3}, "taken from 'state_dict'"),
        ({"model": STATE, "optimizer": {}}, "taken from 'model'"),
        ({"model_state_dict": STATE}, "taken from 'model_state_dict'"),
        ({"student": STATE}, "taken from 'student'"),
        (under("module."), "the prefix 'module.' is dropped"),
        (under("_orig_mod."), "the prefix '_orig_mod.' is dropped"),
        (under("module._orig_mod."), "the prefix 'module._orig_mod.' is dropped"),
        (under("_orig_mod.module."), "the prefix '_orig_mod.module.' is dropped"),
        (under("net."), "the prefix 'net.' is dropped"),
        (under("my_own.part."), "the prefix 'my_own.part.' is dropped"),
        (
            {**LIGHTNING, "state_dict": under("model.")},
            "taken from 'state_dict', the prefix 'model.' is dropped",
        ),
        ({**LIGHTNING, "state_dict": under("net._orig_mod.")}, "the prefix 'net._orig_mod.' is dropped"),
        (
            {"state_dict": {**under("model."), "criterion.weight": torch.ones(3)}},
            "not used, beside them: 'criterion.weight'",
        ),
        ({"n_averaged": torch.tensor(4), **under("module.")}, "not used, beside them: 'n_averaged'"),
        ({"ema": STATE}, "taken from 'ema'"),
        ({"ema": {"module": STATE, "decay": 0.99}, "epoch": 2}, "taken from 'ema.module'"),
        ({**STATE, "epoch": 3, "arch": "small"}, ""),
    ],
)
def test_weights_in_a_checkpoint_are_found_and_it_is_told_how(tmp_path, content, told):
    module, note = loaded(content, tmp_path)
    assert holds(module, STATE)
    assert told in note
    assert "\n" not in note
    assert bool(note) == bool(told)


def test_averaged_model_of_torch_is_unwrapped(tmp_path):
    source = small()
    source.load_state_dict(STATE)
    averaged = torch.optim.swa_utils.AveragedModel(nn.DataParallel(source), use_buffers=True)
    averaged.update_parameters(nn.DataParallel(source))
    module, note = loaded(averaged.state_dict(), tmp_path)
    assert holds(module, STATE)
    assert "'module.module.' is dropped" in note


@pytest.mark.parametrize("part", ["features", "head"])
@pytest.mark.parametrize("wrapper", ["_orig_mod", "module", "_checkpoint_wrapped_module"])
def test_wrapper_around_a_part_of_the_network_is_dropped_from_the_midst_of_names(tmp_path, part, wrapper):
    state = numbered(Named())
    renamed = {name.replace(f"{part}.", f"{part}.{wrapper}."): tensor for name, tensor in state.items()}
    module, note = loaded(renamed, tmp_path, module=Named())
    assert holds(module, state)
    assert f"{wrapper!r} is dropped from names" in note


def test_weights_of_the_network_inside_a_wrapper_are_loaded_into_the_wrapper(tmp_path):
    for content in (STATE, {"state_dict": under("model.")}, under("module.")):
        module, note = loaded(content, tmp_path, module=Holder(Holder(small())))
        assert holds(module.network.network, STATE)
        assert "the prefix 'network.network.' of the network is put before the names" in note


def test_wrapper_with_weights_of_its_own_is_not_filled_by_half(tmp_path):
    module = Holder(small())
    module.head = nn.Linear(3, 2)
    with pytest.raises(WeightsDoNotFit, match=r"missing: head\.weight"):
        loaded(STATE, tmp_path, module=module)


def test_network_that_is_compiled_or_has_a_part_called_module_takes_its_own_names(tmp_path):
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)
            self.weight = nn.Parameter(torch.zeros(1))  # beside module.weight: not the same name

    state = numbered(Own())
    module, note = loaded(state, tmp_path, module=Own())
    assert holds(module, state)
    assert note == ""


@pytest.mark.parametrize("ema", ["ema", "model_ema", "state_dict_ema", "swa_state_dict", "params_ema"])
def test_averaged_weights_are_taken_before_the_last_ones_and_the_choice_is_told(tmp_path, ema):
    module, note = loaded({"model": OTHER, ema: STATE}, tmp_path)
    assert holds(module, STATE)
    assert f"taken from {ema!r}; 'model' would fit too (--weights-key chooses)" in note
    module, note = loaded({"model": OTHER, ema: STATE}, tmp_path, key="model")
    assert holds(module, OTHER)


def test_averaged_weights_under_a_prefix_beside_the_last_ones_are_taken(tmp_path):
    module, note = loaded({"state_dict": {**under("model.", OTHER), **under("ema_model.module.")}}, tmp_path)
    assert holds(module, STATE)
    assert "the prefix 'ema_model.module.' is dropped" in note
    assert "'state_dict.model' would fit too" in note


def test_averaged_weights_that_lack_the_buffers_are_not_taken_and_that_is_told(tmp_path):
    shadow = {name: tensor for name, tensor in STATE.items() if "running" not in name}
    module, note = loaded({"model": OTHER, "ema": {"shadow": shadow}}, tmp_path)
    assert holds(module, OTHER)
    assert "not the averaged weights in 'ema.shadow', which do not fit: '1.running_mean'" in note


def test_equal_weights_at_two_places_are_no_question(tmp_path):
    module, _ = loaded({"best": STATE, "last": copy.deepcopy(STATE)}, tmp_path)
    assert holds(module, STATE)


def test_different_weights_that_nothing_tells_apart_are_refused_with_the_option_that_chooses(tmp_path):
    content = {"teacher": STATE, "student": OTHER}
    with pytest.raises(
        WeightsDoNotFit, match=r"holds several weights that fit.*'student', 'teacher'.*--weights-key"
    ):
        loaded(content, tmp_path)
    assert holds(loaded(content, tmp_path, key="teacher")[0], STATE)
    with pytest.raises(WeightsDoNotFit, match=r"nothing under 'tutor'.*it has 'student', 'teacher'"):
        loaded(content, tmp_path, key="tutor")


def test_checkpoint_that_does_not_fit_is_listed_by_the_names_of_its_nearest_place(tmp_path):
    state = under("model.")
    del state["model.3.bias"]
    state["model.3.weight"] = torch.zeros(9, 2)
    with pytest.raises(WeightsDoNotFit) as caught:
        loaded({**LIGHTNING, "state_dict": state}, tmp_path)
    message = str(caught.value)
    assert "(looked at 'state_dict.model') does not fit Sequential, 2 problems:" in message
    assert "\n  mis-shaped: 3.weight is (9, 2) in the file, (3, 2) in the network" in message
    assert "\n  missing: 3.bias\n" in message


def test_names_beyond_the_networks_own_are_refused_as_before(tmp_path):
    with pytest.raises(WeightsDoNotFit, match=r"1 problem:\n  unexpected: model.9.weight"):
        loaded({**under("model."), "model.9.weight": torch.zeros(1)}, tmp_path)
    holder = under("network.")
    with pytest.raises(WeightsDoNotFit, match=r"1 problem:\n  unexpected: head.weight"):
        loaded({**holder, "head.weight": torch.zeros(1)}, tmp_path, module=Holder(small()))


def test_checkpoint_without_named_tensors_is_refused_with_what_it_has(tmp_path):
    with pytest.raises(
        WeightsUnreadable, match=r"no tensors under names, but 'epoch' \(int\), 'loss' \(float\)"
    ):
        loaded({"epoch": 3, "loss": 0.5}, tmp_path)


def test_weights_on_the_meta_device_become_the_files(tmp_path):
    with torch.device("meta"):
        module = small()
    halves = {name: t.half() if t.is_floating_point() else t for name, t in STATE.items()}
    loaded({"state_dict": halves}, tmp_path, module=module)
    assert holds(module, STATE)
    assert {p.dtype for p in module.parameters()} == {torch.float32}


class WithState(nn.Module):
    """Keeps something beside tensors, as torch lets a module do."""

    def __init__(self, kept: str = "") -> None:
        super().__init__()
        self.part = nn.Linear(2, 2)
        self.kept = kept

    def get_extra_state(self) -> dict[str, str]:
        return {"kept": self.kept}

    def set_extra_state(self, state: dict[str, str]) -> None:
        self.kept = state["kept"]


def test_extra_state_of_a_module_is_loaded_with_its_weights(tmp_path):
    source = WithState("vocabulary")
    content = {"state_dict": {f"model.{name}": value for name, value in source.state_dict().items()}}
    module, _ = loaded(content, tmp_path, module=WithState())
    assert module.kept == "vocabulary"
    assert torch.equal(module.part.weight, source.part.weight)


def test_small_network_is_found_in_a_large_file_in_time_linear_in_it(tmp_path):
    """Ten thousand names beside two: the place that fits is told, and every other layer of its shapes makes it none."""
    large = {
        f"layers.{number}.{name}": torch.zeros(1) for number in range(5_000) for name in ("weight", "bias")
    }
    state = {"weight": torch.ones(3, 2), "bias": torch.ones(3)}
    module, note = loaded({**large, **under("head.", state)}, tmp_path, module=nn.Linear(2, 3))
    assert holds(module, state)
    assert "the prefix 'head.' is dropped, not used, beside them: 'layers.0.weight'" in note


def test_search_is_linear_in_the_depth_of_the_network(tmp_path):
    """A thousand layers inside a checkpoint of a trainer: seconds, were every place compared whole."""
    deep = nn.Sequential(*(nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1)) for _ in range(500)))
    state = numbered(deep)
    module, note = loaded({"state_dict": under("model.", state)}, tmp_path, module=copy.deepcopy(deep))
    assert holds(module, state)
    assert "'model.' is dropped" in note
