"""The few calls of the CUDA runtime that a session needs: streams, memory, copies.

By ctypes, on the libcudart that onnxruntime itself has loaded: both must mean the same device and context.
ctypes lets go of the interpreter during each call.
"""

import ctypes
import functools
from typing import Final, Protocol

from foldserve.service.backends.base import LoadError
from foldserve.service.backends.cuda.errors import understood

_STREAM_NON_BLOCKING: Final = 1  # cudaStreamNonBlocking: not ordered after the legacy default stream
_HOST_PORTABLE: Final = 1  # cudaHostAllocPortable: pinned for every device
_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost


class CudaError(Exception):
    """A call failed. error_code: cudaError_t."""

    def __init__(self, call: str, code: int, text: str) -> None:
        super().__init__(f"CUDA failure {code}: {text} ; expr={call}")
        self.error_code = code


class Cuda(Protocol):
    """One device, as a session uses it. Addresses and streams are integers; sizes are bytes.

    Every call may raise OutOfMemory, DeviceLost or CudaError; status, end_capture, and what frees, none.
    """

    def use(self) -> None:
        """Make this device the calling thread's."""
        ...

    def new_stream(self) -> int:
        """A stream of its own, ordered with no other."""
        ...

    def host_memory(self, size: int) -> int:
        """Page-locked host memory, which copies need to run beside the host's work."""
        ...

    def device_memory(self, size: int) -> int:
        """Memory on the device."""
        ...

    def to_device(self, target: int, source: int, size: int, stream: int) -> None:
        """Begin a copy from page-locked memory to the device, after what the stream already holds."""
        ...

    def to_host(self, target: int, source: int, size: int, stream: int) -> None:
        """Begin a copy from the device to page-locked memory, after what the stream already holds."""
        ...

    def synchronize(self, stream: int) -> None:
        """Wait until all that the stream holds is done."""
        ...

    def status(self, stream: int) -> int:
        """Wait likewise, and return cudaError_t."""
        ...

    def end_capture(self, stream: int) -> None:
        """End a capture that a failed run has left open, which forbids others in this process to allocate."""
        ...

    def free_host(self, address: int) -> None:
        """Free what host_memory gave."""
        ...

    def free_device(self, address: int) -> None:
        """Free what device_memory gave."""
        ...

    def end_stream(self, stream: int) -> None:
        """Destroy what new_stream gave."""
        ...


class CudaRuntime:
    """Cuda by libcudart. See Cuda."""

    def __init__(self, number: int, library: ctypes.CDLL) -> None:
        self._number = number
        self._library = library
        library.cudaGetErrorString.restype = ctypes.c_char_p

    def use(self) -> None:
        """See Cuda."""
        self._call("cudaSetDevice", self._number)

    def new_stream(self) -> int:
        """See Cuda."""
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(stream), ctypes.c_uint(_STREAM_NON_BLOCKING))
        return stream.value or 0

    def host_memory(self, size: int) -> int:
        """See Cuda."""
        address = ctypes.c_void_p()
        self._call(
            "cudaHostAlloc", ctypes.byref(address), ctypes.c_size_t(size), ctypes.c_uint(_HOST_PORTABLE)
        )
        return address.value or 0

    def device_memory(self, size: int) -> int:
        """See Cuda."""
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value or 0

    def to_device(self, target: int, source: int, size: int, stream: int) -> None:
        """See Cuda."""
        self._copy(target, source, size, _TO_DEVICE, stream)

    def to_host(self, target: int, source: int, size: int, stream: int) -> None:
        """See Cuda."""
        self._copy(target, source, size, _TO_HOST, stream)

    def synchronize(self, stream: int) -> None:
        """See Cuda."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def status(self, stream: int) -> int:
        """See Cuda."""
        code = int(self._library.cudaStreamSynchronize(ctypes.c_void_p(stream)))
        self._library.cudaGetLastError()  # what is not sticky must not be taken for the next kernel's error
        return code

    def end_capture(self, stream: int) -> None:
        """See Cuda."""
        capturing = ctypes.c_int(0)  # cudaStreamCaptureStatusNone
        self._library.cudaStreamIsCapturing(ctypes.c_void_p(stream), ctypes.byref(capturing))
        if capturing.value:
            graph = ctypes.c_void_p()
            self._library.cudaStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(graph))
            if graph.value:
                self._library.cudaGraphDestroy(graph)
        self._library.cudaGetLastError()  # what the capture failed with is no later call's error

    def free_host(self, address: int) -> None:
        """See Cuda."""
        self._library.cudaFreeHost(ctypes.c_void_p(address))

    def free_device(self, address: int) -> None:
        """See Cuda."""
        self._library.cudaFree(ctypes.c_void_p(address))

    def end_stream(self, stream: int) -> None:
        """See Cuda."""
        self._library.cudaStreamDestroy(ctypes.c_void_p(stream))

    def _copy(self, target: int, source: int, size: int, direction: int, stream: int) -> None:
        self._call(
            "cudaMemcpyAsync",
            ctypes.c_void_p(target),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size),
            direction,
            ctypes.c_void_p(stream),
        )

    def _call(self, name: str, *arguments: object) -> None:
        code = int(getattr(self._library, name)(*arguments))
        if code:
            self._library.cudaGetLastError()  # an error that is not sticky is told once
            text = self._library.cudaGetErrorString(code) or b"unknown"
            error = CudaError(name, code, text.decode())
            raise understood(error, code) from error


@functools.cache
def open_runtime(number: int) -> CudaRuntime:
    """The CUDA runtime for a device, after the libraries of the wheels were found. Raises: LoadError."""
    from foldserve.service.backends.onnxruntime.library import onnxruntime as ort

    ort.preload_dlls()
    name = cudart_name(ort.cuda_version or "13")
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        raise LoadError(f"{name} cannot be loaded: pip install 'foldserve[cuda]'", error) from error
    return CudaRuntime(number, library)


def cudart_name(cuda_version: str) -> str:
    """The runtime library of a CUDA version such as "13.0"."""
    return f"libcudart.so.{cuda_version.partition('.')[0]}"
