"""What is missing when CUDA does not work, by a fake driver and fake libraries; onnxruntime is real but for its GPU."""

import ctypes
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import onnxruntime as ort
import pytest

from foldserve.service.backends.cuda import probe
from foldserve.service.backends.cuda.probe import libraries, try_cuda

WHOLE = UUID("11111111-2222-3333-4444-555555555555")
PART = UUID("aaaaaaaa-2222-3333-4444-555555555555")


class FakeDriver:
    """libcuda.so.1. version: as cuDriverGetVersion has it. mig: the numbers of GPUs that are parts of one."""

    def __init__(
        self, version: int = 13000, status: int = 0, count: int = 1, mig: tuple[int, ...] = ()
    ) -> None:
        self._version, self._status, self._count, self._mig = version, status, count, mig

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's names
        return self._status

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = self._version
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self._count
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:  # noqa: N802
        device._obj.value = number
        return 0

    def cuDeviceGetUuid(self, uuid: Any, device: Any) -> int:  # noqa: N802
        uuid._obj[:] = _numbered(WHOLE, device.value).bytes
        return 0

    def cuDeviceGetUuid_v2(self, uuid: Any, device: Any) -> int:  # noqa: N802
        uuid._obj[:] = _numbered(PART if device.value in self._mig else WHOLE, device.value).bytes
        return 0


def _numbered(uuid: UUID, number: int) -> UUID:
    return UUID(int=uuid.int + number)


def loader(driver: FakeDriver | None, absent: dict[str, str] | None = None) -> Callable[..., Any]:
    """Opens every library but those that are absent: their names -> the loader's text."""

    def load(name: str, mode: int = ctypes.DEFAULT_MODE) -> Any:
        if name == "libcuda.so.1":
            if driver is None:
                raise OSError("libcuda.so.1: cannot open shared object file: No such file or directory")
            return driver
        for part, text in (absent or {}).items():
            if name.endswith(part):
                raise OSError(text)
        return object()

    return load


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """onnxruntime as if it had a GPU: its first runs are on the CPU. Returns: the providers asked for."""
    asked: list[Any] = []
    real = ort.InferenceSession

    class Session:
        def __init__(self, model: bytes, providers: Any, **more: Any) -> None:
            assert more == {"enable_fallback": 0}
            asked.append(providers)
            self._session = real(model, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

        def run(self, names: Any, inputs: Any) -> Any:
            return self._session.run(names, inputs)

    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(
        ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(ort, "cuda_version", "13.0")
    return asked


@pytest.mark.usefixtures("on_cpu")
class TestMissing:
    def test_missing_driver_is_told(self) -> None:
        state = try_cuda(loader(None))
        assert state.devices == 0
        assert state.problem.startswith("there is no NVIDIA driver (libcuda.so.1: cannot open")

    @pytest.mark.parametrize(
        ("built", "version", "told"),
        [
            (
                "13.0",
                12040,
                "it runs CUDA up to 12.4, and this onnxruntime is built for CUDA 13.0; install a ",
            ),
            ("13.0", 11080, "CUDA up to 11.8"),
            ("12.8", 11080, "install a driver for CUDA 12 (525.60 or newer)"),
        ],
    )
    def test_driver_too_old_is_told_with_both_versions(
        self, monkeypatch: pytest.MonkeyPatch, built: str, version: int, told: str
    ) -> None:
        monkeypatch.setattr(ort, "cuda_version", built)
        state = try_cuda(loader(FakeDriver(version=version)))
        assert state.devices == 0
        assert state.problem.startswith("the NVIDIA driver is too old: ")
        assert told in state.problem

    def test_first_driver_that_will_do_is_named(self) -> None:
        state = try_cuda(loader(FakeDriver(version=12090)))
        assert state.problem.endswith("install a driver for CUDA 13 (580 or newer)")

    @pytest.mark.parametrize("version", [13000, 13020, 14000])
    def test_driver_of_the_same_major_version_or_a_newer_one_will_do(self, version: int) -> None:
        assert try_cuda(loader(FakeDriver(version=version))).problem == ""

    @pytest.mark.parametrize(
        ("status", "told"),
        [
            (34, "is the stub that programs are linked with"),
            (100, "the NVIDIA driver shows no GPU"),
            (802, "nvidia-fabricmanager"),
            (803, "library and its kernel module are of different versions"),
            (804, "cuda-compat"),
            (999, "nvidia_uvm"),
            (3, "the NVIDIA driver cannot be used"),
        ],
    )
    def test_driver_that_does_not_start_is_told_with_what_it_means(self, status: int, told: str) -> None:
        state = try_cuda(loader(FakeDriver(status=status)))
        assert state.devices == 0
        assert told in state.problem
        assert state.problem.endswith(f"(CUDA driver status {status})")

    def test_gpus_hidden_by_the_environment_are_told_with_its_value(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        for driver in (FakeDriver(count=0), FakeDriver(status=100)):
            assert "shows no GPU (CUDA_VISIBLE_DEVICES is '')" in try_cuda(loader(driver)).problem

    def test_onnxruntime_built_without_cuda_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
        assert "built without CUDA: pip uninstall onnxruntime" in try_cuda(loader(FakeDriver())).problem

    @pytest.mark.parametrize(
        ("name", "wheel"),
        [
            ("libcudart.so.13", "nvidia-cuda-runtime"),
            ("libcublasLt.so.13", "nvidia-cublas"),
            ("libcublas.so.13", "nvidia-cublas"),
            ("libcurand.so.10", "nvidia-curand"),
            ("libcufft.so.12", "nvidia-cufft"),
            ("libnvrtc.so.13", "nvidia-cuda-nvrtc"),
            ("libcudnn.so.9", "nvidia-cudnn-cu13"),
        ],
    )
    def test_missing_library_is_told_with_the_wheel_that_brings_it(self, name: str, wheel: str) -> None:
        absent = {name: f"{name}: cannot open shared object file: No such file or directory"}
        assert try_cuda(loader(FakeDriver(), absent)).problem == (
            f"onnxruntime's CUDA provider misses {name} (wheel {wheel}): pip install 'foldserve[cuda]'"
        )

    def test_several_missing_libraries_are_told_at_once(self) -> None:
        gone = {
            name: f"{name}: cannot open shared object file" for name in ("libcudnn.so.9", "libcudart.so.13")
        }
        problem = try_cuda(loader(FakeDriver(), gone)).problem
        assert (
            "libcudart.so.13 (wheel nvidia-cuda-runtime), libcudnn.so.9 (wheel nvidia-cudnn-cu13)" in problem
        )

    def test_library_that_only_another_one_misses_is_the_one_told(self) -> None:
        absent = {"libcufft.so.12": "libnvJitLink.so.13: cannot open shared object file: No such file"}
        problem = try_cuda(loader(FakeDriver(), absent)).problem
        assert "misses libnvJitLink.so.13 (wheel nvidia-nvjitlink): pip" in problem

    def test_broken_library_is_told_with_the_loaders_text(self) -> None:
        absent = {"libcudnn.so.9": "/x/libcudnn.so.9: file too short"}
        problem = try_cuda(loader(FakeDriver(), absent)).problem
        assert "libcudnn.so.9 (wheel nvidia-cudnn-cu13: /x/libcudnn.so.9: file too short)" in problem

    def test_provider_that_does_not_load_is_told_with_the_loaders_text(self) -> None:
        absent = {"libonnxruntime_providers_cuda.so": "undefined symbol: cublasLtCreate"}
        problem = try_cuda(loader(FakeDriver(), absent)).problem
        assert problem == (
            "onnxruntime's libonnxruntime_providers_cuda.so cannot be loaded (undefined symbol: cublasLtCreate)"
        )

    def test_provider_that_falls_back_to_the_cpu_is_no_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda _: ["CPUExecutionProvider"])
        state = try_cuda(loader(FakeDriver()))
        assert state.broken == {
            0: "onnxruntime fell back to the CPU although the CUDA provider's libraries load"
        }


def test_every_gpu_is_tried_by_itself(monkeypatch: pytest.MonkeyPatch, on_cpu: list[Any]) -> None:
    run = ort.InferenceSession.run

    def fails_on_the_second(self: Any, names: Any, inputs: Any) -> Any:
        if len(on_cpu) == 2:
            raise RuntimeError("CUDA failure 209: no kernel image is available\nfor execution on the device")
        return run(self, names, inputs)

    monkeypatch.setattr(ort.InferenceSession, "run", fails_on_the_second)
    state = try_cuda(loader(FakeDriver(count=3)))
    assert [providers[0][1]["device_id"] for providers in on_cpu] == ["0", "1", "2"]
    assert (state.devices, state.problem) == (3, "")
    assert state.broken == {
        1: "a first run on the GPU failed: CUDA failure 209: no kernel image is available for execution on the device"
    }


def test_gpu_that_computes_wrongly_is_told(monkeypatch: pytest.MonkeyPatch, on_cpu: list[Any]) -> None:
    monkeypatch.setattr(ort.InferenceSession, "run", lambda *_: [np.full((1, 1, 1, 1), 17.0, np.float32)])
    (text,) = try_cuda(loader(FakeDriver())).broken.values()
    assert text == "a first run on the GPU gave 17.0; expected 18.0: is the GPU in order?"


@pytest.mark.usefixtures("on_cpu")
def test_gpus_are_named_as_nvml_names_them_parts_of_one_too() -> None:
    state = try_cuda(loader(FakeDriver(count=2, mig=(1,))))
    assert state.uuids == (f"GPU-{WHOLE}", f"MIG-{_numbered(PART, 1)}")


def test_model_of_the_first_run_has_a_convolution_and_a_matrix_product() -> None:
    import onnx

    model = onnx.load_from_string(probe._MODEL)
    assert [node.op_type for node in model.graph.node] == ["Conv", "MatMul"]


def test_wheels_of_cuda_12_have_its_number_in_their_names() -> None:
    assert libraries(12)["libcudart.so.12"] == "nvidia-cuda-runtime-cu12"
    assert libraries(12)["libcufft.so.11"] == "nvidia-cufft-cu12"
    assert libraries(13)["libcufft.so.12"] == "nvidia-cufft"


def test_extra_cuda_names_every_library_that_the_provider_links_to() -> None:
    """All but nvidia-nvjitlink, which cuFFT's wheel brings for itself."""
    extra = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]["cuda"]
    named = {requirement.partition("~=")[0] for requirement in extra}
    assert set(libraries(13).values()) - named == {"nvidia-nvjitlink"}
