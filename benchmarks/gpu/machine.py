"""Card, driver and versions, as a record. A program of its own, because it loads CUDA's libraries:

python -m benchmarks.gpu.machine [GPU-uuid]
"""

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.gpu.records import Machine, to_line
from benchmarks.serving.workloads import ROOT
from foldserve.service.backends.onnxruntime.library import onnxruntime
from foldserve.service.metrics.recorder import is_compiled


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the record."""
    uuid = (arguments if arguments is not None else sys.argv[1:] or [""])[0]
    device, driver = _card(uuid) if uuid else ("none", "none")
    print(
        to_line(
            Machine(
                date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
                commit=_commit(),
                foldserve=_foldserve(),
                device=device,
                driver=driver,
                cuda=str(onnxruntime.cuda_version) if uuid else "none",
                cudnn=_cudnn() if uuid else "none",
                onnxruntime=onnxruntime.__version__,
                torch=_torch(),
                python=platform.python_version(),
                processor=_processor(),
                cores=len(os.sched_getaffinity(0)),
            )
        )
    )


def _card(uuid: str) -> tuple[str, str]:
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    return _text(pynvml.nvmlDeviceGetName(handle)), _text(pynvml.nvmlSystemGetDriverVersion())


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _cudnn() -> str:
    """The version of the cuDNN that onnxruntime loads, such as 9.13.0."""
    onnxruntime.preload_dlls()
    try:
        number = int(ctypes.CDLL("libcudnn.so.9").cudnnGetVersion())
    except (OSError, AttributeError):
        return "unknown"
    return f"{number // 10_000}.{number % 10_000 // 100}.{number % 100}"


def _foldserve() -> str:
    return "compiled" if is_compiled() else "not compiled"


def _torch() -> str:
    try:
        import torch
    except ImportError:
        return "none"
    return str(torch.__version__)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


if __name__ == "__main__":
    main()
