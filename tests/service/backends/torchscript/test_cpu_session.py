"""TorchScript files in libtorch."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.backends import LoadError, SessionOptions, load_session
from foldserve.service.backends.torchscript import cuda_session
from foldserve.service.backends.torchscript.cuda_session import frozen, set_tf32
from foldserve.service.backends.torchscript.outputs import as_sequence
from tests.service.repositories import WEIGHT, save_scripted

ONE_THREAD = SessionOptions(threads=1)
X = TensorSpec("x", "FP32", (-1, 4))
Y = TensorSpec("y", "FP32", (-1, 3))
LINEAR = Signature((X,), (Y,))


class Pair(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a - b, a + b


class Named(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"z": x + 1, "y": x + 2}


def save(module: torch.nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(str(path))
    return path


def test_module_answers_as_eager(tmp_path: Path) -> None:
    session = load_session("torchscript", save_scripted(tmp_path), LINEAR, "cpu", ONE_THREAD)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(session.run({"x": x})["y"], x @ WEIGHT)


def test_read_only_rows_are_taken_and_stay_as_they_are(tmp_path: Path) -> None:
    session = load_session("torchscript", save_scripted(tmp_path), LINEAR, "cpu", ONE_THREAD)
    body = np.ones(4, np.float32).tobytes()
    session.run({"x": np.frombuffer(body, np.float32).reshape(1, 4)})
    assert body == np.ones(4, np.float32).tobytes()


def test_inputs_go_in_the_signatures_order_and_tuples_come_back_in_it(tmp_path: Path) -> None:
    a, b = (TensorSpec(name, "FP32", (-1,)) for name in "ab")
    signature = Signature((a, b), (TensorSpec("minus", "FP32", (-1,)), TensorSpec("plus", "FP32", (-1,))))
    session = load_session("torchscript", save(Pair(), tmp_path / "m.pt"), signature, "cpu", ONE_THREAD)
    outputs = session.run({"b": np.float32([1]), "a": np.float32([5])})
    assert {name: array.tolist() for name, array in outputs.items()} == {"minus": [4], "plus": [6]}


def test_dict_outputs_are_taken_by_name(tmp_path: Path) -> None:
    x, y, z = (TensorSpec(name, "FP32", (-1,)) for name in "xyz")
    session = load_session(
        "torchscript", save(Named(), tmp_path / "m.pt"), Signature((x,), (y, z)), "cpu", ONE_THREAD
    )
    outputs = session.run({"x": np.float32([1])})
    assert {name: array.tolist() for name, array in outputs.items()} == {"y": [3], "z": [2]}


def test_wrong_number_of_outputs_is_told(tmp_path: Path) -> None:
    signature = Signature((X,), (Y, TensorSpec("z", "FP32", (-1,))))
    session = load_session("torchscript", save_scripted(tmp_path), signature, "cpu", ONE_THREAD)
    with pytest.raises(ValueError, match="returned 1 tensors, the signature has 2 outputs"):
        session.run({"x": np.zeros((1, 4), np.float32)})


def test_file_that_is_no_torchscript_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"not a model")
    with pytest.raises(LoadError, match=r"model.pt is not a TorchScript file that torch can load"):
        load_session("torchscript", path, LINEAR, "cpu", ONE_THREAD)


def test_cuda_without_cuda_is_an_error_and_not_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LoadError, match="cannot use cuda:0: install a torch built for CUDA"):
        load_session("torchscript", save_scripted(tmp_path), LINEAR, "cuda:0", ONE_THREAD)


@pytest.mark.parametrize(
    "options",
    [
        SessionOptions(providers=(("CPUExecutionProvider", {}),)),
        SessionOptions(nhwc=True),
        SessionOptions(memory_limit_bytes=1),
    ],
)
def test_what_only_onnxruntime_has_is_refused(tmp_path: Path, options: SessionOptions) -> None:
    with pytest.raises(LoadError, match="is for the onnxruntime backend"):
        load_session("torchscript", save_scripted(tmp_path), LINEAR, "cpu", options)


def test_missing_output_is_told_by_name(tmp_path: Path) -> None:
    x, y, w = (TensorSpec(name, "FP32", (-1,)) for name in "xyw")
    session = load_session(
        "torchscript", save(Named(), tmp_path / "m.pt"), Signature((x,), (y, w)), "cpu", ONE_THREAD
    )
    with pytest.raises(ValueError, match="the module returned z, y; the signature names w too"):
        session.run({"x": np.float32([1])})


class Normed(torch.nn.Module):
    """A convolution and its norm, which freezing folds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.norm.running_mean.normal_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv(x)))


@pytest.fixture
def normed(tmp_path: Path) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(str(save(Normed().eval(), tmp_path / "m.pt"))).eval()


IMAGE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


@pytest.mark.parametrize("example", [[IMAGE], []])
def test_frozen_module_answers_alike_and_has_no_parameters_left(
    normed: torch.jit.ScriptModule, example: list[torch.Tensor]
) -> None:
    fast, notes = frozen(normed, example)
    assert notes == []
    assert list(fast.parameters()) == []
    torch.testing.assert_close(fast(IMAGE), normed(IMAGE))


def test_module_that_cannot_be_frozen_runs_as_it_is_and_says_why(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(str(save(Normed(), tmp_path / "m.pt")))  # in training mode
    same, (note,) = frozen(module, [IMAGE])
    assert same is module
    assert note.startswith("TorchScript is run as it is, not frozen, for torch cannot")


def test_optimising_that_moves_the_answers_is_left_out(
    normed: torch.jit.ScriptModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.jit, "optimize_for_inference", lambda module: lambda x: 1.1 * module(x))
    fast, (note,) = frozen(normed, [IMAGE])
    assert note == "TorchScript is run frozen and not optimised, which moved answers by 0.1"
    torch.testing.assert_close(fast(IMAGE), normed(IMAGE))


def test_optimising_that_makes_answers_nan_is_left_out(
    normed: torch.jit.ScriptModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch.jit, "optimize_for_inference", lambda module: lambda x: module(x) * float("nan")
    )
    _, (note,) = frozen(normed, [IMAGE])
    assert note == "TorchScript is run frozen and not optimised, which moved answers by nan"


def test_optimising_that_fails_leaves_the_frozen_module(
    normed: torch.jit.ScriptModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(module: torch.jit.ScriptModule) -> None:
        raise RuntimeError("cannot\nfuse")

    monkeypatch.setattr(torch.jit, "optimize_for_inference", fails)
    fast, notes = frozen(normed, [IMAGE])
    assert notes == [
        "TorchScript is run frozen and not optimised, for torch cannot do that to it; the server's log says why"
    ]
    assert list(fast.parameters()) == []


def test_tf32_is_off_unless_asked_for_and_one_setting_for_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_session, "_tf32", {})
    torch.backends.cudnn.allow_tf32 = True  # torch's default
    set_tf32(False)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    set_tf32(False)
    with pytest.raises(
        LoadError, match="`session: tf32` is true here and false for another TorchScript model"
    ):
        set_tf32(True)
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("output", [7, (torch.ones(1, 3), 7), [None], {"y": 1.5}])
def test_what_is_no_tensor_among_the_outputs_is_told(output: object) -> None:
    with pytest.raises(ValueError, match=r"expected tensors: have it return torch.tensor"):
        as_sequence(output, ("y",))
