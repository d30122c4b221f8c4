"""Whether CUDA works here, and if not, what is missing: the steps that onnxruntime takes, one by one.

    driver -> its version -> GPUs -> onnxruntime's build -> libraries -> a first run on each GPU

A program of its own (`python -m foldserve.service.backends.cuda.probe`), whose last line is the answer: the process
that asks forks later, and a CUDA context must not be alive in it then.
"""

import base64
import ctypes
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

# An ONNX model (opset 13): y = 2 * the sum of x, over FP32 x [1, 1, 3, 3], by a convolution (cuDNN) and a matrix
# product (cuBLAS). Made with onnx.helper.
_MODEL: Final = base64.b64decode(
    "CAcSADqrAQoPCgF4CgF3EgFjIgRDb252ChEKAWMKAW0SAXkiBk1hdE11bBIFcHJvYmUqMwgBCAEIAwgDEAFCAXdKJAAAgD8AAIA/AACAPwAA"
    "gD8AAIA/AACAPwAAgD8AAIA/AACAPyoPCAEIARABQgFtSgQAAABAWhsKAXgSFgoUCAESEAoCCAEKAggBCgIIAwoCCANiGwoBeRIWChQIARIQ"
    "CgIIAQoCCAEKAggBCgIIAUIECgAQDQ=="
)
_MODEL_GIVES: Final = 18.0
"""For ones."""

_PROVIDER: Final = "CUDAExecutionProvider"

_INIT_ERRORS: Final[dict[int, str]] = {
    # CUresult of cuInit: what it means for an operator
    34: "libcuda.so.1 is the stub that programs are linked with, not a driver: take it out of the library path",
    100: "the NVIDIA driver shows no GPU",
    802: "the GPUs are not ready yet: is nvidia-fabricmanager running?",
    803: "the driver's library and its kernel module are of different versions: restart the machine, or the container "
    "with the host's driver",
    804: "the cuda-compat package does not support this GPU: remove it, or install a newer driver",
    999: "the driver cannot start: is the kernel module nvidia_uvm loaded, and /dev/nvidia-uvm visible here?",
}
_DRIVERS: Final[dict[int, str]] = {12: "525.60", 13: "580"}
"""CUDA major version -> the first NVIDIA driver (Linux) that runs all its minor versions."""


@dataclass(frozen=True)
class CudaState:
    """What onnxruntime can use.

    devices: how many GPUs CUDA shows. problem: what keeps every one of them from being used; "" when nothing does.
    uuids: of each, as NVML names it. broken: number -> what keeps that one from being used.
    """

    devices: int
    problem: str = ""
    uuids: tuple[str, ...] = ()
    broken: Mapping[int, str] = field(default_factory=dict)


class _Problem(Exception):
    """Why nothing runs on CUDA here."""


def try_cuda(load: Callable[..., Any] = ctypes.CDLL) -> CudaState:
    """Try CUDA in this process. load: opens a shared library, or raises OSError."""
    try:
        driver = _driver(load)
        from foldserve.service.backends.onnxruntime.library import onnxruntime as ort

        if _PROVIDER not in ort.get_available_providers():
            raise _Problem(
                "this onnxruntime is built without CUDA: pip uninstall onnxruntime, pip install onnxruntime-gpu"
            )
        cuda = str(ort.cuda_version or "13.0")
        _check_driver_version(driver, cuda)
        uuids = _gpus(driver)
        ort.preload_dlls()  # finds the libraries of the foldserve[cuda] wheels
        _check_libraries(load, int(cuda.partition(".")[0]))
        _check_provider(load, Path(ort.__file__).parent / "capi")
    except _Problem as problem:
        return CudaState(0, str(problem))
    failures = {number: _first_run(ort, number) for number in range(len(uuids))}
    return CudaState(
        len(uuids), uuids=uuids, broken={number: text for number, text in failures.items() if text}
    )


def _driver(load: Callable[..., Any]) -> Any:
    try:
        return load("libcuda.so.1")
    except OSError as error:
        raise _Problem(
            f"there is no NVIDIA driver ({error}): install it, or start the container with access to the GPUs "
            "(docker run --gpus all)"
        ) from error


def _check_driver_version(driver: Any, cuda: str) -> None:
    version = ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))  # 1000 * major + 10 * minor; works before cuInit
    major = int(cuda.partition(".")[0])
    if version.value // 1000 < major:
        there = f"{version.value // 1000}.{version.value % 1000 // 10}"
        newer = f" ({_DRIVERS[major]} or newer)" if major in _DRIVERS else ""
        raise _Problem(
            f"the NVIDIA driver is too old: it runs CUDA up to {there}, and this onnxruntime is built for CUDA {cuda}; "
            f"install a driver for CUDA {major}{newer}"
        )


def _gpus(driver: Any) -> tuple[str, ...]:
    """The UUIDs of all GPUs that CUDA shows."""
    count = ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    because = "" if hidden is None else f" (CUDA_VISIBLE_DEVICES is {hidden!r})"
    if status:
        why = _INIT_ERRORS.get(status, "the NVIDIA driver cannot be used")
        raise _Problem(f"{why}{because if status == 100 else ''} (CUDA driver status {status})")
    if not count.value:
        raise _Problem(f"{_INIT_ERRORS[100]}{because}")
    return tuple(_uuid(driver, number) for number in range(count.value))


def _uuid(driver: Any, number: int) -> str:
    """As NVML names the GPU, or the part of one that MIG makes."""
    device = ctypes.c_int(0)
    whole, own = (ctypes.c_ubyte * 16)(), (ctypes.c_ubyte * 16)()
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetUuid(ctypes.byref(whole), device)
    driver.cuDeviceGetUuid_v2(ctypes.byref(own), device)  # of the MIG part, where there is one
    kind = "GPU" if bytes(whole) == bytes(own) else "MIG"
    return f"{kind}-{UUID(bytes=bytes(own))}"


def libraries(major: int) -> dict[str, str]:
    """The shared libraries that onnxruntime's provider needs, CUDA `major`, and the wheel that brings each.

    Some of them (cuDNN, cuFFT) it opens only when a model first needs them: too late to report it.
    """
    suffix = "" if major >= 13 else f"-cu{major}"
    return {
        f"libcudart.so.{major}": f"nvidia-cuda-runtime{suffix}",
        f"libcublasLt.so.{major}": f"nvidia-cublas{suffix}",
        f"libcublas.so.{major}": f"nvidia-cublas{suffix}",
        "libcurand.so.10": f"nvidia-curand{suffix}",
        f"libcufft.so.{major - 1}": f"nvidia-cufft{suffix}",
        f"libnvrtc.so.{major}": f"nvidia-cuda-nvrtc{suffix}",
        "libcudnn.so.9": f"nvidia-cudnn-cu{major}",
        f"libnvJitLink.so.{major}": f"nvidia-nvjitlink{suffix}",
    }


def _check_libraries(load: Callable[..., Any], major: int) -> None:
    wheels = libraries(major)
    missing: dict[str, str] = {}
    for name, wheel in wheels.items():
        try:
            load(name)
        except OSError as error:
            # A library may be there and miss another one: the loader's text begins with the one that is not there.
            found = re.match(r"(lib\w+\.so[.\d]*): cannot open", str(error))
            absent = found[1] if found else name
            missing[absent] = f"wheel {wheels.get(absent, wheel)}" if found else f"wheel {wheel}: {error}"
    if missing:
        told = ", ".join(f"{name} ({why})" for name, why in missing.items())
        raise _Problem(f"onnxruntime's CUDA provider misses {told}: pip install 'foldserve[cuda]'")


def _check_provider(load: Callable[..., Any], folder: Path) -> None:
    # As onnxruntime itself does it: the provider finds what it needs of the first library among the global names.
    for name, mode in (
        ("libonnxruntime_providers_shared.so", ctypes.RTLD_GLOBAL),
        ("libonnxruntime_providers_cuda.so", ctypes.RTLD_LOCAL),
    ):
        try:
            load(str(folder / name), mode=mode)
        except OSError as error:
            raise _Problem(f"onnxruntime's {name} cannot be loaded ({error})") from error


def _first_run(ort: Any, number: int) -> str:
    """What is wrong with a first run on GPU `number`; "" when nothing is."""
    import numpy as np

    providers = [(_PROVIDER, {"device_id": str(number), "cudnn_conv_algo_search": "HEURISTIC"})]
    try:
        session = ort.InferenceSession(_MODEL, providers=providers, enable_fallback=0)
        if _PROVIDER not in session.get_providers():
            return "onnxruntime fell back to the CPU although the CUDA provider's libraries load"
        (found,) = session.run(None, {"x": np.ones((1, 1, 3, 3), np.float32)})
    except Exception as error:  # onnxruntime's own exceptions share no base but this one
        return f"a first run on the GPU failed: {' '.join(str(error).split())[:500]}"
    if found.item() != _MODEL_GIVES:
        return f"a first run on the GPU gave {found.item()}; expected {_MODEL_GIVES}: is the GPU in order?"
    return ""


if __name__ == "__main__":
    print(json.dumps(asdict(try_cuda())))
