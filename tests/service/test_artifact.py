"""A version folder, with a manifest and without."""

import json
from pathlib import Path
from typing import Any

import pytest

from service.artifact import check_files, read_artifact, read_manifest
from service.errors import ConfigError
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
    assert artifact.tolerance == 1e-4
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


def test_bare_onnx_file_of_any_name_is_described_by_itself(tmp_path: Path) -> None:
    save_linear(tmp_path / "net.onnx")
    artifact = read_artifact(tmp_path, "m", "1", config())
    assert artifact.file.name == "net.onnx"
    assert [str(spec) for spec in artifact.signature.outputs] == ["y FP32 [-1, 3]"]
    assert (artifact.manifest, artifact.reference, artifact.tolerance) == ({}, None, None)
    assert artifact.max_batch_size == 32


def test_onnx_file_with_a_fixed_number_of_rows_is_refused_with_the_mend(tmp_path: Path) -> None:
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
    with pytest.raises(ConfigError, match=r"holds no model.onnx or model.pt to serve m/1"):
        read_artifact(tmp_path, "m", "1", config())
    save_linear(tmp_path / "model.onnx")
    with pytest.raises(ConfigError, match=r"holds no model.pt to serve m/1"):
        read_artifact(tmp_path, "m", "1", config(backend="torchscript"))


def test_manifest_of_another_model_is_refused(exported: Path) -> None:
    with pytest.raises(ConfigError, match="is of linear/1 but lies in other/1"):
        read_artifact(exported, "other", "1", config())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format_version": 2}, "has format_version 2; this foldserve reads 1"),
        ({"inputs": [{"name": "x"}]}, "has a bad input or output: 'datatype'"),
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
        read_manifest(exported)


def test_manifest_that_is_not_json_is_refused(exported: Path) -> None:
    (exported / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match=r"manifest.json cannot be read"):
        read_manifest(exported)


def test_untouched_files_pass_their_check(exported: Path) -> None:
    checks = list(check_files(exported, read_manifest(exported)))
    assert {check.name for check in checks} == {"model.onnx", "reference.npz"}
    assert not any(check.problem for check in checks)


def test_changed_shortened_and_missing_files_are_told_apart(exported: Path) -> None:
    manifest = read_manifest(exported)
    model = exported / "model.onnx"
    content = model.read_bytes()

    def problem() -> str:
        return next(check.problem for check in check_files(exported, manifest) if check.name == "model.onnx")

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
    with pytest.raises(ConfigError, match=r"lacks files\.model\.onnx\.size: export the model again"):
        read_manifest(exported)
