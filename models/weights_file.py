"""Read a file of weights, without ever running what is in it.

Two formats: safetensors under the name .safetensors, and what torch.save writes under any other, read with
weights_only=True. What the file is, is told by its first bytes, so that one of another kind is called by its name.
Knows nothing of networks: what is inside is checkpoint.py's.
"""

import argparse
import json
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
import safetensors.torch
import torch

from foldserve.models.errors import UnsafeWeights, WeightsUnreadable

SAVE: Final = (
    "torch.save(module.state_dict(), path), or safetensors.torch.save_file(module.state_dict(), path)"
)
_START: Final = 512
_LONGEST_HEADER: Final = 100 * 2**20  # of safetensors, by its own format


def read_weights(path: Path) -> Any:
    """Return what the file holds: of safetensors names with tensors, of torch.save whatever was saved.

    Raises:
        WeightsUnreadable: there is no such file, it is damaged, or it is of another kind, which is named.
        UnsafeWeights: the file is a pickle of more than plain data; it was not run.
    """
    if not path.is_file():
        what = (
            "is a folder"
            if path.is_dir()
            else "is no ordinary file but a pipe or a device"
            if path.exists()
            else "is not there"
        )
        raise WeightsUnreadable(
            f"the weights file {path} {what}; expected a .safetensors or a torch.save file; check --weights"
        )
    try:
        other = _other_kind(path)
        if other:
            raise WeightsUnreadable(f"the weights file {path} cannot be read as weights: it is {other}")
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    except OSError as error:
        raise WeightsUnreadable(
            f"the weights file {path} cannot be read: {error.strerror or error}; expected a file that this "
            "user may read"
        ) from error


def _read_safetensors(path: Path) -> Any:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError) as error:
        raise WeightsUnreadable(
            f"the weights file {path} cannot be read as safetensors ({error}); it may be cut short, or have "
            "the wrong suffix; write it again with safetensors.torch.save_file(module.state_dict(), path)"
        ) from error


def _plain_data() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What checkpoints hold beside tensors and torch itself would refuse: a run's options, numbers and arrays of numpy,
    paths. To make one runs no code of the file's."""
    from numpy._core import multiarray

    dtypes = {type(np.dtype(code)) for code in "?bhilqBHILQefdU"}
    of_numpy = [
        (function, f"numpy.{core}.multiarray.{function.__name__}")
        for function in (multiarray.scalar, multiarray._reconstruct)
        for core in ("core", "_core")  # of numpy 1 and 2
    ]
    return [argparse.Namespace, pathlib.PosixPath, np.dtype, np.ndarray, *dtypes, *of_numpy]


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_plain_data()):
            # About odd pickles; the errors below say it better.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Only the name that torch refused: the rest of its message advises weights_only=False.
        refused = re.search(r"GLOBAL (\S+)", str(error))
        asks = f"it asks for {refused[1]}" if refused else "it is a pickle of another kind"
        raise UnsafeWeights(
            f"the weights file {path} was not loaded: {asks}, and a pickle can run any code while it loads. "
            f"Expected tensors alone. Where you trust the file, load it in your own program and write {SAVE}"
        ) from error
    except OSError:
        raise
    except (
        Exception
    ) as error:  # a damaged file stops torch's reader in any way there is: IndexError, TypeError ...
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise WeightsUnreadable(
            f"the weights file {path} cannot be read ({reason}); expected a .safetensors or a torch.save "
            f"file; it may be cut short or be something else; write it again with {SAVE}"
        ) from error


# What a file is, by its first bytes ---------------------------------------------------------------------


def _other_kind(path: Path) -> str | None:
    """What the file is, and the mend, when it is certainly not what its name says; None otherwise."""
    with path.open("rb") as file:
        start = file.read(_START)
    named_safetensors = path.suffix == ".safetensors"
    if not start:
        return f"empty; write it again with {SAVE}"
    if start.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path, named_safetensors)
    if _is_safetensors(start):
        if named_safetensors:
            return None
        return f"a safetensors file under another name; rename it to {path.with_suffix('.safetensors').name}"
    for magic, kind in _KINDS:
        if start.startswith(magic):
            return f"{kind}; expected weights of torch: write {SAVE}"
    if path.suffix == ".onnx":
        return (
            f"an ONNX network; expected the weights of the torch network that it was made from: write {SAVE}"
        )
    return _kind_of_text(path, start)


_KINDS: Final = (
    (b"\x89HDF", "an HDF5 file, as Keras writes"),
    (b"GGUF", "a GGUF file, as llama.cpp reads"),
    (b"\x93NUMPY", "an array of numpy"),
    (b"\x1f\x8b", "a gzip archive, which may hold the weights; unpack it first"),
)


def _is_safetensors(start: bytes) -> bool:
    return start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= _LONGEST_HEADER


def _kind_of_zip(path: Path, named_safetensors: bool) -> str | None:
    """torch.save, TorchScript, torch.export and numpy all write zip archives."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError):
        return "the beginning of a file of torch.save, whose end is missing; copy or download it again"
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        return (
            "a TorchScript archive, which holds code too; expected the weights alone: load it with torch.jit.load "
            f"in your own program, and write {SAVE}"
        )
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names):
        return f"a program of torch.export; expected the weights alone: write {SAVE}"
    if any(name.endswith(".npy") for name in names):
        return f"an archive of numpy arrays (.npz); expected weights of torch: write {SAVE}"
    if not any(name.endswith("data.pkl") for name in names):
        return f"a zip archive, which may hold the weights; unpack it first. Expected what {SAVE} writes"
    if named_safetensors:
        return f"a torch.save file under the name of a safetensors file; rename it to {path.with_suffix('.pt').name}"
    return None


def _kind_of_text(path: Path, start: bytes) -> str | None:
    try:
        text = start.decode()
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # not a character that the cut at _START went through
            return None
        text = start[: error.start].decode()
    if not all(character.isprintable() or character in "\t\r\n" for character in text):
        return None
    if text.startswith("version https://git-lfs"):
        return "a pointer of Git LFS to the weights, not the weights; fetch them with `git lfs pull`"
    if re.match(r"\s*<(!doctype html|html)", text, re.IGNORECASE):
        return "a page of HTML, as a download of the wrong link gives; download the file itself"
    if _is_index(path):
        return (
            "the index of weights in several files; load them into one state dict in your own program, and "
            f"write {SAVE}"
        )
    return f"a text file that begins with {text[:40]!r}; expected weights of torch: write {SAVE}"


def _is_index(path: Path) -> bool:
    """Whether it is the index that Hugging Face's libraries write beside shards."""
    if path.stat().st_size > _LONGEST_HEADER:
        return False
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(content, dict) and "weight_map" in content
