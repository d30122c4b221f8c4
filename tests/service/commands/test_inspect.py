import hashlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from foldserve.service.commands.inspect import inspect
from foldserve.service.errors import ConfigError
from tests.service.repositories import save_linear

PARITY = {"max_abs": 1.5e-7, "max_rel": 2.5e-7, "rows_tried": [1, 2, 7, 32], "tolerance": 1e-4}


def exported(folder, **changes):
    """A version as the export writes it, with a real model file."""
    path = save_linear(folder / "model.onnx")
    content = path.read_bytes()
    manifest = {
        "format_version": 1,
        "name": folder.parent.name,
        "version": folder.name,
        "created": "2026-01-02T03:04:05Z",
        "source": "linear",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
        "opset": 20,
        "precision": "fp16",
        "kept_fp32": [{"where": "head", "reason": "its results go up to 1e+05"}],
        "fixed_inputs": [{"name": "mask", "value": None}],
        "left_out": [
            {"name": "loss", "reason": "it is None"},
            {"name": "t", "reason": "constant", "value": 2.5},
        ],
        "memory": {"weights_bytes": 3 * 2**20, "row_bytes": 1536},
        "tool_versions": {"torch": "2.13.0", "onnx": "1.23.2"},
        "max_batch_size": 32,
        "files": {"model.onnx": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}},
        "parameter_count": 12345,
        "fold": {"found": 3, "folded": 2, "left": [{"where": "layer1.bn", "reason": "it feeds two places"}]},
        "parity": {
            "torchscript": PARITY,
            "onnx": PARITY,
            "fold_float64": {"max_rel": 1e-15, "rows_tried": [2], "tolerance": 1e-9},
        },
        **changes,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def repository(tmp_path):
    for place in ("linear/1", "linear/2", "linear/10", "other/1"):
        exported(tmp_path / place)
    return tmp_path


def shown(target):
    out = io.StringIO()
    code = inspect(target, out)
    return code, out.getvalue()


def test_a_version_without_an_onnx_file_says_so(tmp_path):
    exported(tmp_path / "linear" / "1", opset=None)
    assert "exported 2026-01-02T03:04:05Z, no ONNX file, " in shown(tmp_path)[1]


def test_pictures_and_labels_of_a_version_are_told(tmp_path):
    image = {"input": "x", "size": [224, 200], "resize": "pad", "layout": "CHW", "inside": {"mean": 1.0}}
    inputs = [{"name": "x", "datatype": "UINT8", "shape": [-1, 3, 224, 200]}]
    exported(tmp_path / "linear" / "1", image=image, labels=["cat", "dog", "cow"], inputs=inputs)
    code, text = shown(tmp_path)
    assert code == 0
    assert "pictures JPEG or PNG, pad to 224 x 200, RGB, CHW" in text
    assert "labels   3: cat ... cow" in text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image": []}, r"image \[\]; expected how a picture becomes the input"),
        (
            {"image": {"input": "x", "resize": "squash"}},
            "image: resize 'squash'; expected one of crop, stretch",
        ),
        ({"image": {"size": None}}, "image: image lacks a key"),
        ({"image": {"input": "z", "size": [8, 8]}}, "image.input 'z'; expected the name of an input: 'x'"),
        (
            {"image": {"input": "x", "size": [8, 8]}},
            r"image.input 'x' of shape \[-1, 4\]; expected an input of 4",
        ),
        ({"labels": "cat"}, "labels 'cat'; expected a list"),
        ({"labels": ["cat", 1]}, r"labels\[1\] 1; expected a text"),
    ],
)
def test_pictures_and_labels_that_cannot_be_are_refused(tmp_path, changes, says):
    exported(tmp_path / "linear" / "1", **changes)
    code, text = shown(tmp_path)
    assert code == 1
    assert re.search(says, text), text


@pytest.mark.parametrize("key", ["created", "source", "opset", "precision", "kept_fp32", "memory", "fold"])
def test_a_version_is_described_without_a_key_that_may_be_missing(tmp_path, key):
    folder = exported(tmp_path / "linear" / "1")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest[key]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    code, text = shown(tmp_path)
    assert (code, "linear/1  served by onnxruntime" in text) == (0, True)


def test_texts_of_a_manifest_do_not_steer_the_terminal(tmp_path):
    exported(
        tmp_path / "linear" / "1", labels=["cat\x1b[2J", "été\n  fold     99"], converted_weights=["a\rb"]
    )
    code, text = shown(tmp_path)
    assert code == 0
    assert r"labels   2: cat\x1b[2J ... été\n  fold     99" in text
    assert r"weights in a\rb were converted" in text
    assert all(line.isprintable() for line in text.splitlines())


def test_a_version_is_described_where_the_terminal_lacks_a_letter(tmp_path):
    exported(tmp_path / "linear" / "1", labels=["été", "東京"])
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [
        sys.executable,
        "-c",
        "from foldserve.service.cli import main; main()",
        "inspect",
        str(tmp_path),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"labels   2: \xe9t\xe9 ... \u6771\u4eac" in done.stdout


def test_a_version_is_described(repository):
    code, text = shown(repository / "linear" / "2")
    assert code == 0
    for part in (
        "linear/2  served by onnxruntime, batches of up to 32 rows",
        "from     linear, exported 2026-01-02T03:04:05Z, opset 20, 12,345 parameters",
        "input    x FP32 [-1, 4]",
        "output   y FP32 [-1, 3]",
        "fixed mask = None",
        "left out loss: it is None",
        "left out t = 2.5: constant",
        "computes fp16, weights 3.1 MB, at most 1.5 kB for each row",
        "in fp32 head: its results go up to 1e+05",
        "fold     3 batch norms found, 2 folded, 1 left",
        "left layer1.bn: it feeds two places",
        "parity   onnx: max absolute 1.5e-07, max relative 2.5e-07, tolerance 0.0001, rows tried 1, 2, 7, 32",
        "parity   fold_float64: max relative 1e-15, tolerance 1e-09, rows tried 2",
        "file     model.onnx",
        "tools    torch 2.13.0, onnx 1.23.2",
    ):
        assert part in text
    digest = hashlib.sha256((repository / "linear/2/model.onnx").read_bytes()).hexdigest()
    assert f"sha256 {digest[:16]}...  ok" in text


@pytest.mark.parametrize(
    ("target", "heads"),
    [
        ("", ["linear/1", "linear/2", "linear/10", "other/1"]),
        ("linear", ["linear/1", "linear/2", "linear/10"]),
        ("linear/10", ["linear/10"]),
    ],
)
def test_everything_under_the_target_is_described_in_order(repository, target, heads):
    code, text = shown(repository / target)
    assert code == 0
    assert [line.split("  ")[0] for line in text.splitlines() if not line.startswith(" ")] == heads


def test_a_relative_target_is_read(repository, monkeypatch):
    monkeypatch.chdir(repository / "linear" / "1")
    assert shown(Path("."))[1].startswith("linear/1")


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_file_is_told_and_the_exit_code_is_1(repository, damage):
    # Another file than the one that is loaded: that one's absence makes the version unreadable.
    folder = repository / "linear" / "2"
    extra = folder / "reference.npz"
    extra.write_bytes(b"0123456789")
    files = json.loads((folder / "manifest.json").read_text())["files"]
    files["reference.npz"] = {"sha256": hashlib.sha256(b"0123456789").hexdigest(), "size": 10}
    exported(folder, files=files)
    assert shown(folder)[0] == 0
    if damage == "changed":
        extra.write_bytes(b"0123456780")
    elif damage == "cut":
        extra.write_bytes(b"012345678")
    else:
        extra.unlink()
    code, text = shown(repository)
    assert code == 1
    assert text.count("DAMAGED") == 1
    assert "1 of 4 versions have problems" in text


def test_a_changed_model_file_is_told(repository):
    with (repository / "other/1/model.onnx").open("r+b") as file:
        file.seek(5)
        file.write(b"\xff")
    code, text = shown(repository / "other")
    assert code == 1
    assert "it was changed after export" in text


def test_a_version_that_cannot_be_served_is_told_and_the_others_are_described(repository):
    (repository / "linear/2/manifest.json").write_text("{")
    code, text = shown(repository / "linear")
    assert code == 1
    assert "linear/2  cannot be served" in text
    assert "linear/10  served by onnxruntime" in text


def test_a_file_that_foldserve_did_not_export_is_described(tmp_path):
    save_linear(tmp_path / "plain" / "1" / "net.onnx")
    code, text = shown(tmp_path)
    assert code == 0
    assert "net.onnx, not exported by foldserve" in text
    assert "input    x FP32 [-1, 4]" in text


@pytest.mark.parametrize("target", ["", "gone", "file", ".hidden"])
def test_nothing_to_inspect_is_an_error(tmp_path, target):
    (tmp_path / "file").write_text("x")
    exported(tmp_path / ".hidden" / "1")
    with pytest.raises(ConfigError, match=r"holds no exported model|is not a folder"):
        inspect(tmp_path / target, io.StringIO())
