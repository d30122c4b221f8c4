"""Models that count no rows, `max_batch_size: 0`: read, loaded and run alone, in their own shapes, by both backends."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from foldserve.service.backends import LoadError, Session, SessionOptions
from foldserve.service.errors import ConfigError
from foldserve.service.ipc.slots.tensor_layout import TensorLayout
from foldserve.service.repository.artifact import Artifact, read_artifact
from foldserve.service.repository.loading import load_model
from foldserve.service.repository.model_config import read_model_config
from tests.service.repositories import save_exported, save_linear, save_onnx
from tests.service.uncounted import (
    images,
    places,
    save_degrees,
    save_double,
    save_fixed,
    save_nonzero,
    save_scalars,
    save_scripted_nonzero,
)

ONE_THREAD = SessionOptions(threads=1)
SAVES = [save_nonzero, save_fixed, save_scalars, save_double, save_degrees, save_scripted_nonzero]


def read(folder: Path) -> Artifact:
    return read_artifact(
        folder / "1", folder.name, "1", read_model_config(folder / "config.yaml", folder.name)
    )


def load(folder: Path) -> Session:
    config = read_model_config(folder / "config.yaml", folder.name)
    return load_model(read(folder), config, "cpu", ONE_THREAD)


def without_the_setting(folder: Path) -> None:
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("max_batch_size: 0\n", ""))


@pytest.mark.parametrize("save", SAVES)
def test_batches_of_such_a_model_have_one_row(save: Callable[[Path], Path], tmp_path: Path) -> None:
    save(tmp_path / "m")
    artifact = read(tmp_path / "m")
    assert artifact.max_batch_size == 1
    assert not artifact.signature.counts_rows


@pytest.mark.parametrize("save", [save_nonzero, save_scripted_nonzero])
def test_detections_come_in_the_model_s_own_number(save: Callable[[Path], Path], tmp_path: Path) -> None:
    save(tmp_path / "m")
    session = load(tmp_path / "m")
    for count, image in images(20).items():
        found = session.run({"image": image[np.newaxis]})["found"]
        assert found.shape[:1] == (1,)
        np.testing.assert_array_equal(found[0], places(image))
        if count < 4:
            assert len(found[0]) == count


def test_dims_that_are_fixed_and_tensors_without_dims_are_run_as_they_are(tmp_path: Path) -> None:
    save_fixed(tmp_path / "fixed")
    (y,) = load(tmp_path / "fixed").run({"x": np.arange(4, dtype="f4").reshape(1, 1, 4)}).values()
    np.testing.assert_array_equal(y, np.full((1, 1, 3), 6))
    save_scalars(tmp_path / "scalars")
    given = {"x": np.ones((1, 5), "f4"), "scale": np.full((1,), 3, "f4")}
    np.testing.assert_array_equal(load(tmp_path / "scalars").run(given)["total"], [15])


@pytest.mark.parametrize("save", SAVES)
def test_what_refuses_such_a_model_names_the_setting_and_following_it_serves_the_model(
    save: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    save(folder)
    without_the_setting(folder)
    with pytest.raises((ConfigError, LoadError), match=r"set `max_batch_size: 0` in config.yaml"):
        load(folder)
    config = folder / "config.yaml"
    config.write_text(config.read_text() + "max_batch_size: 0\n")
    load(folder)


def test_a_model_that_mixes_rows_is_served_alone_as_it_was_advised(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    save_onnx(
        folder / "1" / "model.onnx",
        [helper.make_node("Softmax", ["x"], ["y"], axis=0)],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 3])],
        {},
    )
    with pytest.raises(LoadError, match=r"mixes rows.*set `max_batch_size: 0` in config.yaml"):
        load(folder)
    (folder / "config.yaml").write_text("max_batch_size: 0\n")
    y = load(folder).run({"x": np.zeros((1, 4, 3), "f4")})["y"]
    np.testing.assert_allclose(y, np.full((1, 4, 3), 0.25))


def test_an_export_may_be_run_so_too_and_is_still_compared_with_its_reference(tmp_path: Path) -> None:
    folder = tmp_path / "linear"
    (folder / "1").mkdir(parents=True)
    save_exported(folder / "1")
    (folder / "config.yaml").write_text("max_batch_size: 0\n")
    assert load(folder).run({"x": np.ones((1, 2, 4), "f4")})["y"].shape == (1, 2, 3)
    save_exported(folder / "1", error=0.01)
    with pytest.raises(LoadError, match="does not agree with its reference"):
        load(folder)


@pytest.mark.parametrize("more", ["", "warmup: false\n"])
def test_outputs_other_than_the_signature_s_are_told_in_the_model_s_own_shapes(
    tmp_path: Path, more: str
) -> None:
    folder = tmp_path / "m"
    save_scripted_nonzero(folder)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("[-1, 2]", "[-1, 7]") + more)
    with pytest.raises(LoadError, match=r"gives output 'found' as int64 \[0, 2\]; expected INT64 \[-1, 7\]"):
        load(folder)


def test_an_output_of_unknown_rank_is_served_once_config_yaml_states_it(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    save_onnx(
        folder / "1" / "model.onnx",
        [helper.make_node("Squeeze", ["x"], ["y"])],  # without dims of 1, of which x may have any number
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["length", "width"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        {},
    )
    (folder / "config.yaml").write_text("max_batch_size: 0\n")
    with pytest.raises(
        LoadError, match=r"as float32 \[32, 32\]; expected FP32 \[\], .*fix it in config.yaml"
    ):
        load(folder)
    (folder / "config.yaml").write_text(
        "max_batch_size: 0\nsignature:\n"
        "  inputs: [{name: x, datatype: FP32, shape: [-1, -1]}]\n"
        "  outputs: [{name: y, datatype: FP32, shape: [-1, -1]}]\n"
    )
    assert load(folder).run({"x": np.ones((1, 2, 3), "f4")})["y"].shape == (1, 2, 3)


def test_a_model_with_a_fixed_dim_0_is_never_made_to_count_rows(tmp_path: Path) -> None:
    save_linear(tmp_path / "m" / "1" / "model.onnx", rows=2)
    with pytest.raises(ConfigError, match=r"expected a dynamic dim 0.*max_batch_size: 0"):
        read(tmp_path / "m")
    (tmp_path / "m" / "config.yaml").write_text("max_batch_size: 0\n")
    artifact = read(tmp_path / "m")
    assert [spec.shape for spec in artifact.signature.inputs] == [(2, 4)]
    assert TensorLayout(artifact.signature).input_bytes(1, ()) == 32
    assert load(tmp_path / "m").run({"x": np.ones((1, 2, 4), "f4")})["y"].shape == (1, 2, 3)


def test_a_manifest_cannot_say_it(tmp_path: Path) -> None:
    (tmp_path / "linear" / "1").mkdir(parents=True)
    save_exported(tmp_path / "linear" / "1")
    manifest = tmp_path / "linear" / "1" / "manifest.json"
    assert read(tmp_path / "linear").signature.counts_rows
    manifest.write_text(manifest.read_text().replace('"max_batch_size": 8', '"max_batch_size": 0'))
    with pytest.raises(ConfigError, match="max_batch_size 0; expected a whole number from 1"):
        read(tmp_path / "linear")
