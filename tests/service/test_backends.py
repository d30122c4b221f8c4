"""The table of backends, the choice of devices, the count of cores."""

import subprocess
import sys
from pathlib import Path

import pytest

from service.backends import BACKENDS, LoadError, SessionOptions, load_session
from service.backends.base import usable_cores
from service.backends.devices import CudaState, choose_devices, cuda_state
from service.errors import ConfigError
from service.signature import Signature, TensorSpec

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
    program = "import sys, service.serve, service.backends.onnxruntime_backend; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = {name.partition(".")[0] for name in loaded.stdout.split()}
    assert not modules & {"torch", "models", "onnx"}


def test_auto_takes_every_gpu_that_works() -> None:
    assert choose_devices("auto", lambda: CudaState(2)).names == ("cuda:0", "cuda:1")


def test_auto_falls_to_the_cpu_and_says_why_in_one_line() -> None:
    devices = choose_devices("auto", lambda: NO_CUDA)
    assert devices.names == ("cpu",)
    assert (
        devices.note
        == "cpu, because CUDA does not work here: libcublasLt.so.13: cannot open shared object file"
    )


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


@pytest.mark.parametrize("wanted", ["gpu", "cuda:", "cuda:a", "cpu:0", ""])
def test_unknown_device_is_refused(wanted: str) -> None:
    with pytest.raises(ConfigError, match="is unknown; expected auto, cpu, cuda"):
        choose_devices(wanted, lambda: CudaState(1))


def test_trying_cuda_gives_devices_or_the_reason_why_not() -> None:
    state = cuda_state()
    assert (state.devices > 0) != bool(state.problem)


def test_cores_are_counted_within_the_containers_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    for quota, cores in (("max 100000", 8), ("250000 100000", 2), ("10000 100000", 1), ("nonsense", 8)):
        monkeypatch.setattr(Path, "read_text", lambda _, quota=quota: quota)
        assert usable_cores() == cores
