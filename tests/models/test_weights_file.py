"""models/weights_file.py: what a file is, is told by what is in it; plain data beside tensors is no danger."""

import argparse
import gzip
import io
import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from torch import nn

from foldserve.models.errors import UnsafeWeights, WeightsUnreadable
from foldserve.models.weights_file import read_weights

STATE = {"weight": torch.arange(4.0).reshape(2, 2)}


def torchscript() -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)
    return file.getvalue()


def exported_program() -> bytes:
    file = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), file)
    return file.getvalue()


def saved(what: object) -> bytes:
    file = io.BytesIO()
    torch.save(what, file)
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, weight=np.zeros(3))
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weights/net.pt", saved(STATE))
    return file.getvalue()


def onnx_network() -> bytes:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    return onnx.helper.make_model(graph).SerializeToString()


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("w.pt", torchscript, "a TorchScript archive, which holds code too; .*torch.jit.load"),
        ("w.safetensors", torchscript, "a TorchScript archive"),
        (
            "w.bin",
            lambda: safetensors.torch.save(STATE),
            "a safetensors file under another name; rename it to w.safe",
        ),
        (
            "w.safetensors",
            lambda: saved(STATE),
            "a torch.save file under the name of a safetensors file; .* w.pt",
        ),
        ("w.pt2", exported_program, r"a program of torch\.export"),
        ("w.pt", npz, r"an archive of numpy arrays \(\.npz\)"),
        ("w.pt", lambda: saved(STATE)[:-30], "the beginning of a file of torch.save, whose end is missing"),
        ("w.safetensors", lambda: saved(STATE)[:-300], "the beginning of a file of torch.save"),
        ("w.zip", zipped, "a zip archive, .*unpack it first"),
        ("w.pt", lambda: gzip.compress(saved(STATE)), "a gzip archive, .*unpack it first"),
        ("w.h5", lambda: b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file, as Keras writes"),
        ("w.gguf", lambda: b"GGUF" + bytes(50), "a GGUF file"),
        ("w.npy", lambda: b"\x93NUMPY" + bytes(50), "an array of numpy"),
        ("w.onnx", onnx_network, "an ONNX network"),
        ("w.pt", lambda: b"", "empty"),
        ("w.safetensors", lambda: b"", "empty"),
        (
            "w.pt",
            lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            "a pointer of Git LFS",
        ),
        ("w.safetensors", lambda: b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ("w.pt", lambda: b"\n<!DOCTYPE html>\n<html>404</html>", "a page of HTML"),
        ("w.pt", lambda: b"<HTML>not here</HTML>", "a page of HTML"),
        (
            "w.json",
            lambda: json.dumps({"weight_map": {"a": "1.bin"}}).encode(),
            "the index of weights in several files",
        ),
        ("w.pt", lambda: b"epoch 1 loss 0.5\n" * 100, "a text file that begins with 'epoch 1 loss"),
        (
            "w.safetensors",
            lambda: "Gewichte für später\n".encode() * 50,
            "a text file that begins with 'Gewichte",
        ),
    ],
)
def test_file_of_another_kind_is_called_by_its_name(tmp_path: Path, name, content, kind):
    path = tmp_path / name
    path.write_bytes(content())
    with pytest.raises(WeightsUnreadable, match=rf"cannot be read as weights: it is {kind}"):
        read_weights(path)


def test_plain_data_that_trainers_save_beside_the_weights_is_no_danger(tmp_path: Path):
    beside = {
        "args": argparse.Namespace(lr=0.1, output_dir=Path("runs")),
        "best": np.float64(0.9),
        "steps": np.int64(7),
        "numpy_rng": np.random.RandomState(0).get_state(),
        "epoch": 3,
    }
    torch.save({**beside, "model": STATE}, tmp_path / "w.pt")
    content = read_weights(tmp_path / "w.pt")
    assert torch.equal(content["model"]["weight"], STATE["weight"])
    assert (content["args"].lr, content["best"], content["steps"]) == (0.1, 0.9, 7)


class OfTheUser:
    pass


def test_object_of_the_users_own_is_refused_by_its_name(tmp_path: Path):
    torch.save({"model": STATE, "config": OfTheUser()}, tmp_path / "w.pt")
    with pytest.raises(UnsafeWeights, match=r"was not loaded: it asks for \S+\.OfTheUser,"):
        read_weights(tmp_path / "w.pt")


def test_what_may_be_loaded_here_is_not_allowed_elsewhere(tmp_path: Path):
    torch.save({"args": argparse.Namespace(), "model": STATE}, tmp_path / "w.pt")
    before = set(torch.serialization.get_safe_globals())
    read_weights(tmp_path / "w.pt")
    assert set(torch.serialization.get_safe_globals()) == before
    assert argparse.Namespace not in before
