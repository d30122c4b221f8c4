"""Which devices to serve on, from `--device auto|cpu|cuda|cuda:0,1`.

CUDA counts only when onnxruntime really runs a graph on it (cuda/probe.py). That is tried in a process of its own: the
asking process forks later, and a CUDA context must not be alive in it then.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from foldserve.service.backends.cuda.probe import CudaState
from foldserve.service.errors import ConfigError
from foldserve.service.host.gpus import has_nvidia_gpu

_PROBE_LIMIT_S = 120.0


@dataclass(frozen=True)
class Devices:
    """The devices to serve on, and one line for the log that says why these.

    uuids: "cuda:0" -> "GPU-..." for each GPU among the names: NVML counts all GPUs of the machine, CUDA those of
        CUDA_VISIBLE_DEVICES.
    """

    names: tuple[str, ...]
    note: str
    uuids: Mapping[str, str] = field(default_factory=dict)


def choose_devices(
    wanted: str,
    look: Callable[[], CudaState] | None = None,
    has_gpu: Callable[[], bool] = has_nvidia_gpu,
) -> Devices:
    """Return the devices for a `--device` value.

    Args:
        wanted: auto, cpu, cuda (every GPU), or cuda:N,M,...
        look: how the state of CUDA is found; by default a process tries it.
        has_gpu: whether there is one at all, for which CUDA could be made to work.
    Raises: ConfigError for any other value, and when CUDA is asked for and does not work: there is no silent
        fall-back to the CPU.
    """
    look = look or cuda_state
    if wanted == "cpu":
        return Devices(("cpu",), "cpu, as asked")
    if wanted == "auto":
        return _automatic(look(), has_gpu)
    match = re.fullmatch(r"cuda(?::(\d+(?:,\d+)*))?", wanted)
    if match is None:
        raise ConfigError(
            f"device {wanted!r} is unknown; expected auto, cpu, cuda, or cuda:0,1 (GPU numbers)"
        )
    state = look()
    if not state.devices:
        raise ConfigError(f"device {wanted!r} cannot be used: {state.problem}; fix that, or use --device cpu")
    if match[1] is None:
        numbers: Sequence[int] = range(state.devices)
    else:
        numbers = list(dict.fromkeys(int(word) for word in match[1].split(",")))
    absent = [number for number in numbers if number >= state.devices]
    if absent:
        there = "only cuda:0" if state.devices == 1 else f"numbers from 0 to {state.devices - 1}"
        raise ConfigError(
            f"device {wanted!r}: there is no GPU {', '.join(map(str, absent))}; expected {there}"
        )
    broken = [f"cuda:{number}: {state.broken[number]}" for number in numbers if number in state.broken]
    if broken:
        raise ConfigError(
            f"device {wanted!r} cannot be used: {'; '.join(broken)}; fix that, name other GPUs, or use --device cpu"
        )
    return _cuda(state, numbers, "cuda, as asked")


def cuda_state() -> CudaState:
    """Try CUDA in a process of its own and tell what it found."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "foldserve.service.backends.cuda.probe"],
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
        return CudaState(
            int(found["devices"]),
            str(found["problem"]),
            tuple(map(str, found["uuids"])),
            {int(number): str(text) for number, text in found["broken"].items()},
        )
    except (IndexError, ValueError, KeyError, TypeError, AttributeError):
        return CudaState(
            0, f"trying CUDA ended with exit code {done.returncode}: {done.stderr.strip()[-300:]}"
        )


def _automatic(state: CudaState, has_gpu: Callable[[], bool]) -> Devices:
    """Every GPU that works, else the CPU."""
    working = [number for number in range(state.devices) if number not in state.broken]
    broken = [f"cuda:{number}: {text}" for number, text in sorted(state.broken.items())]
    if not working and not broken and not has_gpu():
        return Devices(("cpu",), "cpu, for there is no NVIDIA GPU")
    if not working:
        why = "; ".join(broken) or state.problem
        return Devices(("cpu",), f"cpu, because CUDA does not work here: {why}")
    note = f"cuda, {len(working)} GPU(s) found"
    if broken:
        note += f"; left out: {'; '.join(broken)}"
    return _cuda(state, working, note)


def _cuda(state: CudaState, numbers: Sequence[int], note: str) -> Devices:
    names = tuple(f"cuda:{number}" for number in numbers)
    uuids = {f"cuda:{number}": state.uuids[number] for number in numbers if number < len(state.uuids)}
    return Devices(names, note, uuids)
