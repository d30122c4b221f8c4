"""The calls of the CUDA runtime: what goes to the library, and what its statuses become."""

import ctypes
from collections.abc import Callable
from typing import Any

import onnxruntime as ort
import pytest

from foldserve.service.backends import LoadError
from foldserve.service.backends.base import DeviceLost, OutOfMemory
from foldserve.service.backends.cuda.runtime import CudaError, CudaRuntime, cudart_name, open_runtime


class FakeLibrary:
    """Answers every function with `status`, and writes 4096 into what is given by reference first."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.calls: list[tuple[Any, ...]] = []
        self._functions: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return self._functions.setdefault(name, self._function(name))

    def _function(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if name == "cudaGetErrorString":
                return b"the library's text"
            self.calls.append((name, *(getattr(argument, "value", argument) for argument in arguments)))
            for argument in arguments:
                if hasattr(argument, "_obj"):  # ctypes.byref
                    argument._obj.value = 4096 if isinstance(argument._obj, ctypes.c_void_p) else 1
            return self.status

        return call


def runtime(status: int = 0) -> tuple[CudaRuntime, FakeLibrary]:
    library = FakeLibrary(status)
    return CudaRuntime(2, library), library  # type: ignore[arg-type]


def test_memory_and_streams_are_given_by_their_addresses() -> None:
    cuda, library = runtime()
    assert [cuda.new_stream(), cuda.host_memory(10), cuda.device_memory(20)] == [4096] * 3
    assert [call[0] for call in library.calls] == ["cudaStreamCreateWithFlags", "cudaHostAlloc", "cudaMalloc"]
    assert [call[2] for call in library.calls] == [1, 10, 20]  # cudaStreamNonBlocking, bytes, bytes


def test_copies_name_their_direction_and_stream() -> None:
    cuda, library = runtime()
    cuda.use()
    cuda.to_device(1, 2, 30, 4)
    cuda.to_host(5, 6, 70, 8)
    cuda.synchronize(8)
    assert library.calls == [
        ("cudaSetDevice", 2),
        ("cudaMemcpyAsync", 1, 2, 30, 1, 4),  # cudaMemcpyHostToDevice
        ("cudaMemcpyAsync", 5, 6, 70, 2, 8),  # cudaMemcpyDeviceToHost
        ("cudaStreamSynchronize", 8),
    ]


@pytest.mark.parametrize(("status", "kind"), [(2, OutOfMemory), (700, DeviceLost), (1, CudaError)])
def test_statuses_become_what_a_caller_can_act_on(status: int, kind: type[Exception]) -> None:
    cuda, _ = runtime(status)
    with pytest.raises(kind, match=rf"CUDA failure {status}: the library's text ; expr=cudaMalloc"):
        cuda.device_memory(8)


def test_status_is_asked_for_without_raising_and_leaves_no_error_for_the_next_call() -> None:
    cuda, library = runtime(719)
    assert cuda.status(1) == 719
    assert [call[0] for call in library.calls] == ["cudaStreamSynchronize", "cudaGetLastError"]


def test_open_capture_is_ended_and_its_graph_destroyed() -> None:
    cuda, library = runtime()
    cuda.end_capture(9)  # the fake's cudaStreamIsCapturing says 1, active
    assert [call[0] for call in library.calls] == [
        "cudaStreamIsCapturing",
        "cudaStreamEndCapture",
        "cudaGraphDestroy",
        "cudaGetLastError",
    ]


@pytest.mark.parametrize(("version", "name"), [("13.0", "libcudart.so.13"), ("12.8", "libcudart.so.12")])
def test_runtime_is_that_of_onnxruntimes_own_cuda(version: str, name: str) -> None:
    assert cudart_name(version) == name


def test_missing_runtime_is_told_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(LoadError, match=r"libcudart.so.\d+ cannot be loaded: .*foldserve\[cuda\]"):
        open_runtime(0)
