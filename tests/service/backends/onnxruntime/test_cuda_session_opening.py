"""Opening an ONNX file for a GPU: its options, its graphs, and what is left behind when it fails.

onnxruntime is real, on its CPU provider; the CUDA calls are a fake's.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.backends import LoadError, SessionOptions, Workload
from foldserve.service.backends.base import DeviceLost, InsufficientMemory
from foldserve.service.backends.cuda.errors import understood
from foldserve.service.backends.cuda.runtime import CudaError
from foldserve.service.backends.onnxruntime import cpu_session, cuda_session
from foldserve.service.backends.onnxruntime.cuda_session import OnnxCudaSession, SessionDevice
from tests.service.cuda_fakes import FakeCuda, Watched, rows_of
from tests.service.repositories import WEIGHT, save_linear

LINEAR = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 3)),))


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save_linear(tmp_path / "model.onnx")


@pytest.fixture
def providers_seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options that the CUDA provider would have had, by opening; the CPU's provider runs in its place."""
    seen: list[dict[str, Any]] = []
    real = cpu_session._open

    def on_cpu(path: Path, providers: Any, threads: int) -> Any:
        seen.append(dict(providers[0][1]))
        return Watched(real(path, [("CPUExecutionProvider", {})], threads))

    monkeypatch.setattr(cpu_session, "_open", on_cpu)
    monkeypatch.setattr(cuda_session, "tensor_places", lambda session: {"x": "device", "y": "device"})
    monkeypatch.setattr(
        Watched, "get_providers", lambda _: ["CUDAExecutionProvider", "CPUExecutionProvider"], raising=False
    )
    return seen


def load(
    path: Path, cuda: FakeCuda, options: SessionOptions | None = None, workload: Workload | None = None
) -> OnnxCudaSession:
    return cpu_session._load_on(
        SessionDevice("cpu", 0, cuda),
        path,
        LINEAR,
        options or SessionOptions(threads=1),
        workload or Workload((1, 4, 8)),
    )


def test_every_bucket_is_captured_before_the_model_is_ready(
    path: Path, cuda: FakeCuda, providers_seen: list[dict[str, Any]]
) -> None:
    session = load(path, cuda)
    assert session.notes == (
        "CUDA graphs for batches of 1, 4, 8 rows",
        "1 of 1 operators run on the CPU: 1 MatMul",  # the stand-in for the GPU
    )
    (options,) = providers_seen
    assert options["enable_cuda_graph"] == "1"
    assert int(options["user_compute_stream"]) in cuda.streams
    assert session._session.graphs == ["8", "4", "1"]
    np.testing.assert_allclose(session.run({"x": rows_of(4)})["y"], rows_of(4) @ WEIGHT, rtol=1e-5)


def test_model_that_cannot_be_captured_is_opened_anew_without_graphs_and_says_why(
    path: Path,
    cuda: FakeCuda,
    providers_seen: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cannot(self: OnnxCudaSession, rows: int) -> None:
        raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing")

    monkeypatch.setattr(OnnxCudaSession, "capture", cannot)
    session = load(path, cuda)
    assert [options["enable_cuda_graph"] for options in providers_seen] == ["1", "0"]
    assert (
        session.notes[0]
        == "CUDA graphs are not used: the runtime cannot record this model; the server's log says why"
    )
    assert len(cuda.streams) == 1  # the stream of the failed capture is gone
    assert session.host_buffers(8) is not None
    np.testing.assert_allclose(session.run({"x": rows_of(4)})["y"], rows_of(4) @ WEIGHT, rtol=1e-5)
    assert session._session.graphs == ["-1"]


def test_no_room_for_the_batches_is_a_load_error_that_names_the_fix(
    path: Path, providers_seen: list[dict[str, Any]]
) -> None:
    cuda = FakeCuda(room=8)
    with pytest.raises(
        InsufficientMemory,
        match=r"not enough memory on cpu:0 for a batch of 8 rows; lower max_b.*: CUDA failure 2",
    ):
        load(path, cuda)
    assert not cuda.streams
    assert not cuda.host


def test_no_room_for_the_weights_is_told_as_that(
    path: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError(
            "Exception during initialization: bfc_arena.cc AllocateRawInternal Available memory of 512 is smaller than "
            "requested bytes of 1024"
        )

    monkeypatch.setattr(onnxruntime, "InferenceSession", full)
    with pytest.raises(
        InsufficientMemory,
        match=r"the device does not have enough memory for the model; set fewer instances.*smaller than ",
    ):
        load(path, cuda)
    assert not cuda.streams


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (2, InsufficientMemory, "m.* on cpu:0: the device does not have enough memory for the model"),
        (46, LoadError, "m.* on cpu:0 cannot be loaded, for CUDA cannot be used: CUDA failure 46: all busy"),
        (999, DeviceLost, "CUDA failure 999"),
    ],
)
def test_device_that_gives_no_stream_is_told_by_what_it_says(
    path: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception], text: str
) -> None:
    def fails() -> None:
        raise understood(CudaError("cudaStreamCreateWithFlags", code, "all busy"))

    monkeypatch.setattr(cuda, "use", fails)
    with pytest.raises(kind, match=text) as caught:
        load(path, cuda)
    assert type(caught.value) is kind


def test_file_that_does_not_open_leaves_no_stream_behind(
    path: Path, cuda: FakeCuda, providers_seen: list[dict[str, Any]]
) -> None:
    path.write_bytes(b"not a model")
    with pytest.raises(LoadError, match="is not a model that onnxruntime can load"):
        load(path, cuda)
    assert not cuda.streams


def test_providers_of_the_operators_own_run_as_they_say_without_bound_memory(
    path: Path, cuda: FakeCuda, providers_seen: list[dict[str, Any]]
) -> None:
    options = SessionOptions(
        threads=1,
        providers=(("TensorrtExecutionProvider", {"trt_fp16_enable": 1}), ("CUDAExecutionProvider", {})),
    )
    with pytest.raises(LoadError, match="could not use TensorrtExecutionProvider"):
        load(path, cuda, options)
    session = load(path, cuda, SessionOptions(1, (("CUDAExecutionProvider", {"user_compute_stream": "7"}),)))
    assert session.host_buffers(1) is None
    assert (
        session.notes[0]
        == "CUDA graphs are not used: `session: providers` in config.yaml decides how the model runs"
    )
