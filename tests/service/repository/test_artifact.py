"""A version folder, with a manifest and without."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from foldserve.service.artifact.file_sums import EXPORT, check_files
from foldserve.service.artifact.manifest import FileEntry, read_manifest
from foldserve.service.errors import ConfigError
from foldserve.service.repository.artifact import Parity, read_artifact
from tests.service.repositories import config, save_exported, save_linear, save_scripted


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    folder = tmp_path / "linear" / "1"
    folder.mkdir(parents=True)
    save_exported(folder)
    return folder


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_exported_version_is_described_by_its_manifest(exported: Path) -> None:
    artifact = read_artifact(exported, "linear", "1", config())
    assert artifact.backend == "onnxruntime"
    assert artifact.file == exported / "model.onnx"
    assert artifact.max_batch_size == 8
    assert artifact.reference == exported / "reference.npz"
    assert artifact.parity("y") == Parity(0.0, 1e-4, by_column=False)
    assert [str(spec) for spec in artifact.signature.inputs] == ["x FP32 [-1, 4]"]
    assert artifact.summary()["parameter_count"] == 12
    assert "files" not in artifact.summary()


@pytest.mark.parametrize(
    ("keys", "largest"), [({"max_batch_size": 5}, 5), ({"batch_buckets": [1, 6]}, 6), ({}, 8)]
)
def test_config_decides_the_largest_batch_before_the_manifest(
    exported: Path, keys: dict[str, Any], largest: int
) -> None:
    assert read_artifact(exported, "linear", "1", config(**keys)).max_batch_size == largest


@pytest.mark.parametrize("keys", [{}, {"max_batch_size": 0}])
def test_a_manifest_whose_rows_belong_together_is_run_a_request_at_a_time(
    exported: Path, keys: dict[str, Any]
) -> None:
    rewrite(exported, rows="together", max_batch_size=0)
    artifact = read_artifact(exported, "linear", "1", config(**keys))
    assert (artifact.max_batch_size, artifact.signature.counts_rows) == (1, False)
    assert artifact.summary()["rows"] == "together"


@pytest.mark.parametrize("keys", [{"max_batch_size": 8}, {"max_batch_size": 1}, {"batch_buckets": [1, 6]}])
def test_config_that_wants_batches_of_rows_that_belong_together_is_refused(
    exported: Path, keys: dict[str, Any]
) -> None:
    rewrite(exported, rows="together", max_batch_size=0)
    with pytest.raises(ConfigError, match=r"rows: together.*expected `max_batch_size: 0`"):
        read_artifact(exported, "linear", "1", config(**keys))


@pytest.mark.parametrize(
    "changes",
    [{"rows": "together"}, {"max_batch_size": 0}, {"rows": "independent", "max_batch_size": 0}, {"rows": 1}],
)
def test_a_manifest_that_contradicts_itself_on_its_rows_is_refused(
    exported: Path, changes: dict[str, Any]
) -> None:
    rewrite(exported, **changes)
    with pytest.raises(ConfigError, match=r"rows"):
        read_artifact(exported, "linear", "1", config())


def test_bare_onnx_file_of_any_name_is_described_by_itself(tmp_path: Path) -> None:
    save_linear(tmp_path / "net.onnx")
    artifact = read_artifact(tmp_path, "m", "1", config())
    assert artifact.file.name == "net.onnx"
    assert [str(spec) for spec in artifact.signature.outputs] == ["y FP32 [-1, 3]"]
    assert (artifact.manifest, artifact.reference, artifact.parity("y")) == (None, None, None)
    assert artifact.max_batch_size == 32


def test_onnx_file_with_a_fixed_number_of_rows_is_refused_with_the_fix(tmp_path: Path) -> None:
    save_linear(tmp_path / "model.onnx", rows=1)
    with pytest.raises(ConfigError, match=r"input 'x' has shape \[1, 4\]; expected a dynamic dim 0"):
        read_artifact(tmp_path, "m", "1", config())


def test_bare_torchscript_file_needs_a_signature_in_config_yaml(tmp_path: Path) -> None:
    save_scripted(tmp_path)
    with pytest.raises(ConfigError, match="does not say what it takes; expected `signature`"):
        read_artifact(tmp_path / "1", "m", "1", config())
    signature = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    }
    assert read_artifact(tmp_path / "1", "m", "1", config(signature=signature)).backend == "torchscript"


def test_folder_without_a_model_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"m/1 holds no model.onnx or model.pt"):
        read_artifact(tmp_path, "m", "1", config())
    save_linear(tmp_path / "model.onnx")
    with pytest.raises(ConfigError, match=r"m/1 holds no model.pt"):
        read_artifact(tmp_path, "m", "1", config(backend="torchscript"))


def test_manifest_of_another_model_is_refused(exported: Path) -> None:
    with pytest.raises(
        ConfigError, match="of other/1 is of 'linear', version '1'; expected the folder's names"
    ):
        read_artifact(exported, "other", "1", config())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format_version": 2}, "has format_version 2; this foldserve reads 1"),
        ({"inputs": [{"name": "x"}]}, "has a bad input or output: inputs\\[0\\] lacks 'datatype', 'shape'"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4]}]}, "dim 0 counts the rows"),
        ({"outputs": []}, "at least one output"),
    ],
)
def test_bad_manifest_is_refused_with_what_is_wrong(
    exported: Path, changes: dict[str, Any], problem: str
) -> None:
    rewrite(exported, **changes)
    with pytest.raises(ConfigError, match=problem):
        read_artifact(exported, "linear", "1", config())


def test_manifest_that_lacks_keys_names_them(exported: Path) -> None:
    path = exported / "manifest.json"
    path.write_text(json.dumps({"format_version": 1, "name": "linear"}))
    with pytest.raises(ConfigError, match="lacks version, inputs, outputs, files, parity"):
        read_manifest(exported, "linear/1")


def test_manifest_that_is_not_json_is_refused(exported: Path) -> None:
    (exported / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match=r"manifest.json of linear/1 is not JSON"):
        read_manifest(exported, "linear/1")


def test_untouched_files_pass_their_check(exported: Path) -> None:
    checks = list(check_files(exported, read_manifest(exported, "linear/1").files, EXPORT))
    assert {check.name for check in checks} == {"model.onnx", "reference.npz"}
    assert not any(check.problem for check in checks)


def test_changed_shortened_and_missing_files_are_told_apart(exported: Path) -> None:
    manifest = read_manifest(exported, "linear/1")
    model = exported / "model.onnx"
    content = model.read_bytes()

    def problem() -> str:
        return next(
            check.problem
            for check in check_files(exported, manifest.files, EXPORT)
            if check.name == "model.onnx"
        )

    model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "it was changed after export" in problem()
    model.write_bytes(content[:-1])
    assert f"has {len(content) - 1} bytes, the manifest says {len(content)}" in problem()
    model.unlink()
    assert "cannot be read" in problem()


def test_manifest_whose_file_entries_lack_keys_names_them(exported: Path) -> None:
    manifest = json.loads((exported / "manifest.json").read_text())
    del manifest["files"]["model.onnx"]["size"]
    (exported / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"has no files\.model\.onnx\.size; expected sha256, size"):
        read_manifest(exported, "linear/1")


HASHES = {"sha256": "0" * 64, "size": 1}
PARITY = {"max_rel": 0.0, "tolerance": 1e-4}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"files": []}, r"files \[\]; expected a mapping"),
        ({"files": None}, "files None; expected a mapping"),
        ({"files": {"model.onnx": 5}}, r"files.model.onnx 5; expected sha256, size"),
        (
            {"files": {"model.onnx": {**HASHES, "size": "1"}}},
            "files.model.onnx.size '1'; expected a whole number",
        ),
        ({"files": {"model.onnx": {**HASHES, "size": -1}}}, "expected a whole number of at least 0"),
        ({"files": {"model.onnx": {**HASHES, "sha256": "x"}}}, "expected 64 hexadecimal digits"),
        ({"files": {"../model.onnx": HASHES}}, "expected names of files beside the manifest"),
        ({"files": {}}, "lacks files.model.onnx, of the file that is served"),
        ({"files": {"reference.npz": HASHES}}, "lacks files.model.onnx, of the file that is served"),
        ({"max_batch_size": "abc"}, "max_batch_size 'abc'; expected a whole number from 1 to 65536"),
        ({"max_batch_size": None}, "max_batch_size None"),
        ({"max_batch_size": []}, r"max_batch_size \[\]"),
        ({"max_batch_size": True}, "max_batch_size True"),
        ({"max_batch_size": 2.0}, "max_batch_size 2.0"),
        ({"max_batch_size": -1}, "max_batch_size -1"),
        ({"max_batch_size": 10**12}, "max_batch_size 1000000000000"),
        ({"max_batch_size": 10**30}, "has the number 1000000"),
        ({"parity": {}}, "lacks parity.onnx"),
        ({"parity": {"onnx": {"max_rel": 0.1}}}, "no parity.onnx.tolerance"),
        ({"parity": {"onnx": {**PARITY, "tolerance": "x"}}}, "parity.onnx.tolerance 'x'; expected a number"),
        ({"parity": {"onnx": {**PARITY, "tolerance": float("inf")}}}, "parity.onnx.tolerance inf"),
        ({"parity": {"onnx": {**PARITY, "tolerance": float("nan")}}}, "has nan where"),
        (
            {"parity": {"onnx": {**PARITY, "outputs": {"y": {"max_rel": 0.0}}}}},
            "no parity.onnx.outputs.y.tolerance",
        ),
        ({"parity": {"onnx": {**PARITY, "outputs": [5]}}}, r"parity.onnx.outputs \[5\]; expected a mapping"),
        ({"parity": 5}, "parity 5; expected a mapping"),
        ({"fixed_inputs": [{"name": "mask"}]}, r"fixed_inputs\[0\]"),
        (
            {"fixed_inputs": [{"name": "mask", "value": [1]}]},
            r"value \[1\]; expected a number, a text, true, false",
        ),
        ({"left_out": [{"name": "loss", "reason": None}]}, r"left_out\[0\].reason None; expected a text"),
        ({"name": 5}, "name 5; expected a text"),
        ({"version": 1}, "version 1; expected a text"),
        ({"format_version": True}, "format_version True"),
        ({"format_version": [[]]}, r"format_version \[\[\]\]"),
        ({"inputs": {}}, r"inputs is {}; expected a list"),
        ({"inputs": [5]}, r"inputs\[0\] is 5; expected name"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": "14"}]}, "shape is '14'; expected a list"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4.0]}]}, r"shape is \[-1, 4.0\]"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, None]}]}, "shape is"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 10**15]}]}, "shape is"),
        ({"inputs": [{"name": "x", "datatype": ["FP32"], "shape": [-1, 4]}]}, r"datatype is \['FP32'\]"),
        ({"inputs": [{"name": None, "datatype": "FP32", "shape": [-1, 4]}]}, "name is None"),
        ({"fold": {"found": 1, "folded": 1, "left": [5]}}, r"fold.left\[0\] 5"),
        ({"fold": []}, "fold"),
        ({"memory": {"weights_bytes": "1", "row_bytes": 1}}, "memory.weights_bytes '1'"),
        ({"created": {}}, "created {}; expected a text"),
        ({"tool_versions": ["torch"]}, "tool_versions"),
        ({"source": "\ud800"}, "which is not Unicode"),
        ({"created": [[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]}, "is nested more than 16 levels deep"),
    ],
)
def test_manifest_with_a_wrong_type_or_range_anywhere_is_refused_with_the_place(
    exported: Path, changes: dict[str, Any], told: str
) -> None:
    rewrite(exported, **changes)
    with pytest.raises(ConfigError, match=told) as caught:
        read_artifact(exported, "linear", "1", config())
    assert all(len(problem) < 1000 for problem in caught.value.problems)


def test_file_of_a_manifest_that_is_a_pipe_or_a_device_is_told_and_not_read(exported: Path) -> None:
    nothing = FileEntry(sha256="0" * 64, size=0)
    files = {"pipe": nothing, "device": nothing}
    os.mkfifo(exported / "pipe")
    (exported / "device").symlink_to("/dev/zero")
    assert all("not a regular file" in check.problem for check in check_files(exported, files, EXPORT))
