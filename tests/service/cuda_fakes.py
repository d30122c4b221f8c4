"""A device without a device: the CUDA calls of a session on host memory, as strict as a card about order and room."""

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np

from foldserve.service.backends.base import OutOfMemory
from foldserve.service.backends.cuda.errors import understood
from foldserve.service.backends.cuda.runtime import CudaError


class FakeCuda:
    """See cuda_runtime.Cuda. Copies to the host happen at the next wait for their stream, as late as a card may.

    room: bytes of device memory. broken: what every wait ends with, cudaError_t.
    calls: the names of the calls in order. copied: (source, bytes) of copies to the device.
    """

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.broken = 0
        self.calls: list[str] = []
        self.copied: list[tuple[int, int]] = []
        self.host: dict[int, np.ndarray] = {}
        self.device: dict[int, np.ndarray] = {}
        self.streams: set[int] = set()
        self.captures_ended = 0
        self._made = 0
        self._later: list[tuple[int, int, int, int]] = []

    def use(self) -> None:
        self.calls.append("use")

    def new_stream(self) -> int:
        self._made += 1
        self.streams.add(self._made)
        return self._made

    def host_memory(self, size: int) -> int:
        return _new(self.host, size)

    def device_memory(self, size: int) -> int:
        if sum(memory.size for memory in self.device.values()) + size > self.room:
            raise OutOfMemory(f"CUDA failure 2: out of memory ; expr=cudaMalloc ({size} bytes)")
        return _new(self.device, size)

    def to_device(self, target: int, source: int, size: int, stream: int) -> None:
        assert stream in self.streams
        self._inside(self.device, target, size)
        self._inside(self.host, source, size)
        self.calls.append("to_device")
        self.copied.append((source, size))
        ctypes.memmove(target, source, size)

    def to_host(self, target: int, source: int, size: int, stream: int) -> None:
        assert stream in self.streams
        self._inside(self.host, target, size)
        self._inside(self.device, source, size)
        self.calls.append("to_host")
        self._later.append((target, source, size, stream))

    def synchronize(self, stream: int) -> None:
        self.calls.append("synchronize")
        if code := self.status(stream):
            raise understood(CudaError("cudaStreamSynchronize", code, "broken"), code)

    def status(self, stream: int) -> int:
        for target, source, size, of_stream in self._later:
            if of_stream == stream:
                ctypes.memmove(target, source, size)
        self._later = [copy for copy in self._later if copy[3] != stream]
        return self.broken

    def end_capture(self, stream: int) -> None:
        self.captures_ended += 1

    def free_host(self, address: int) -> None:
        del self.host[address]

    def free_device(self, address: int) -> None:
        del self.device[address]

    def end_stream(self, stream: int) -> None:
        self.streams.remove(stream)

    def _inside(self, memory: Mapping[int, np.ndarray], address: int, size: int) -> None:
        assert any(at <= address and address + size <= at + array.size for at, array in memory.items()), (
            "the copy leaves the memory that was taken"
        )


class Watched:
    """An onnxruntime session whose bound runs are noted by their graph's id."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.graphs: list[str] = []
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        self.graphs.append(options.get_run_config_entry("gpu_graph_id"))
        if self.error:
            raise self.error
        self._session.run_with_iobinding(binding, options)


def rows_of(count: int, seed: int = 0) -> np.ndarray:
    """Rows of the linear model of repositories.py: FP32 [count, 4], others for another seed."""
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


def _new(memory: dict[int, np.ndarray], size: int) -> int:
    array = np.full(size, 0xA5, np.uint8)  # what was there before must not pass for an answer
    memory[array.ctypes.data] = array
    return array.ctypes.data
