"""The steps to "ready", and each way to fail one."""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from foldserve.service.artifact.difference import relative_error
from foldserve.service.backends import LoadError, SessionOptions, Workload
from foldserve.service.backends.base import DeviceLost, InsufficientMemory, OutOfMemory
from foldserve.service.repository.artifact import Artifact, read_artifact
from foldserve.service.repository.loading import load_model
from foldserve.service.repository.reference import allowances
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
        LoadError, match=r"does not agree with its reference: output 'y' is off by .* 0.0001 is allowed"
    ):
        load_model(artifact_in(folder), config(), "cpu", ONE_THREAD)


@pytest.mark.parametrize(("size", "row"), [(2, 0), (2, 1), (4, 0), (4, 3), (8, 1), (8, 7)])
def test_model_that_disagrees_in_one_batch_size_only_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, size: int, row: int
) -> None:
    """As where one bucket's CUDA graph is wrong. The reference's 7 rows are first run as they are."""

    class Wrong:
        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            y = inputs["x"] @ WEIGHT
            if len(y) == size:
                y[row] += 1
            return {"y": y}

    save_exported(folder)
    monkeypatch.setattr("foldserve.service.repository.loading.load_session", lambda *_: Wrong())
    monkeypatch.setattr("foldserve.service.repository.loading.bucket_for", lambda rows, buckets: rows)
    settings = config(batch_buckets=[2, 4, 8])
    with pytest.raises(LoadError, match=rf"reference in a batch of {size} rows: output 'y' is off by"):
        load_model(read_artifact(folder, "linear", "1", settings), settings, "cpu", ONE_THREAD)


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


def test_file_without_a_manifest_that_is_another_than_when_it_was_read_is_refused(folder: Path) -> None:
    save_linear(folder / "model.onnx")
    artifact = artifact_in(folder)
    load_model(artifact, config(), "cpu", ONE_THREAD)
    save_linear(folder / "model.onnx", weight=WEIGHT + 1)
    with pytest.raises(
        LoadError, match="it was changed since; restart the server to serve what is there now"
    ):
        load_model(artifact, config(), "cpu", ONE_THREAD)
    save_linear(folder / "model.onnx")  # the same bytes, though at another time
    load_model(artifact, config(), "cpu", ONE_THREAD)


@pytest.mark.parametrize("name", ["weights.bin", "parts/" + "w" * 200])
def test_weights_that_lie_beside_the_file_are_held_to_what_they_were_too(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    model = onnx.load(save_linear(folder / "model.onnx"))
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location=name, size_threshold=0)
    (folder / "notes.txt").write_text("beside it, and no part of it")
    artifact = artifact_in(folder)
    (folder / "notes.txt").write_text("other notes")
    load_model(artifact, config(), "cpu", ONE_THREAD)
    weights = folder / name
    weights.write_bytes((np.frombuffer(weights.read_bytes(), np.float32) + 1).tobytes())
    with pytest.raises(LoadError, match="it was changed since"):
        load_model(artifact, config(), "cpu", ONE_THREAD)


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
    with pytest.raises(LoadError, match=r"gives output 'y' as float32 \[32, 3\]; expected FP32 \[-1, 9\]"):
        load_model(artifact, settings, "cpu", ONE_THREAD)


def test_every_bucket_is_run_before_a_model_is_ready(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_exported(folder)
    rows: list[int] = []

    class Watched:
        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            rows.append(len(inputs["x"]))
            return {"y": inputs["x"] @ WEIGHT}

    monkeypatch.setattr("foldserve.service.repository.loading.load_session", lambda *_: Watched())
    settings = config(batch_buckets=[2, 5])
    load_model(read_artifact(folder, "linear", "1", settings), settings, "cpu", ONE_THREAD)
    assert rows[:6] == [5, 2, 5, 5, 2, 2]  # the reference's 7 rows in two batches, then each bucket twice
    assert set(rows[6:]) == {5, 2}  # whether they count rows, and mix them, is tried in those sizes too


class Small:
    """The linear model on a device that has room for `room` rows, and whose outputs are its own memory."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.ran: list[int] = []
        self._y = np.empty((64, 3), np.float32)

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = len(inputs["x"])
        if rows > self.room:
            raise OutOfMemory(f"no room for {rows} rows")
        self.ran.append(rows)
        self._y[:rows] = inputs["x"] @ WEIGHT
        return {"y": self._y[:rows]}


def test_sizes_without_room_are_left_out_of_the_warming_and_the_model_is_served(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_exported(folder)
    session = Small(room=3)
    monkeypatch.setattr("foldserve.service.repository.loading.load_session", lambda *_: session)
    load_model(artifact_in(folder), config(), "cpu", ONE_THREAD)
    assert session.ran[:7] == [3, 3, 1, 2, 2, 1, 1]  # the reference's 7 rows, then 2 and 1 twice
    assert "not have enough memory for a batch of 8 rows" in caplog.text
    assert "not have enough memory for a batch of 4 rows" in caplog.text


def test_model_without_room_for_one_row_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_exported(folder)
    (folder / "reference.npz").unlink()
    monkeypatch.setattr("foldserve.service.repository.loading.load_session", lambda *_: Small(room=0))
    with pytest.raises(InsufficientMemory, match="failed while warming 1 rows: no room for 1 rows"):
        load_model(artifact_in(folder), config(), "cpu", ONE_THREAD)


@pytest.mark.parametrize("with_reference", [True, False])
def test_lost_device_ends_the_loading(
    folder: Path, monkeypatch: pytest.MonkeyPatch, with_reference: bool
) -> None:
    save_exported(folder)
    if not with_reference:
        (folder / "reference.npz").unlink()

    class Lost:
        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            raise DeviceLost("gone")

    monkeypatch.setattr("foldserve.service.repository.loading.load_session", lambda *_: Lost())
    with pytest.raises(DeviceLost):
        load_model(artifact_in(folder), config(), "cpu", ONE_THREAD)


@pytest.mark.parametrize(
    ("device", "keys", "memory", "expected"),
    [
        ("cpu", {}, None, Workload()),
        ("cuda:0", {}, None, Workload((1, 2, 4, 8))),
        (
            "cuda:0",
            {"batch_buckets": [2, 6]},
            {"weights_bytes": 48, "row_bytes": 28},
            Workload((2, 6), 48, 28),
        ),
    ],
)
def test_session_is_told_its_buckets_and_what_the_manifest_measured(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    keys: dict[str, Any],
    memory: dict[str, int] | None,
    expected: Workload,
) -> None:
    manifest = save_exported(folder)
    if memory:
        (folder / "manifest.json").write_text(json.dumps({**manifest, "memory": memory}))
    told: list[Workload] = []

    def load(*arguments: Any) -> Small:
        told.append(arguments[-1])
        return Small(room=64)

    monkeypatch.setattr("foldserve.service.repository.loading.load_session", load)
    settings = config(**keys)
    load_model(read_artifact(folder, "linear", "1", settings), settings, device, ONE_THREAD)
    assert told == [expected]


@pytest.mark.parametrize(
    ("device", "tf32", "measured", "allowed"),
    [
        ("cuda:0", False, 1e-7, 1e-4),
        ("cpu", True, 1e-7, 1e-4),
        ("cuda:0", True, 1e-8, 8 * 2**-11),  # at least eight roundings
        ("cuda:0", True, 3e-7, 4 * 3e-7 * 2**13),
        ("cuda:0", True, 1e-4, 0.1),  # at most a tenth
    ],
)
def test_tf32_may_be_off_by_what_its_rounding_should_cost(
    folder: Path, device: str, tf32: bool, measured: float, allowed: float
) -> None:
    manifest = save_exported(folder)
    manifest["parity"]["onnx"]["max_rel"] = measured
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = allowances(artifact_in(folder), device, SessionOptions(tf32=tf32))
    assert found["y"].tolerance == pytest.approx(allowed)


def test_file_without_a_manifest_has_no_tolerance(folder: Path) -> None:
    save_linear(folder / "model.onnx")
    assert allowances(artifact_in(folder), "cuda:0", SessionOptions(tf32=True)) == {}


def test_tf32_is_reckoned_as_the_export_reckons_fp16() -> None:
    from foldserve.models.export.precision.precision import PRECISIONS
    from foldserve.models.export.verify.tolerance import file_tolerance

    assert PRECISIONS["fp16"].roundoff == 2.0**-11
    assert file_tolerance(PRECISIONS["fp16"], 3e-7) == pytest.approx(4 * 3e-7 * 2**13)
    assert file_tolerance(PRECISIONS["fp16"], 0.0) == 8 * 2.0**-11
    assert file_tolerance(PRECISIONS["fp16"], 1.0) == 0.1


def test_model_without_reference_that_zeros_break_is_served_unwarmed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_lookup(folder / "model.onnx")

    class Picky:
        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            raise RuntimeError("no zeros, please")

    monkeypatch.setattr("foldserve.service.repository.loading.load_session", lambda *_: Picky())
    load_model(artifact_in(folder), config(), "cpu", ONE_THREAD)
    assert "could not be warmed with zeros" in caplog.text


def test_model_that_takes_no_rows_of_a_signature_without_dims_of_any_size_is_refused(tmp_path: Path) -> None:
    """Nothing was guessed: no request can work."""
    save_scripted(tmp_path)
    signature = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 5]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    }
    settings = config(signature=signature)
    artifact = read_artifact(tmp_path / "1", "m", "1", settings)
    with pytest.raises(LoadError, match=r"takes no rows of its signature \(x FP32 \[-1, 5\]\)"):
        load_model(artifact, settings, "cpu", ONE_THREAD)


@pytest.mark.parametrize("of_any_size", [1, 4, 64])
def test_model_with_dims_of_any_size_is_tried_with_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, of_any_size: int
) -> None:
    save_lookup(tmp_path / "model.onnx")

    class Picky:
        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            if inputs["index"].shape[1] != of_any_size:
                raise RuntimeError("another length, please")
            return {"y": np.zeros((*inputs["index"].shape, 2), np.float32)}

    monkeypatch.setattr("foldserve.service.repository.loading.load_session", lambda *_: Picky())
    load_model(read_artifact(tmp_path, "linear", "1", config()), config(), "cpu", ONE_THREAD)
    assert caplog.text == ""


LIES: list[tuple[str, dict[str, Any], str]] = [
    ("inputs", {"shape": [-1, 5]}, r"input 'x' as tensor\(float\) \[rows, 4\]; expected FP32 \[-1, 5\]"),
    ("inputs", {"shape": [-1, -1]}, r"expected FP32 \[-1, -1\]"),
    ("inputs", {"shape": [-1, 2, 2]}, r"expected FP32 \[-1, 2, 2\]"),
    ("inputs", {"shape": [-1]}, r"expected FP32 \[-1\]"),
    ("inputs", {"datatype": "FP64"}, r"input 'x' as tensor\(float\) \[rows, 4\]; expected FP64"),
    ("inputs", {"datatype": "INT32"}, "expected INT32"),
    ("inputs", {"name": "z"}, "has the inputs x; expected z"),
    ("outputs", {"shape": [-1, 4]}, r"output 'y' as tensor\(float\) \[rows, 3\]; expected FP32 \[-1, 4\]"),
    ("outputs", {"datatype": "FP16"}, "expected FP16"),
    ("outputs", {"name": "z"}, "has the outputs y; expected z"),
]


@pytest.mark.parametrize(("what", "lie", "told"), LIES)
@pytest.mark.parametrize("with_reference", [True, False])
def test_manifest_that_says_another_signature_than_the_file_is_refused(
    folder: Path, what: str, lie: dict[str, Any], told: str, with_reference: bool
) -> None:
    manifest = save_exported(folder)
    manifest[what][0].update(lie)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if not with_reference:
        (folder / "reference.npz").unlink()
    with pytest.raises(LoadError, match=told):
        load_model(artifact_in(folder), config(), "cpu", ONE_THREAD)


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        (np.ones((7, 5), np.float32), np.ones((7, 3), np.float32), r"input.x is float32 \[7, 5\]"),
        (np.ones((7, 4)), np.ones((7, 3), np.float32), "input.x is float64"),
        (np.ones((7, 4), np.float32), np.ones((6, 3), np.float32), "output.y has 6 rows"),
        (np.ones((0, 4), np.float32), np.ones((0, 3), np.float32), "input.x has 0 rows"),
        (
            np.ones((2000, 4), np.float32),
            np.ones((2000, 3), np.float32),
            "input.x has 2000 rows; expected 1 to 1024",
        ),
        (np.float32(1), np.ones((7, 3), np.float32), r"input.x is float32 \[\]"),
    ],
)
def test_reference_that_is_not_of_the_signature_is_refused(
    folder: Path, x: np.ndarray, y: np.ndarray, told: str
) -> None:
    save_exported(folder)
    np.savez(folder / "reference.npz", **{"input.x": x, "output.y": y})
    with pytest.raises(LoadError, match=rf"reference.npz cannot be used: {told}"):
        load_model(artifact_in(folder), config(), "cpu", ONE_THREAD)


def test_reference_that_would_fill_the_memory_is_not_unpacked(folder: Path) -> None:
    save_exported(folder)
    with (
        zipfile.ZipFile(folder / "reference.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("input.x.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (80_000_000, 4)}
        )
        for _ in range(80):
            file.write(bytes(16_000_000))
    with pytest.raises(LoadError, match=r"it holds 1280000128 bytes, at most 1073741824 are read"):
        load_model(artifact_in(folder), config(), "cpu", ONE_THREAD)


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


def test_each_output_is_held_to_its_own_tolerance_in_each_of_its_columns(folder: Path) -> None:
    manifest = save_exported(folder)
    with np.load(folder / "reference.npz") as arrays:
        reference = dict(arrays)
    reference["output.y"][:, 2] *= 1.01
    np.savez(folder / "reference.npz", **reference)
    data = (folder / "reference.npz").read_bytes()
    manifest["files"]["reference.npz"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    figures = {"max_abs": 0.0, "max_rel": 0.0, "tolerance": 2e-3}
    manifest["parity"]["onnx"] |= {"tolerance": 0.5, "outputs": {"y": figures}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(LoadError, match=r"output 'y' is off by .* of a column, 0.002 is allowed"):
        load_model(artifact_in(folder), config(), "cpu", ONE_THREAD)
    figures["tolerance"] = 0.02
    (folder / "manifest.json").write_text(json.dumps(manifest))
    load_model(artifact_in(folder), config(), "cpu", ONE_THREAD)
