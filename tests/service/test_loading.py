"""The steps to "ready", and each way to fail one."""

from pathlib import Path

import numpy as np
import pytest

from service.artifact import Artifact, read_artifact
from service.backends import LoadError, SessionOptions
from service.loading import load_model, relative_error
from tests.service.repositories import WEIGHT, config, save_exported, save_linear, save_lookup, save_scripted

ONE_THREAD = SessionOptions(threads=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "1").mkdir()
    return tmp_path / "1"


def artifact_in(folder: Path) -> Artifact:
    return read_artifact(folder, "linear", "1", config())


def test_exported_model_loads_agrees_and_runs(folder: Path) -> None:
    save_exported(folder)
    session = load_model(artifact_in(folder), config(), "cpu", ONE_THREAD)
    x = np.ones((3, 4), np.float32)
    np.testing.assert_array_equal(session.run({"x": x})["y"], x @ WEIGHT)


@pytest.mark.parametrize("error", [2e-4, -2e-4, np.nan, np.inf])
def test_model_that_disagrees_with_its_reference_is_refused(folder: Path, error: float) -> None:
    save_exported(folder, error=error)
    with pytest.raises(
        LoadError, match=r"does not agree with its reference: output 'y' is off by .* allows 0.0001"
    ):
        load_model(artifact_in(folder), config(), "cpu", ONE_THREAD)


def test_difference_within_the_tolerance_is_accepted(folder: Path) -> None:
    save_exported(folder, error=5e-5)
    load_model(artifact_in(folder), config(), "cpu", ONE_THREAD)


def test_reference_is_run_in_padded_batches_when_buckets_are_set(folder: Path) -> None:
    save_exported(folder)
    settings = config(batch_buckets=[4])
    load_model(read_artifact(folder, "linear", "1", settings), settings, "cpu", ONE_THREAD)


def test_file_changed_after_export_is_refused_before_it_is_loaded(folder: Path) -> None:
    save_exported(folder)
    save_linear(folder / "model.onnx", weight=WEIGHT + 1)
    with pytest.raises(LoadError, match="it was changed after export; export the model again, or restore"):
        load_model(artifact_in(folder), config(), "cpu", ONE_THREAD)


def test_broken_reference_is_told(folder: Path) -> None:
    save_exported(folder)
    (folder / "reference.npz").write_bytes(b"PK not really")
    with pytest.raises(LoadError, match=r"reference.npz cannot be used"):
        load_model(artifact_in(folder), config(), "cpu", ONE_THREAD)


def test_signature_that_the_model_does_not_keep_is_refused(tmp_path: Path) -> None:
    save_scripted(tmp_path)
    signature = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 9]}],
    }
    settings = config(signature=signature)
    artifact = read_artifact(tmp_path / "1", "m", "1", settings)
    with pytest.raises(LoadError, match=r"gives output 'y' as float32 \[1, 3\]; expected FP32 \[-1, 9\]"):
        load_model(artifact, settings, "cpu", ONE_THREAD)


def test_every_bucket_is_run_before_a_model_is_ready(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_exported(folder)
    rows: list[int] = []

    class Watched:
        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            rows.append(len(inputs["x"]))
            return {"y": inputs["x"] @ WEIGHT}

    monkeypatch.setattr("service.loading.load_session", lambda *_: Watched())
    settings = config(batch_buckets=[2, 5])
    load_model(read_artifact(folder, "linear", "1", settings), settings, "cpu", ONE_THREAD)
    assert rows == [5, 2, 2, 2, 5, 5]  # the reference's 7 rows in two batches, then each bucket twice


def test_model_without_reference_that_zeros_break_is_served_unwarmed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_lookup(folder / "model.onnx")

    class Picky:
        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            raise RuntimeError("no zeros, please")

    monkeypatch.setattr("service.loading.load_session", lambda *_: Picky())
    load_model(artifact_in(folder), config(), "cpu", ONE_THREAD)
    assert "could not be warmed with zeros" in caplog.text


MEASURED = [
    ([1.0, 2.0], [1.0, 2.0], 0.0),
    ([1.0, 2.2], [1.0, 2.0], 0.1),
    ([0.5], [0.0], 0.5),
    ([np.nan, np.inf], [np.nan, np.inf], 0.0),
    ([np.nan, 3.0], [np.nan, 2.0], 0.5),
    ([0.0], [np.inf], np.inf),
    ([np.inf], [1.0], np.inf),
    ([np.nan], [1.0], np.inf),
    ([-np.inf], [np.inf], np.inf),
    ([1.0, 2.0], [1.0], np.inf),
    ([], [], 0.0),
    ([1, 2, 3, 5], [1, 2, 3, 4], 0.25),
    ([1, 2], [1.0, 2.0], np.inf),
    ([True, False], [True, True], 0.5),
]


@pytest.mark.parametrize(("got", "want", "error"), MEASURED)
def test_error_is_relative_to_the_largest_value_and_for_integers_a_share(
    got: list[float], want: list[float], error: float
) -> None:
    assert relative_error(np.array(got), np.array(want)) == pytest.approx(error)


@pytest.mark.parametrize(("got", "want", "error"), MEASURED)
def test_server_and_export_measure_alike(got: list[float], want: list[float], error: float) -> None:
    import torch

    from models.export.difference import difference

    exports = difference(torch.from_numpy(np.array(got)), torch.from_numpy(np.array(want))).max_rel
    assert exports == pytest.approx(error)
