"""TorchScript's way over a GPU: torch is real, on the CPU; its streams and page-locked memory are fakes."""

import contextlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.backends.base import DeviceLost, OutOfMemory
from foldserve.service.backends.one_row import OneRowSession
from foldserve.service.backends.torchscript import cuda_session
from foldserve.service.backends.torchscript.cuda_session import TorchScriptCudaSession
from tests.service.cuda_fakes import rows_of
from tests.service.repositories import WEIGHT, save_scripted

LINEAR = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 3)),))
ANY_LENGTH = Signature((TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", (-1, -1)),))


class FakeStream:
    """Counts the waits; `broken` is what they raise."""

    def __init__(self, device: torch.device) -> None:
        self.waits = 0
        self.broken: Exception | None = None

    def synchronize(self) -> None:
        self.waits += 1
        if self.broken:
            raise self.broken


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(cuda_session, "_pinned_like", torch.empty_like)


def session_of(module: Any, rows: int = 8, signature: Signature = LINEAR) -> TorchScriptCudaSession:
    return TorchScriptCudaSession(module, signature, torch.device("cpu"), rows)


@pytest.fixture
def linear(tmp_path: Path) -> TorchScriptCudaSession:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return session_of(torch.jit.load(str(save_scripted(tmp_path))).eval())


@pytest.mark.parametrize("shape", [(), (1, 3)])
def test_a_model_that_counts_no_rows_is_run_in_its_own_shapes(shape: tuple[int, ...]) -> None:
    spec = TensorSpec("x", "FP32", shape, counts_rows=False)
    signature = Signature((spec,), (TensorSpec("y", "FP32", shape, counts_rows=False),))
    (example,) = cuda_session._example(signature, torch.device("cpu"))
    assert tuple(example.shape) == shape
    session = OneRowSession(session_of(torch.nn.Identity(), 0, signature))
    assert session.host_buffers(1) is None
    x = np.full((1, *shape), 7, np.float32)
    np.testing.assert_array_equal(session.run({"x": x})["y"], x)


@pytest.mark.parametrize("rows", [1, 8, 9])
def test_batch_is_waited_for_once(linear: TorchScriptCudaSession, rows: int) -> None:
    x = rows_of(rows)
    np.testing.assert_allclose(linear.run({"x": x})["y"], x @ WEIGHT, rtol=1e-5)
    stream: Any = linear._stream
    assert stream.waits == 1


def test_rows_gathered_in_the_sessions_own_memory_are_run_where_they_lie(
    linear: TorchScriptCudaSession,
) -> None:
    buffers = linear.host_buffers(8)
    assert buffers is not None
    assert linear.host_buffers(9) is None
    assert buffers["x"].ctypes.data == linear._pinned["x"].data_ptr()
    for seed in range(2):
        buffers["x"][:3] = x = rows_of(3, seed)
        np.testing.assert_allclose(linear.run({"x": buffers["x"][:3]})["y"], x @ WEIGHT, rtol=1e-5)


def test_read_only_rows_are_taken_and_stay_as_they_are(linear: TorchScriptCudaSession) -> None:
    body = rows_of(2).tobytes()
    x = np.frombuffer(body, np.float32).reshape(2, 4)
    np.testing.assert_allclose(linear.run({"x": x})["y"], x @ WEIGHT, rtol=1e-5)
    assert body == rows_of(2).tobytes()


def test_rows_of_any_length_have_no_memory_of_their_own() -> None:
    session = session_of(lambda x: x + 1, signature=ANY_LENGTH)
    assert session.host_buffers(1) is None
    assert session.run({"x": np.float32([[1, 2, 3]])})["y"].tolist() == [[2, 3, 4]]


def raising(error: Exception) -> Any:
    def module(x: torch.Tensor) -> torch.Tensor:
        raise error

    return module


def test_no_room_is_told_and_the_session_stays_usable() -> None:
    session = session_of(raising(torch.cuda.OutOfMemoryError("no room")))
    with pytest.raises(OutOfMemory, match="no room"):
        session.run({"x": rows_of(2)})
    session._module = lambda x: x
    np.testing.assert_array_equal(session.run({"x": rows_of(2)})["y"], rows_of(2))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
    ],
)
def test_lost_device_is_told(error: Exception) -> None:
    session = session_of(raising(error))
    stream: Any = session._stream
    stream.broken = error  # as it is with a sticky error
    with pytest.raises(DeviceLost):
        session.run({"x": rows_of(2)})


def test_lost_device_is_seen_by_the_wait_when_the_run_did_not_say_so() -> None:
    session = session_of(raising(RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")))
    stream: Any = session._stream
    stream.broken = RuntimeError("CUDA error: unspecified launch failure")
    with pytest.raises(DeviceLost, match="unspecified launch failure"):
        session.run({"x": rows_of(2)})


def test_what_the_rows_are_to_blame_for_stays_what_it_is() -> None:
    session = session_of(raising(RuntimeError("index 99 is out of bounds for dimension 0 with size 10")))
    with pytest.raises(RuntimeError, match="out of bounds"):
        session.run({"x": rows_of(2)})


def test_wrong_number_of_outputs_is_told() -> None:
    session = session_of(lambda x: (x, x))
    with pytest.raises(ValueError, match="returned 2 tensors, the signature has 1 outputs"):
        session.run({"x": rows_of(2)})
