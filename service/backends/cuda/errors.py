"""What an exception from a GPU means: no memory for this batch, a lost device, or neither.

ONNX Runtime, cuBLAS, cuDNN and torch say it in texts of their own, so texts are read; the device's own status
comes first, because after a broken kernel every library only says that its last call failed.
"""

import re
from typing import Final

from foldserve.service.backends.base import DeviceLost, InsufficientMemory, LoadError, OutOfMemory

OUT_OF_MEMORY: Final = 2
"""cudaErrorMemoryAllocation."""

LOST: Final[dict[int, str]] = {
    # cudaError_t, with the text of cudaGetErrorString (CUDA 13.0). Of these driver_types.h says that the process must
    # be ended and started again to use CUDA any more, ...
    226: "Invalid access of peer GPU memory over nvlink or a hardware error",
    700: "an illegal memory access was encountered",
    702: "the launch timed out and was terminated",
    710: "device-side assert triggered",
    714: "hardware stack error",
    715: "an illegal instruction was encountered",
    716: "misaligned address",
    717: "operation not supported on global/shared address space",
    718: "invalid program counter",
    719: "unspecified launch failure",
    721: "tensor memory not completely freed",
    810: "the MPS client has been terminated by the server",
    911: "an async error has occured in external entity outside of CUDA",
    # ... these are of the hardware, or leave no context to work in, ...
    214: "uncorrectable ECC error encountered",
    220: "uncorrectable NVLink error detected during the execution",
    709: "context is destroyed",
    # ... and these are what is left to see when a GPU has fallen off its bus.
    100: "no CUDA-capable device is detected",
    999: "unknown error",
}
"""Errors after which nothing runs on the device any more in this process."""

_NO_ROOM: Final = re.compile(
    # onnxruntime's arena (bfc_arena.cc): full up to gpu_mem_limit, or cudaMalloc failed beneath it.
    r"Available memory of \d+ is smaller than requested bytes of \d+"
    r"|Failed to allocate memory for requested buffer of size"
    # onnxruntime's CUDA calls (cuda_call.cc): "CUDA failure 2: out of memory ; GPU=0 ; ..."
    rf"|CUDA failure {OUT_OF_MEMORY}\b"
    # torch, the driver and cudaGetErrorString.
    r"|CUDA out of memory|CUDA error: out of memory|CUDA_ERROR_OUT_OF_MEMORY"
    # The libraries' own allocations.
    r"|CUBLAS_STATUS_ALLOC_FAILED|CUFFT_ALLOC_FAILED"
    r"|CUDNN_STATUS_ALLOC_FAILED|CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"
)
_CODE: Final = re.compile(r"CUDA failure (\d+)")
_LOST_TEXT: Final = re.compile(r"CUDA error: (" + "|".join(re.escape(text) for text in LOST.values()) + ")")


def understood(error: Exception, status: int = 0) -> Exception:
    """The error as its caller can act on it: OutOfMemory, DeviceLost, or itself.

    Args:
        error: what a run or a CUDA call raised.
        status: the CUDA runtime's status (cudaError_t) when it was asked after the error; 0 = no error.
    """
    if isinstance(error, OutOfMemory | DeviceLost):
        return error
    text = str(error)
    found = _CODE.search(text)
    code = status if status in LOST else int(found[1]) if found else getattr(error, "error_code", 0)
    if code in LOST or _LOST_TEXT.search(text):
        why = LOST.get(code, "")
        return DeviceLost(f"{text} (CUDA status {code}: {why})" if status in LOST else text)
    if code == OUT_OF_MEMORY or _NO_ROOM.search(text):
        return OutOfMemory(text)
    return error


def load_error(what: str, problem: str, error: Exception) -> Exception:
    """What to raise for an error while a file is loaded: DeviceLost, InsufficientMemory, or LoadError with the problem.

    Args:
        what: the file, and the device where that helps.
        problem: what else the error means.
    """
    found = understood(error)
    if isinstance(found, DeviceLost):
        return found
    if isinstance(found, OutOfMemory):
        return InsufficientMemory(
            f"{what}: the device does not have enough memory for the model; set fewer instances, a smaller "
            "max_batch_size or a larger session.memory_limit_bytes in config.yaml, or serve fewer models on the device",
            error,
        )
    return LoadError(f"{what} {problem}", error)
