"""The table of backends, the choice of devices, the count of cores."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import pytest

from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.backends import BACKENDS, LoadError, SessionOptions, load_session
from foldserve.service.backends.base import usable_cores
from foldserve.service.backends.cuda.probe import CudaState
from foldserve.service.backends.devices import Devices, choose_devices, cuda_state
from foldserve.service.errors import ConfigError
from foldserve.service.host.cgroups import Limits

X = TensorSpec("x", "FP32", (-1,))
NO_CUDA = CudaState(0, "libcublasLt.so.13: cannot open shared object file")


def test_missing_package_is_told_with_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, BACKENDS["torchscript"].module, raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        LoadError, match="backend torchscript needs the package torch, which is not installed"
    ):
        load_session("torchscript", tmp_path, Signature((X,), (X,)), "cpu", SessionOptions())


def test_server_of_onnx_files_loads_neither_torch_nor_the_networks() -> None:
    program = (
        "import sys, foldserve.service.server.main, foldserve.service.backends.onnxruntime.cpu_session\n"
        "print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(loaded.stdout.split()) & {"torch", "foldserve.models", "onnx"}


def test_auto_takes_every_gpu_that_works() -> None:
    assert choose_devices("auto", lambda: CudaState(2)).names == ("cuda:0", "cuda:1")


def test_auto_falls_to_the_cpu_and_says_why_in_one_line() -> None:
    devices = choose_devices("auto", lambda: NO_CUDA, has_gpu=lambda: True)
    assert devices.names == ("cpu",)
    assert (
        devices.note
        == "cpu, because CUDA does not work here: libcublasLt.so.13: cannot open shared object file"
    )


def test_auto_asks_for_nothing_to_be_installed_where_there_is_no_gpu() -> None:
    devices = choose_devices("auto", lambda: NO_CUDA, has_gpu=lambda: False)
    assert devices == Devices(("cpu",), "cpu, for there is no NVIDIA GPU")


def test_cpu_does_not_look_for_cuda() -> None:
    def look() -> CudaState:
        raise AssertionError("looked")

    assert choose_devices("cpu", look).names == ("cpu",)


@pytest.mark.parametrize("wanted", ["cuda", "cuda:0"])
def test_cuda_that_does_not_work_is_an_error_that_names_the_library(wanted: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be used: libcublasLt.so.13.*or use --device cpu"):
        choose_devices(wanted, lambda: NO_CUDA)


@pytest.mark.parametrize(
    ("wanted", "names"),
    [("cuda", ("cuda:0", "cuda:1", "cuda:2")), ("cuda:2,0", ("cuda:2", "cuda:0")), ("cuda:1,1", ("cuda:1",))],
)
def test_gpus_are_taken_as_named(wanted: str, names: tuple[str, ...]) -> None:
    assert choose_devices(wanted, lambda: CudaState(3)).names == names


def test_gpu_that_is_not_there_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="there is no GPU 3, 7; expected numbers from 0 to 1"):
        choose_devices("cuda:0,3,7", lambda: CudaState(2))


def test_only_gpu_is_named_when_another_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="there is no GPU 1; expected only cuda:0"):
        choose_devices("cuda:1", lambda: CudaState(1))


PARTLY = CudaState(3, uuids=("GPU-a", "GPU-b", "GPU-c"), broken={1: "a first run on the GPU failed: so"})


def test_devices_carry_the_uuids_by_which_nvml_knows_them() -> None:
    assert choose_devices("cuda:2,0", lambda: PARTLY).uuids == {"cuda:2": "GPU-c", "cuda:0": "GPU-a"}
    assert choose_devices("cpu").uuids == {}


def test_auto_leaves_out_a_gpu_that_does_not_work_and_says_so() -> None:
    devices = choose_devices("auto", lambda: PARTLY)
    assert devices.names == ("cuda:0", "cuda:2")
    assert devices.uuids == {"cuda:0": "GPU-a", "cuda:2": "GPU-c"}
    assert devices.note == "cuda, 2 GPU(s) found; left out: cuda:1: a first run on the GPU failed: so"


@pytest.mark.parametrize("wanted", ["cuda", "cuda:0,1"])
def test_gpu_that_is_asked_for_and_does_not_work_is_an_error(wanted: str) -> None:
    with pytest.raises(ConfigError, match="cuda:1: a first run on the GPU failed: so; fix that, name other"):
        choose_devices(wanted, lambda: PARTLY)


def test_gpu_that_works_is_served_on_beside_one_that_does_not() -> None:
    assert choose_devices("cuda:0", lambda: PARTLY).names == ("cuda:0",)


def test_auto_goes_to_the_cpu_when_no_gpu_works() -> None:
    devices = choose_devices("auto", lambda: CudaState(1, broken={0: "a first run on the GPU failed: so"}))
    assert devices.names == ("cpu",)
    assert devices.note.endswith("cuda:0: a first run on the GPU failed: so")


def test_answer_of_the_trying_process_is_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        answer = json.dumps(asdict(PARTLY))
        return subprocess.CompletedProcess([], 0, f"Failed to load libx.so\n{answer}\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert cuda_state() == PARTLY


def test_trying_process_that_crashes_is_told_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], -11, "", "Segmentation fault")
    )
    assert cuda_state() == CudaState(0, "trying CUDA ended with exit code -11: Segmentation fault")


def test_trying_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("python", 120)

    monkeypatch.setattr(subprocess, "run", hangs)
    assert cuda_state() == CudaState(0, "trying CUDA took longer than 120 s")


@pytest.mark.parametrize("wanted", ["gpu", "cuda:", "cuda:a", "cpu:0", ""])
def test_unknown_device_is_refused(wanted: str) -> None:
    with pytest.raises(ConfigError, match="is unknown; expected auto, cpu, cuda"):
        choose_devices(wanted, lambda: CudaState(1))


def test_trying_cuda_gives_devices_or_the_reason_why_not() -> None:
    state = cuda_state()
    assert (state.devices > 0) != bool(state.problem)


@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (2.5, 2), (0.1, 1), (64.0, 8)])
def test_cores_are_counted_within_the_cpu_mask_and_the_containers_quota(
    quota: float | None, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("foldserve.service.backends.base.read_limits", lambda: Limits(quota, None))
    assert usable_cores() == cores


def test_path_goes_to_native_code_in_utf8_whatever_the_locale() -> None:
    code = """
import os, sys
from pathlib import Path
from foldserve.service.backends.base import LoadError, native_path
os.mkdir(b"mod\\xc3\\xa8le"); os.mkdir(b"mod\\xe8le")
for path in sorted(Path(".").iterdir(), key=os.fsencode):
    try:
        print(ascii(native_path(path)))
    except LoadError as error:
        print(error)
"""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-X", "utf8=0", "-c", code],
            cwd=folder,
            env={
                **os.environ,
                "LC_ALL": "POSIX",
                "PYTHONUTF8": "0",
                "PYTHONPATH": str(Path(__file__).parents[3]),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "'mod\\xe8le'",
        "b'mod\\xe8le' is not a path in UTF-8, which the runtime needs; rename the folder",
    ]
