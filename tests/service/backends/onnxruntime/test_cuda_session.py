"""A session's way over a GPU's memory. onnxruntime is real, on its CPU provider; the CUDA calls are a fake's."""

import ctypes
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from foldserve.service.backends.base import DeviceLost, OutOfMemory
from foldserve.service.backends.one_row import OneRowSession
from foldserve.service.backends.onnxruntime import cuda_session
from foldserve.service.backends.onnxruntime.cpu_session import read_signature
from foldserve.service.backends.onnxruntime.cuda_session import OnnxCudaSession, SessionDevice
from tests.service.cuda_fakes import FakeCuda, Watched, rows_of
from tests.service.repositories import WEIGHT, save_linear, save_lookup, save_onnx

ROWS = 8


def opened(path: Path) -> Watched:
    return Watched(ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]))


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tensors are on the device, as they are for a model that runs wholly on a GPU."""
    places = cuda_session.tensor_places
    monkeypatch.setattr(
        cuda_session, "tensor_places", lambda session: dict.fromkeys(places(session), "device")
    )


def make(session: Any, path: Path, cuda: FakeCuda, rows: int = ROWS) -> OnnxCudaSession:
    # onnxruntime takes the fake's device memory for the CPU's, which it is.
    return OnnxCudaSession(
        session, read_signature(path), SessionDevice("cpu", 0, cuda), cuda.new_stream(), rows
    )


@pytest.fixture
def linear(tmp_path: Path, cuda: FakeCuda, on_device: None) -> OnnxCudaSession:
    path = save_linear(tmp_path / "model.onnx")
    return make(opened(path), path, cuda)


@pytest.mark.parametrize("rows", [1, 3, ROWS])
def test_batch_goes_over_the_device_and_is_waited_for_once(
    linear: OnnxCudaSession, cuda: FakeCuda, rows: int
) -> None:
    x = rows_of(rows)
    np.testing.assert_allclose(linear.run({"x": x})["y"], x @ WEIGHT, rtol=1e-5)
    assert cuda.calls == ["use", "to_device", "to_host", "synchronize"]
    assert [size for _, size in cuda.copied] == [rows * 16]  # FP32 [rows, 4]


def test_every_batch_has_its_own_answers_though_the_memory_stays(linear: OnnxCudaSession) -> None:
    for seed, rows in enumerate([8, 2, 8, 1, 2, 5]):
        x = rows_of(rows, seed)
        np.testing.assert_allclose(linear.run({"x": x})["y"], x @ WEIGHT, rtol=1e-5)


def test_rows_gathered_in_the_sessions_own_memory_are_not_copied_on_the_host(
    linear: OnnxCudaSession, cuda: FakeCuda
) -> None:
    buffers = linear.host_buffers(ROWS)
    assert buffers is not None
    again = linear.host_buffers(2)
    assert again is not None
    assert buffers["x"].ctypes.data == again["x"].ctypes.data in cuda.host
    assert (buffers["x"].shape, again["x"].shape) == ((ROWS, 4), (2, 4))
    buffers["x"][:3] = x = rows_of(3)
    np.testing.assert_allclose(linear.run({"x": buffers["x"][:3]})["y"], x @ WEIGHT, rtol=1e-5)
    assert cuda.copied == [(buffers["x"].ctypes.data, 3 * 16)]


@pytest.mark.parametrize("shape", [[], [1, 3], ["n"]])
def test_a_model_that_counts_no_rows_is_run_plainly_in_its_own_shapes(
    tmp_path: Path, cuda: FakeCuda, on_device: None, shape: list[Any]
) -> None:
    specs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    path = save_onnx(
        tmp_path / "m.onnx", [helper.make_node("Identity", ["x"], ["y"])], specs[:1], specs[1:], {}
    )
    signature = read_signature(path, counts_rows=False)
    session = OneRowSession(
        OnnxCudaSession(opened(path), signature, SessionDevice("cpu", 0, cuda), cuda.new_stream(), rows=0)
    )
    assert session.host_buffers(1) is None
    x = np.full([1, *(5 if size == "n" else size for size in shape)], 7, np.float32)
    np.testing.assert_array_equal(session.run({"x": x})["y"], x)


def test_read_only_rows_of_a_request_are_taken(linear: OnnxCudaSession) -> None:
    x = np.frombuffer(rows_of(2).tobytes(), np.float32).reshape(2, 4)
    np.testing.assert_allclose(linear.run({"x": x})["y"], x @ WEIGHT, rtol=1e-5)


TYPES = [
    (TensorProto.FLOAT16, np.float16),
    (TensorProto.DOUBLE, np.float64),
    (TensorProto.BOOL, np.bool_),
    (TensorProto.UINT8, np.uint8),
    (TensorProto.INT8, np.int8),
    (TensorProto.UINT16, np.uint16),
    (TensorProto.INT32, np.int32),
    (TensorProto.UINT32, np.uint32),
    (TensorProto.INT64, np.int64),
    (TensorProto.UINT64, np.uint64),
]


@pytest.mark.parametrize(("kind", "dtype"), TYPES, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("place", ["device", "host"])
def test_every_datatype_arrives_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, dtype: type[np.generic], place: str
) -> None:
    specs = [helper.make_tensor_value_info(name, kind, ["rows", 3]) for name in ("x", "y")]
    path = save_onnx(
        tmp_path / "m.onnx", [helper.make_node("Identity", ["x"], ["y"])], specs[:1], specs[1:], {}
    )
    monkeypatch.setattr(cuda_session, "tensor_places", lambda session: {"x": place, "y": place})
    session = make(opened(path), path, FakeCuda())
    for scale in (1, 2):  # twice: what is bound must not be a copy of the first batch
        x = (np.arange(6).reshape(2, 3) * scale).astype(dtype)
        y = session.run({"x": x})["y"]
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, x)


def test_what_the_cpu_reads_and_writes_stays_on_the_host_and_no_graph_is_made(
    tmp_path: Path, cuda: FakeCuda
) -> None:
    path = save_linear(tmp_path / "model.onnx")
    session = make(opened(path), path, cuda)  # on the CPU provider, that is everything
    x = rows_of(2)
    np.testing.assert_allclose(session.run({"x": x})["y"], x @ WEIGHT, rtol=1e-5)
    assert not cuda.device
    assert cuda.calls == ["use", "synchronize"]
    assert "the CPU reads or writes x, y" in session.no_graphs


def test_input_on_the_host_is_bound_anew_for_every_batch_for_it_may_be_copied_then(
    tmp_path: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_linear(tmp_path / "model.onnx")
    monkeypatch.setattr(cuda_session, "tensor_places", lambda session: {"x": "host", "y": "device"})
    session = make(opened(path), path, cuda)
    bind = ort.IOBinding.bind_input
    copies: list[np.ndarray] = []

    def copies_first(self: Any, name: str, *, shape: list[int], buffer_ptr: int, **more: Any) -> None:
        given = (ctypes.c_float * math.prod(shape)).from_address(buffer_ptr)
        copies.append(np.ctypeslib.as_array(given).copy())
        bind(self, name, shape=shape, buffer_ptr=copies[-1].ctypes.data, **more)

    monkeypatch.setattr(ort.IOBinding, "bind_input", copies_first)
    for seed in range(3):
        x = rows_of(2, seed)
        np.testing.assert_allclose(session.run({"x": x})["y"], x @ WEIGHT, rtol=1e-5)


def test_tensors_whose_place_is_unknown_are_not_bound(
    tmp_path: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_linear(tmp_path / "model.onnx")
    monkeypatch.setattr(cuda_session, "tensor_places", lambda session: {"x": "device", "y": "unknown"})
    session = make(opened(path), path, cuda)
    assert session.host_buffers(1) is None
    assert session.no_graphs == "onnxruntime does not say where it keeps y"
    np.testing.assert_allclose(session.run({"x": rows_of(2)})["y"], rows_of(2) @ WEIGHT, rtol=1e-5)


@dataclass
class Info:
    """Of onnxruntime's OrtMemoryInfo, what is looked at."""

    name: str
    device_mem_type: Any = ort.OrtDeviceMemoryType.DEFAULT
    device_vendor_id: int = 0


@pytest.mark.parametrize(
    ("info", "place"),
    [
        (Info("Cuda"), "device"),
        (Info("Cuda", device_vendor_id=0x10DE), "device"),
        (Info("CudaArena", device_vendor_id=0x10DE), "device"),
        (Info("Cpu"), "host"),
        (Info("CudaPinned", device_vendor_id=0x10DE), "host"),
        (Info("x", ort.OrtDeviceMemoryType.HOST_ACCESSIBLE, 0x10DE), "host"),
        (Info("Moon"), "unknown"),
    ],
)
def test_places_are_read_from_what_onnxruntime_says_of_its_memory(info: Info, place: str) -> None:
    class Session:
        def get_inputs(self) -> list[Any]:
            return [type("Tensor", (), {"name": "x"})]

        def get_input_memory_infos(self) -> list[Info]:
            return [info]

        def get_outputs(self) -> list[Any]:
            return []

        def get_output_memory_infos(self) -> list[Info]:
            return []

    assert cuda_session.tensor_places(Session()) == {"x": place}


def test_places_of_a_session_that_does_not_tell_are_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise RuntimeError("no")

    session = opened(save_linear(tmp_path / "model.onnx"))
    assert cuda_session.tensor_places(session) == {"x": "host", "y": "host"}
    monkeypatch.setattr(session, "get_input_memory_infos", fails, raising=False)
    assert cuda_session.tensor_places(session) == {"x": "unknown", "y": "unknown"}


def test_larger_batch_than_there_is_memory_for_is_run_plainly(linear: OnnxCudaSession) -> None:
    assert linear.host_buffers(ROWS + 1) is None
    x = rows_of(ROWS + 1)
    np.testing.assert_allclose(linear.run({"x": x})["y"], x @ WEIGHT, rtol=1e-5)


def test_model_of_any_dims_is_run_plainly(tmp_path: Path, cuda: FakeCuda, on_device: None) -> None:
    path = save_lookup(tmp_path / "model.onnx")
    session = make(opened(path), path, cuda)
    assert session.host_buffers(1) is None
    assert session.run({"index": np.array([[1, 2]])})["y"].tolist() == [[[2, 3], [4, 5]]]
    assert not cuda.host
    assert not cuda.device


def test_output_of_other_dims_than_declared_fails_the_run(
    tmp_path: Path, cuda: FakeCuda, on_device: None
) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 2])
    path = save_onnx(
        tmp_path / "m.onnx",
        [helper.make_node("Concat", ["x", "x"], ["y"], axis=0)],
        [x],
        [y],
        {},
    )
    session = make(opened(path), path, cuda)
    with pytest.raises(Exception, match="shape"):
        session.run({"x": np.zeros((2, 2), np.float32)})


def test_two_sessions_share_neither_stream_nor_memory(
    tmp_path: Path, cuda: FakeCuda, on_device: None
) -> None:
    path = save_linear(tmp_path / "model.onnx")
    first, second = make(opened(path), path, cuda), make(opened(path), path, cuda)
    assert (len(cuda.streams), len(cuda.host), len(cuda.device)) == (2, 4, 4)
    answers = first.run({"x": rows_of(2)})["y"]
    second.run({"x": rows_of(2, seed=1)})
    np.testing.assert_allclose(answers, rows_of(2) @ WEIGHT, rtol=1e-5)


def test_no_room_in_a_run_is_told_and_the_session_stays_usable(tmp_path: Path, on_device: None) -> None:
    path = save_linear(tmp_path / "model.onnx")
    watched = opened(path)
    session = make(watched, path, FakeCuda())
    watched.error = RuntimeError("Available memory of 512 is smaller than requested bytes of 1024")
    with pytest.raises(OutOfMemory, match="smaller than requested"):
        session.run({"x": rows_of(4)})
    watched.error = None
    np.testing.assert_allclose(session.run({"x": rows_of(2)})["y"], rows_of(2) @ WEIGHT, rtol=1e-5)


@pytest.mark.parametrize("text", ["CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED", "anything"])
def test_device_that_is_lost_is_told_whatever_the_run_said(
    tmp_path: Path, cuda: FakeCuda, on_device: None, text: str
) -> None:
    path = save_linear(tmp_path / "model.onnx")
    watched = opened(path)
    session = make(watched, path, cuda)
    watched.error, cuda.broken = RuntimeError(text), 700
    with pytest.raises(DeviceLost, match="CUDA status 700: an illegal memory access"):
        session.run({"x": rows_of(4)})


def test_device_lost_while_a_batch_is_waited_for_gives_no_answers(
    linear: OnnxCudaSession, cuda: FakeCuda
) -> None:
    cuda.broken = 719
    with pytest.raises(DeviceLost):
        linear.run({"x": rows_of(1)})


def test_closed_session_has_given_everything_back(linear: OnnxCudaSession, cuda: FakeCuda) -> None:
    linear.run({"x": rows_of(1)})
    linear.close()
    linear.close()
    assert not cuda.host
    assert not cuda.device
    assert not cuda.streams


def test_session_that_finds_no_memory_keeps_none(tmp_path: Path, on_device: None) -> None:
    path = save_linear(tmp_path / "model.onnx")
    cuda = FakeCuda(room=ROWS * 16)  # for the input only
    with pytest.raises(OutOfMemory):
        make(opened(path), path, cuda)
    assert not cuda.host
    assert not cuda.device


def test_captured_sizes_are_replayed_by_their_ids_and_others_are_not(
    tmp_path: Path, cuda: FakeCuda, on_device: None
) -> None:
    path = save_linear(tmp_path / "model.onnx")
    watched = opened(path)
    session = make(watched, path, cuda)
    for rows in (8, 2):
        session.capture(rows)
    for rows in (2, 5, 8):
        x = rows_of(rows, seed=rows)
        np.testing.assert_allclose(session.run({"x": x})["y"], x @ WEIGHT, rtol=1e-5)
    assert watched.graphs == ["8", "2", "2", "-1", "8"]
    assert not cuda.captures_ended


def test_capture_that_fails_is_ended_for_the_sake_of_other_models(
    tmp_path: Path, cuda: FakeCuda, on_device: None
) -> None:
    path = save_linear(tmp_path / "model.onnx")
    watched = opened(path)
    session = make(watched, path, cuda)
    watched.error = RuntimeError("CUDA failure 900: operation not permitted when stream is capturing")
    with pytest.raises(RuntimeError, match="900"):
        session.capture(8)
    assert cuda.captures_ended == 1
