"""Load a file of weights into a network, without ever running what is in the file.

Two formats: .safetensors, and what torch.save(module.state_dict(), path) writes, read with weights_only=True.
Strict: every key of the network and of the file is used. Nothing is renamed, stripped or left out in silence.
"""

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from models.errors import UnsafeWeights, WeightsDoNotFit, WeightsUnreadable

_SAVE = "torch.save(module.state_dict(), path), or safetensors.torch.save_file(module.state_dict(), path)"


def load_weights(module: nn.Module, path: Path) -> None:
    """Copy the weights in path into module, in place; floats are cast to the dtype of the module.

    A key may be missing where torch itself can do without it: the second name of a tied weight, and
    num_batches_tracked in files from before torch 0.4.

    Raises:
        WeightsUnreadable: there is no such file, it is damaged, or it holds something else than weights.
        UnsafeWeights: the file is a pickle of more than tensors; it was not run.
        WeightsDoNotFit: lists every missing, unexpected and mis-shaped key. The module is as it was.
    """
    weights = _read(path)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    problems = _misfits(module.state_dict(), weights)
    if not problems:
        try:
            report = module.load_state_dict(weights, strict=False)
        except RuntimeError as error:  # from a module with its own way of loading
            problems = [str(error)]
        else:
            problems = [f"missing: {name}" for name in _really_missing(module, report.missing_keys)]
            problems += [f"unexpected: {name}" for name in report.unexpected_keys]
    else:
        problems += [f"missing: {name}" for name in before if name not in weights]
        problems += [f"unexpected: {name}" for name in weights if name not in before]
    if problems:
        module.load_state_dict(before, strict=False)
        raise WeightsDoNotFit(_not_fitting(module, path, problems, list(weights), list(before)))


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise WeightsUnreadable(
            f"the weights file {path} {what}; expected a .safetensors or a torch.save file; check --weights"
        )
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not isinstance(content, dict):
        raise WeightsUnreadable(
            f"the weights file {path} holds a {type(content).__name__}; expected names with tensors; "
            f"write it with {_SAVE}"
        )
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise WeightsUnreadable(
            f"the weights file {path} holds more than tensors, under {_some(others)}; expected the state "
            "dict alone (a training checkpoint often has it under 'state_dict' or 'model'); write it with "
            f"{_SAVE}"
        )
    return content


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsUnreadable(
            f"the weights file {path} cannot be read as safetensors ({error}); it may be cut short, or have "
            "the wrong suffix; write it again with safetensors.torch.save_file(module.state_dict(), path)"
        ) from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # About odd pickles and TorchScript files; the errors below say it better.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Only the name that torch refused: the rest of its message advises weights_only=False.
        refused = re.search(r"GLOBAL (\S+)", str(error))
        asks = f"it asks for {refused[1]}" if refused else "it is a pickle of another kind"
        raise UnsafeWeights(
            f"the weights file {path} was not loaded: {asks}, and a pickle can run any code while it loads. "
            f"Expected tensors alone. Where you trust the file, load it in your own program and write {_SAVE}"
        ) from error
    except (
        Exception
    ) as error:  # a damaged file stops torch's reader in any way there is: IndexError, TypeError ...
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise WeightsUnreadable(
            f"the weights file {path} cannot be read ({reason}); expected a .safetensors or a torch.save "
            f"file; it may be cut short or be something else; write it again with {_SAVE}"
        ) from error


def _misfits(wanted: dict[str, Tensor], weights: dict[str, Tensor]) -> list[str]:
    """Return a line for each key in both whose tensors cannot be copied; all differences of kind or shape."""
    lines = []
    for name, there in weights.items():
        here = wanted.get(name)
        if here is None:
            continue
        if here.shape != there.shape:
            lines.append(f"mis-shaped: {name} is {_shape(there)} in the file, {_shape(here)} in the network")
        elif (here.is_floating_point(), here.is_complex()) != (there.is_floating_point(), there.is_complex()):
            lines.append(f"mis-typed: {name} is {there.dtype} in the file, {here.dtype} in the network")
    return lines


def _really_missing(module: nn.Module, missing: list[str]) -> list[str]:
    """Drop the second names of tied weights: the tensor was filled under its first name."""
    state = module.state_dict()
    filled = {
        (tensor.data_ptr(), tensor.shape, tensor.stride())
        for name, tensor in state.items()
        if name not in missing and tensor.numel()
    }
    return [
        name
        for name in missing
        if (state[name].data_ptr(), state[name].shape, state[name].stride()) not in filled
    ]


def _not_fitting(
    module: nn.Module, path: Path, problems: list[str], there: list[str], here: list[str]
) -> str:
    lines = "\n  ".join(problems)
    mend = "Export the network that these weights were trained for, or save its state dict again."
    for prefix in ("module.", "_orig_mod.", "model."):
        if (
            there
            and all(name.startswith(prefix) for name in there)
            and here
            and not here[0].startswith(prefix)
        ):
            mend = (
                f"Every key in the file begins with {prefix!r} (DataParallel, torch.compile or a trainer "
                "puts such a prefix there): save the state dict of the network inside."
            )
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    return f"the weights file {path} does not fit {type(module).__name__}, {count}:\n  {lines}\n{mend}"


def _shape(tensor: Tensor) -> str:
    return "(" + ", ".join(map(str, tensor.shape)) + ")"


def _some(names: list[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + rest
