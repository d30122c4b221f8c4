"""models/weights.py: what fits is loaded, what does not is listed whole, and no pickle is run."""

import copy
import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from random import Random

import pytest
import safetensors.torch
import torch
from torch import nn

from foldserve.models.errors import ExportError, UnsafeWeights, WeightsDoNotFit, WeightsUnreadable
from foldserve.models.weights import load_weights


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.output = nn.Linear(2, 3)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.output = nn.Linear(4, 5, bias=False)
        self.output.weight = self.embedding.weight


def trained(module: nn.Module) -> nn.Module:
    """Return a copy of module with other numbers everywhere."""
    other = copy.deepcopy(module)
    with torch.no_grad():
        for number, tensor in enumerate(other.state_dict().values(), start=1):
            tensor.fill_(number)
    return other


def save(state: dict, path: Path) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return path


def same(module: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("file", ["w.safetensors", "w.pt", "w.pth", "w"])
def test_weights_saved_in_either_format_come_back(tmp_path, file):
    expected = trained(Small()).state_dict()
    module = Small()
    load_weights(module, save(expected, tmp_path / file))
    assert same(module, expected)


def test_weights_in_the_old_format_of_torch_come_back(tmp_path):
    expected = trained(Small()).state_dict()
    torch.save(expected, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    module = Small()
    load_weights(module, tmp_path / "w.pt")
    assert same(module, expected)


def test_half_precision_weights_are_cast_to_the_dtype_of_the_network(tmp_path):
    expected = trained(Small()).state_dict()
    halves = {name: t.half() if t.is_floating_point() else t for name, t in expected.items()}
    module = Small()
    load_weights(module, save(halves, tmp_path / "w.safetensors"))
    assert same(module, expected)
    assert module.conv.weight.dtype is torch.float32


@pytest.mark.parametrize("file", ["w.safetensors", "w.pt"])
def test_everything_that_does_not_fit_is_listed_at_once_and_the_network_is_as_it_was(tmp_path, file):
    state = trained(Small()).state_dict()
    del state["norm.running_mean"], state["conv.bias"]
    state["output.weight"] = torch.zeros(4, 2)
    state["norm.weight"] = torch.zeros(2, dtype=torch.int64)
    state["head.weight"] = torch.zeros(1)
    module = Small()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(WeightsDoNotFit) as caught:
        load_weights(module, save(state, tmp_path / file))
    message = str(caught.value)
    assert "does not fit Small, 5 problems:" in message
    for line in (
        "missing: conv.bias",
        "missing: norm.running_mean",
        "unexpected: head.weight",
        "mis-shaped: output.weight is (4, 2) in the file, (3, 2) in the network",
        "mis-typed: norm.weight is torch.int64 in the file, torch.float32 in the network",
    ):
        assert f"\n  {line}\n" in message
    assert same(module, before)


def test_missing_and_unexpected_keys_alone_leave_the_network_as_it_was(tmp_path):
    state = trained(Small()).state_dict()
    state["conv.kernel"] = state.pop("conv.weight")
    module = Small()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(
        WeightsDoNotFit, match=r"2 problems:\n  missing: conv.weight\n  unexpected: conv.kernel\n"
    ):
        load_weights(module, save(state, tmp_path / "w.pt"))
    assert same(module, before)


def test_second_name_of_a_tied_weight_may_be_missing_and_an_untied_one_may_not(tmp_path):
    state = trained(Tied()).state_dict()
    # safetensors refuses to write one tensor under two names, so files have the first only.
    path = save({"embedding.weight": state["embedding.weight"]}, tmp_path / "w.safetensors")
    module = Tied()
    load_weights(module, path)
    assert same(module, state)
    untied = Tied()
    untied.output.weight = nn.Parameter(untied.output.weight.detach().clone())
    with pytest.raises(WeightsDoNotFit, match=r"missing: output\.weight"):
        load_weights(untied, path)


def test_files_from_before_num_batches_tracked_are_loaded(tmp_path):
    state = trained(Small()).state_dict()
    # A plain dict, as such files have: torch sees no version in it, and knows that the counter came later.
    old = {name: tensor for name, tensor in state.items() if name != "norm.num_batches_tracked"}
    module = Small()
    load_weights(module, save(old, tmp_path / "w.pt"))
    assert torch.equal(module.norm.running_var, state["norm.running_var"])


class Trap:
    """What an attacker puts into a file: a call that is made while it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("how", ["torch.save", "torch.save, old", "pickle"])
def test_pickle_that_would_run_code_is_refused_and_not_run(tmp_path, how):
    ran = tmp_path / "ran"
    state = OrderedDict(weight=Trap(f"touch {ran}"))
    path = tmp_path / "w.pt"
    if how == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how == "torch.save")
    # The trap works: unpickled, it does run.
    pickle.load(io.BytesIO(pickle.dumps(state)))
    assert ran.exists()
    ran.unlink()
    with pytest.raises(
        UnsafeWeights, match=r"was not loaded: it (asks for posix\.system|is a pickle).*save_file"
    ) as caught:
        load_weights(Small(), path)
    assert not ran.exists()
    assert "weights_only=False" not in str(caught.value)


def test_whole_saved_module_is_refused_with_the_way_to_save_its_weights(tmp_path):
    torch.save(Small(), tmp_path / "w.pt")
    with pytest.raises(
        UnsafeWeights, match=r"asks for \S+\.Small,.*torch\.save\(module\.state_dict\(\), path\)"
    ):
        load_weights(Small(), tmp_path / "w.pt")


def test_file_of_a_bare_tensor_is_refused(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "w.pt")
    with pytest.raises(WeightsUnreadable, match="holds a Tensor; expected names with tensors"):
        load_weights(Small(), tmp_path / "w.pt")


@pytest.mark.parametrize("file", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("kept", [0, 1, 50, 400])
def test_file_cut_short_is_refused(tmp_path, file, kept):
    path = save(Small().state_dict(), tmp_path / file)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ExportError, match=r"cannot be read|was not loaded"):
        load_weights(Small(), path)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("file", ["w.safetensors", "w.pt", "old.pt"])
def test_damaged_file_ends_in_an_error_of_ours_or_in_weights_of_the_right_shape(tmp_path, file, seed):
    """torch's reader of tensors-only pickles leaves IndexError, TypeError and others uncaught."""
    path = tmp_path / file
    if file == "old.pt":
        torch.save(Small().state_dict(), path, _use_new_zipfile_serialization=False)
    else:
        save(Small().state_dict(), path)
    whole = path.read_bytes()
    random = Random(seed)
    refused = 0
    for _ in range(50):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[random.randrange(min(len(whole), 600))] = random.randrange(256)
        path.write_bytes(damaged)
        try:
            load_weights(Small(), path)
        except ExportError:
            refused += 1
    assert refused > 10


def test_file_that_is_not_there_and_a_folder_are_refused(tmp_path):
    with pytest.raises(WeightsUnreadable, match=r"none\.pt is not there; expected"):
        load_weights(Small(), tmp_path / "none.pt")
    with pytest.raises(WeightsUnreadable, match="is a folder; expected"):
        load_weights(Small(), tmp_path)
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(WeightsUnreadable, match="is no ordinary file but a pipe or a device; expected"):
        load_weights(Small(), tmp_path / "pipe.pt")
