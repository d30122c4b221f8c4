"""ONNX files with their weights beside them, as beyond 2 GiB: here the bound is lowered to some bytes."""

import hashlib
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from foldserve.models.errors import FormNotWritten, NotWritable
from foldserve.models.export import export_model
from foldserve.models.export.writers import onnx_stream
from foldserve.models.export.writers.forms import ONNX, Forms
from foldserve.service.backends.base import LoadError, SessionOptions
from foldserve.service.commands.inspect import inspect
from foldserve.service.repository.artifact import read_artifact
from foldserve.service.repository.loading import load_model
from foldserve.service.repository.model_config import parse_model_config
from tests.models.export.artifact.test_versions import files_end_at

BOUND = 2000


@pytest.fixture(autouse=True)
def _small_messages(monkeypatch):
    monkeypatch.setattr(onnx_stream, "LARGEST_MESSAGE_BYTES", BOUND)


def export(folder, **options):
    network = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 24))
    return export_model(network.eval(), (torch.randn(3, 24),), folder, name="m", **options)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """One version with weights beside its ONNX file, for those who only look at a copy of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_stream, "LARGEST_MESSAGE_BYTES", BOUND)
        return export(tmp_path_factory.mktemp("repository")).folder


@pytest.fixture
def folder(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "m" / "1"))


def loaded(folder):
    settings = parse_model_config({}, "config.yaml")
    return load_model(read_artifact(folder, "m", "1", settings), settings, "cpu", SessionOptions(threads=1))


def test_a_large_model_has_its_weights_in_a_file_of_its_own_proved_hashed_and_served(tmp_path):
    # In fp16 the file is also opened with its weights in float32, which then lie in a file of their own for a moment.
    result = export(tmp_path, precision="fp16")
    assert set(result.report["files"]) == {"model.onnx", "model.onnx.data", "model.pt", "reference.npz"}
    for name, entry in result.report["files"].items():
        content = (result.folder / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    assert {p.name for p in result.folder.iterdir()} == {*result.report["files"], "manifest.json"}
    onnx.checker.check_model(str(result.onnx_path), full_check=True)
    assert "onnx" in result.report["parity"]
    with np.load(result.reference_path) as arrays:
        got = loaded(result.folder).run({"input": arrays["input.input"]})["y"]
        tolerance = result.report["parity"]["onnx"]["tolerance"]
        assert np.abs(got - arrays["output.y"]).max() <= tolerance * np.abs(arrays["output.y"]).max()


def test_the_weights_begin_at_pages_and_small_ones_stay_inside(exported):
    model = onnx.load(exported / "model.onnx", load_external_data=False)
    outside = [w for w in model.graph.initializer if w.data_location == onnx.TensorProto.EXTERNAL]
    places = [{entry.key: entry.value for entry in w.external_data} for w in outside]
    assert len(places) == 2
    assert {place["location"] for place in places} == {"model.onnx.data"}
    assert all(int(place["offset"]) % 4096 == 0 for place in places)
    assert all(int(place["length"]) == 24 * 40 * 4 for place in places)
    assert any(w.raw_data for w in model.graph.initializer)


def test_the_same_model_gives_the_same_two_files_and_is_the_same_when_read_again(exported, tmp_path):
    model = onnx.load(exported / "model.onnx")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        onnx_stream.write_onnx(model, tmp_path / name / "model.onnx")
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    again = onnx.load(tmp_path / "a" / "model.onnx")
    assert [w.raw_data for w in again.graph.initializer] == [w.raw_data for w in model.graph.initializer]


def tell(folder):
    out = io.StringIO()
    return inspect(folder, out), out.getvalue()


def test_a_changed_cut_or_missing_file_of_weights_is_found_by_the_server_and_by_inspect(folder):
    data = folder / "model.onnx.data"
    right = data.read_bytes()
    loaded(folder)
    assert tell(folder)[0] == 0
    for content, says in (
        (bytes([right[0] ^ 1]) + right[1:], "sha256"),
        (right[:-1], "bytes, the manifest says"),
        (None, "cannot be read"),
    ):
        data.unlink()
        if content is not None:
            data.write_bytes(content)
        with pytest.raises(LoadError, match=rf"model\.onnx\.data.*{says}"):
            loaded(folder)
        code, text = tell(folder)
        assert code == 1
        assert "model.onnx.data" in text.partition("DAMAGED")[2]
        data.write_bytes(right)


@pytest.mark.parametrize("location", ["other.data", "../outside.data", "sub/model.onnx.data"])
def test_a_file_of_weights_that_the_manifest_does_not_name_is_never_read(location, folder):
    other = folder / location
    other.parent.mkdir(exist_ok=True)
    other.write_bytes((folder / "model.onnx.data").read_bytes())
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for weight in model.graph.initializer:
        for entry in weight.external_data:
            entry.value = location if entry.key == "location" else entry.value
    content = model.SerializeToString()
    (folder / "model.onnx").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    says = f"takes weights from '{location}', of which the manifest says nothing"
    with pytest.raises(LoadError, match=re.escape(says)):
        loaded(folder)
    code, text = tell(folder)
    assert code == 1
    assert says in text


def test_a_full_disk_leaves_neither_file(tmp_path):
    # Of the weights, which are twice 3,840 bytes, the second do not fit.
    with pytest.raises(NotWritable, match="nothing was left there"), files_end_at(5000):
        export(tmp_path, only="onnx")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_neither_file(tmp_path):
    def interrupt(event):
        if event.step == "write ONNX" and event.seconds is not None:
            assert list(tmp_path.glob(".export-*/model.onnx.data"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(tmp_path, progress=interrupt, only="onnx")
    assert list(tmp_path.iterdir()) == []


def test_where_the_file_cannot_be_loaded_after_all_its_weights_go_too(folder):
    def refused():
        raise FormNotWritten("refused by the runtime")

    forms = Forms()
    assert forms.attempt(ONNX, folder, refused) is None
    assert forms.not_written == {"model.onnx": "refused by the runtime"}
    assert {path.name for path in folder.iterdir()} == {"model.pt", "reference.npz", "manifest.json"}
