"""ONNX files in ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from foldserve.service.backends import LoadError, SessionOptions, load_session
from foldserve.service.backends.onnxruntime.cpu_session import read_signature
from tests.service.repositories import WEIGHT, save_linear, save_lookup, save_onnx

ONE_THREAD = SessionOptions(threads=1)


def test_answers_are_named_as_in_the_signature_whatever_the_files_order(tmp_path: Path) -> None:
    names = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 2]) for name in ("x", "a", "b")
    }
    nodes = [helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Abs", ["x"], ["b"])]
    path = save_onnx(tmp_path / "model.onnx", nodes, [names["x"]], [names["b"], names["a"]], {})
    session = load_session("onnxruntime", path, read_signature(path), "cpu", ONE_THREAD)
    outputs = session.run({"x": np.float32([[1, -2]])})
    assert {name: array.tolist() for name, array in outputs.items()} == {"a": [[-1, 2]], "b": [[1, 2]]}


def test_signature_is_read_from_the_file(tmp_path: Path) -> None:
    signature = read_signature(save_lookup(tmp_path / "model.onnx"))
    assert [str(spec) for spec in signature.inputs] == ["index INT64 [-1, -1]"]
    assert [str(spec) for spec in signature.outputs] == ["y FP32 [-1, -1, 2]"]


def test_read_only_rows_are_taken(tmp_path: Path) -> None:
    path = save_linear(tmp_path / "model.onnx")
    x = np.frombuffer(np.ones(8, np.float32).tobytes(), np.float32).reshape(2, 4)
    session = load_session("onnxruntime", path, read_signature(path), "cpu", ONE_THREAD)
    np.testing.assert_array_equal(session.run({"x": x})["y"], x @ WEIGHT)


def test_failed_run_raises_and_the_session_stays_usable(tmp_path: Path) -> None:
    path = save_lookup(tmp_path / "model.onnx")
    session = load_session("onnxruntime", path, read_signature(path), "cpu", ONE_THREAD)
    with pytest.raises(Exception, match="out of data bounds"):
        session.run({"index": np.array([[99]])})
    assert session.run({"index": np.array([[1]])})["y"].tolist() == [[[2, 3]]]


def test_threads_do_not_spin_while_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[ort.SessionOptions] = []
    real = ort.InferenceSession

    def watched(path: str, options: ort.SessionOptions, **more: object) -> ort.InferenceSession:
        given.append(options)
        return real(path, options, **more)

    path = save_linear(tmp_path / "model.onnx")
    signature = read_signature(path)
    monkeypatch.setattr(ort, "InferenceSession", watched)
    load_session("onnxruntime", path, signature, "cpu", SessionOptions(threads=2))
    (options,) = given
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.intra_op_num_threads == 2


def test_file_that_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(LoadError, match=r"model.onnx is not a model that onnxruntime can load"):
        read_signature(path)
    with pytest.raises(LoadError, match="cannot be read"):
        read_signature(tmp_path / "missing.onnx")


def test_file_that_does_not_match_its_manifest_is_refused(tmp_path: Path) -> None:
    signature = read_signature(save_lookup(tmp_path / "lookup.onnx"))
    path = save_linear(tmp_path / "model.onnx")
    with pytest.raises(LoadError, match="has the inputs x; expected index, as the manifest says"):
        load_session("onnxruntime", path, signature, "cpu", ONE_THREAD)


def test_unknown_provider_is_refused_with_those_there_are(tmp_path: Path) -> None:
    path = save_linear(tmp_path / "model.onnx")
    options = SessionOptions(threads=1, providers=(("MagicExecutionProvider", {}),))
    with pytest.raises(LoadError, match=r"has no MagicExecutionProvider, only .*CPUExecutionProvider"):
        load_session("onnxruntime", path, read_signature(path), "cpu", options)


class NoCuda:
    """A runtime whose library is there, on a machine where the provider's are not."""

    def use(self) -> None: ...

    def new_stream(self) -> int:
        return 1

    def end_stream(self, stream: int) -> None: ...


def test_provider_that_falls_back_to_the_cpu_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_linear(tmp_path / "model.onnx")
    signature = read_signature(path)
    real = ort.InferenceSession

    def falls_back(path: str, options: ort.SessionOptions, **more: object) -> ort.InferenceSession:
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "InferenceSession", falls_back)
    monkeypatch.setattr(
        ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(
        "foldserve.service.backends.onnxruntime.cpu_session.open_runtime", lambda number: NoCuda()
    )
    with pytest.raises(LoadError, match="could not use CUDAExecutionProvider and fell back to CPU"):
        load_session("onnxruntime", path, signature, "cuda:0", ONE_THREAD)


def test_onnxruntime_is_not_let_start_over_on_the_cpu_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_linear(tmp_path / "model.onnx")
    signature = read_signature(path)
    given: list[object] = []
    real = ort.InferenceSession

    def watched(path: str, options: ort.SessionOptions, **more: object) -> ort.InferenceSession:
        session = real(path, options, **more)
        given.append(session._enable_fallback)
        return session

    monkeypatch.setattr(ort, "InferenceSession", watched)
    load_session("onnxruntime", path, signature, "cpu", ONE_THREAD)
    assert given == [False]


@pytest.mark.parametrize("zipmap", [True, False])
def test_outputs_that_are_no_tensors_are_refused_for_being_none(tmp_path: Path, zipmap: bool) -> None:
    kind = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    output = helper.make_sequence_type_proto(
        kind if zipmap else helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    )
    node = (
        helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3])
        if zipmap
        else helper.make_node("SequenceConstruct", ["x"], ["y"])
    )
    graph = helper.make_graph(
        [node],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4])],
        [helper.make_value_info("y", output)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model.onnx")
    with pytest.raises(LoadError, match=r"output 'y' is a seq\(.*cannot be served; expected tensors"):
        read_signature(tmp_path / "model.onnx")
