"""What a GPU's errors mean: the texts are those of the libraries, from the places named."""

import ctypes

import pytest

from foldserve.service.backends.base import DeviceLost, OutOfMemory
from foldserve.service.backends.cuda.errors import LOST, understood
from foldserve.service.backends.cuda.runtime import CudaError

ORT = "Error in execution: Non-zero status code returned while running {} node. Name:'' Status Message: "
CALL = "CUDA failure {}: {} ; GPU=0 ; hostname=h ; file=f.cc ; line=1 ; expr={}; "

NO_ROOM = [
    # onnxruntime 1.31, core/framework/bfc_arena.cc: the arena up to gpu_mem_limit, or cudaMalloc beneath it
    ORT.format("Conv") + "Available memory of 2147483648 is smaller than requested bytes of 3221225472",
    ORT.format("Conv") + "Failed to allocate memory for requested buffer of size 3221225472",
    # onnxruntime, core/providers/cuda/cuda_call.cc: "%s failure %d: %s ; GPU=%d ; hostname=%s ; file=%s ; ..."
    CALL.format(2, "out of memory", "cudaMalloc((void**)&p, size)"),
    "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=h ; expr=cublasCreate(&cublas_handle_); ",
    "CUDNN failure 4004: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0 ; hostname=h ; expr=e; ",
    "CUFFT failure 2: CUFFT_ALLOC_FAILED ; GPU=0 ; hostname=h ; expr=cufftXtMakePlanMany(); ",
    # torch, c10/cuda/CUDACachingAllocator.cpp and CUDAException.h
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
]

LOST_TEXTS = [
    CALL.format(700, "an illegal memory access was encountered", "cudaStreamSynchronize(stream_)"),
    CALL.format(719, "unspecified launch failure", "cudaEventRecord(event_, s)"),
    CALL.format(214, "uncorrectable ECC error encountered", "cudaMemcpyAsync()"),
    CALL.format(999, "unknown error", "cudaSetDevice(device_id)"),
    # torch, c10/cuda/CUDAException.cpp: "CUDA error: " and cudaGetErrorString
    "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: an illegal memory access was encountered\nSearch for `cudaErrorIllegalAddress' in the reference",
]

NEITHER = [
    ORT.format("Gather")
    + "indices element out of data bounds, idx=99 must be within the inclusive range [-10,9]",
    CALL.format(1, "invalid argument", "cudaMemcpyAsync()"),
    CALL.format(900, "operation not permitted when stream is capturing", "cudaMalloc()"),
    CALL.format(209, "no kernel image is available for execution on the device", "cudaGetLastError()"),
    # Not the codes 2 and 700, though they begin or end with them.
    CALL.format(200, "device kernel image is invalid", "cudaMalloc()"),
    CALL.format(70, "x", "y"),
    "The model does not like 700 rows",
]


@pytest.mark.parametrize("text", NO_ROOM)
def test_texts_that_mean_no_room(text: str) -> None:
    found = understood(RuntimeError(text))
    assert isinstance(found, OutOfMemory)
    assert str(found) == text


@pytest.mark.parametrize("text", LOST_TEXTS)
def test_texts_that_mean_a_lost_device(text: str) -> None:
    assert isinstance(understood(RuntimeError(text)), DeviceLost)


@pytest.mark.parametrize("text", NEITHER)
def test_other_texts_stay_what_they_are(text: str) -> None:
    error = RuntimeError(text)
    assert understood(error) is error


@pytest.mark.parametrize("code", sorted(LOST))
@pytest.mark.parametrize(
    "text", ["CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED", NO_ROOM[0], "anything"]
)
def test_devices_own_status_decides_whatever_the_text_is(code: int, text: str) -> None:
    found = understood(RuntimeError(text), status=code)
    assert isinstance(found, DeviceLost)
    assert text in str(found)
    assert LOST[code] in str(found)


def test_status_that_is_not_sticky_leaves_the_text_to_decide() -> None:
    assert isinstance(understood(RuntimeError(NO_ROOM[0]), status=2), OutOfMemory)
    error = RuntimeError("bad row")
    assert understood(error, status=1) is error


def test_code_of_an_error_counts_where_its_text_has_none() -> None:
    error = RuntimeError("it broke")
    error.error_code = 719  # type: ignore[attr-defined] # as torch.AcceleratorError has it
    assert isinstance(understood(error), DeviceLost)
    assert isinstance(understood(CudaError("cudaHostAlloc", 2, "out of memory")), OutOfMemory)


def test_texts_of_lost_devices_are_the_runtimes_own() -> None:
    try:
        runtime = ctypes.CDLL("libcudart.so.13")
    except OSError as error:
        pytest.skip(f"there is no CUDA 13 runtime to ask; its texts need no GPU: {error}")
    runtime.cudaGetErrorString.restype = ctypes.c_char_p
    assert {code: runtime.cudaGetErrorString(code).decode() for code in LOST} == LOST


def test_what_was_understood_once_stays() -> None:
    error = OutOfMemory("no room")
    assert understood(error) is error
