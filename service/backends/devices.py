"""Which devices to serve on, from `--device auto|cpu|cuda|cuda:0,1`.

CUDA counts only when onnxruntime really runs a graph on it. That is tried in a process of its own
(`python -m service.backends.devices`): the asking process forks later, and a CUDA context must not be alive
in it then.
"""

import base64
import ctypes
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from service.errors import ConfigError

_PROBE_LIMIT_S = 120.0
# An ONNX model of one node, y = x + x over FP32 [1] (opset 13), made with onnx.helper.
_PROBE_MODEL = base64.b64decode(
    "CAgSADo5Cg4KAXgKAXgSAXkiA0FkZBIFcHJvYmVaDwoBeBIKCggIARIECgIIAWIPCgF5EgoKCAgBEgQKAggBQgQKABAN"
)


@dataclass(frozen=True)
class CudaState:
    """How many GPUs onnxruntime can use, or what keeps it from using any ("" when nothing does)."""

    devices: int
    problem: str = ""


@dataclass(frozen=True)
class Devices:
    """The devices to serve on, and one line for the log that says why these.

    uuids: "cuda:0" -> "GPU-..." for each GPU among the names: NVML counts all GPUs of the machine, CUDA those of
        CUDA_VISIBLE_DEVICES.
    """

    names: tuple[str, ...]
    note: str
    uuids: Mapping[str, str] = field(default_factory=dict)


def choose_devices(wanted: str, look: Callable[[], CudaState] | None = None) -> Devices:
    """Return the devices for a `--device` value.

    Args:
        wanted: auto, cpu, cuda (every GPU), or cuda:N,M,...
        look: how the state of CUDA is found; by default a process tries it.
    Raises: ConfigError for any other value, and when CUDA is asked for and does not work: there is no silent
        fall-back to the CPU.
    """
    look = look or cuda_state
    if wanted == "cpu":
        return Devices(("cpu",), "cpu, as asked")
    if wanted == "auto":
        state = look()
        if state.devices:
            return Devices(_cuda_names(range(state.devices)), f"cuda, {state.devices} GPU(s) found")
        return Devices(("cpu",), f"cpu, because CUDA does not work here: {state.problem}")
    match = re.fullmatch(r"cuda(?::(\d+(?:,\d+)*))?", wanted)
    if match is None:
        raise ConfigError(
            f"device {wanted!r} is unknown; expected auto, cpu, cuda, or cuda:0,1 (GPU numbers)"
        )
    state = look()
    if not state.devices:
        raise ConfigError(
            f"device {wanted!r} cannot be used: {state.problem}; mend that, or use --device cpu"
        )
    if match[1] is None:
        return Devices(_cuda_names(range(state.devices)), f"cuda, {state.devices} GPU(s)")
    numbers = list(dict.fromkeys(int(word) for word in match[1].split(",")))
    absent = [number for number in numbers if number >= state.devices]
    if absent:
        raise ConfigError(
            f"device {wanted!r}: there is no GPU {', '.join(map(str, absent))}; "
            f"expected numbers from 0 to {state.devices - 1}"
        )
    return Devices(_cuda_names(numbers), "cuda, as asked")


def cuda_state() -> CudaState:
    """Try CUDA in a process of its own and tell what it found."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "service.backends.devices"],
            capture_output=True,
            text=True,
            timeout=_PROBE_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return CudaState(0, f"trying CUDA took longer than {_PROBE_LIMIT_S:.0f} s")
    try:
        # Libraries may print to stdout too: the answer is the last line.
        found = json.loads(done.stdout.splitlines()[-1])
        return CudaState(int(found["devices"]), str(found["problem"]))
    except (IndexError, ValueError, KeyError, TypeError):
        return CudaState(
            0, f"trying CUDA ended with exit code {done.returncode}: {done.stderr.strip()[-300:]}"
        )


def try_cuda() -> CudaState:
    """Try CUDA in this process: driver, GPUs, onnxruntime's provider library, and one run."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return CudaState(0, f"there is no NVIDIA driver ({error})")
    count = ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status or not count.value:
        return CudaState(0, f"the NVIDIA driver shows no GPU (CUDA driver status {status})")
    import onnxruntime as ort

    provider = "CUDAExecutionProvider"
    if provider not in ort.get_available_providers():
        return CudaState(0, "this onnxruntime is built without CUDA; install onnxruntime-gpu")
    ort.preload_dlls()  # finds the libraries of the foldserve[cuda] wheels
    folder = Path(ort.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        return CudaState(
            0, f"onnxruntime's CUDA provider misses a library ({error}); install foldserve[cuda]"
        )
    try:
        session = ort.InferenceSession(_PROBE_MODEL, providers=[provider])
        if provider not in session.get_providers():
            return CudaState(
                0, "onnxruntime fell back to the CPU although the CUDA provider's libraries load"
            )
        import numpy as np

        session.run(None, {"x": np.ones(1, np.float32)})
    except Exception as error:  # onnxruntime's own exceptions share no base but this one
        return CudaState(0, f"a first run on the GPU failed: {error}")
    return CudaState(count.value)


def _cuda_names(numbers: range | list[int]) -> tuple[str, ...]:
    return tuple(f"cuda:{number}" for number in numbers)


if __name__ == "__main__":
    state = try_cuda()
    print(json.dumps({"devices": state.devices, "problem": state.problem}))
