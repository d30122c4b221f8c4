"""Modules that work in place on what they are given: whoever gave it finds it as it was."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foldserve.service.artifact.signature import Signature, TensorSpec
from foldserve.service.backends import SessionOptions, load_session
from foldserve.service.backends.torchscript.writes import may_write_or_keep
from tests.service.repositories import save_scripted

ROWS = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 4)),))


class Doubles(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2.0)


class WritesAView(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.view(-1)[1:].add_(1.0)
        return x + 0


class Assigns(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x[:, 0] = 5.0
        return x + 0


class Adds(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x += 1
        return x


class WritesOut(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.exp(x, out=x)


class WritesInALoop(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(x.size(0)):
            if i % 2 == 0:
                x[i].neg_()
        return x + 0


class WritesInAFork(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.jit.wait(torch.jit.fork(_double, x))


def _double(x: torch.Tensor) -> torch.Tensor:
    return x.mul_(2.0)


class WritesAndFails(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.add_(1.0)
        if bool(x.sum() > 0):
            raise RuntimeError("half done")
        return x


class Returns(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Keeps(torch.nn.Module):
    """Answers with what it was given the time before."""

    last: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(2, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = self.last
        self.last = x
        return before


def loaded(module: torch.nn.Module, folder: Path, trace: bool = False) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.13 calls TorchScript deprecated
        made = torch.jit.trace(module, torch.ones(2, 4)) if trace else torch.jit.script(module)
        made.save(str(folder / "m.pt"))
    return load_session("torchscript", folder / "m.pt", ROWS, "cpu", SessionOptions(threads=1))


IN_PLACE = [Doubles, WritesAView, Assigns, Adds, WritesOut, WritesInALoop, WritesInAFork]


@pytest.mark.parametrize("module", [*IN_PLACE, WritesAndFails, Returns])
def test_rows_are_as_they_were_after_a_run_of_whatever_module(
    module: type[torch.nn.Module], tmp_path: Path
) -> None:
    session = loaded(module(), tmp_path)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    before = x.copy()
    answers = []
    for _ in range(3):
        if module is WritesAndFails:
            with pytest.raises(Exception, match="half done"):
                session.run({"x": x})
            continue
        answers.append(session.run({"x": x})["y"].copy())
    np.testing.assert_array_equal(x, before)
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])


@pytest.mark.parametrize(
    "module", [torch.nn.ReLU(inplace=True), torch.nn.Sequential(torch.nn.Identity(), Doubles())]
)
def test_rows_are_as_they_were_after_a_traced_module(module: torch.nn.Module, tmp_path: Path) -> None:
    session = loaded(module, tmp_path, trace=True)
    x = np.arange(-4, 4, dtype=np.float32).reshape(2, 4)
    before = x.copy()
    session.run({"x": x})
    np.testing.assert_array_equal(x, before)


def test_module_that_keeps_its_rows_does_not_see_what_comes_into_their_memory(tmp_path: Path) -> None:
    session = loaded(Keeps(), tmp_path)
    x = np.full((2, 4), 1, np.float32)
    session.run({"x": x})
    x[:] = 2  # the next batch, of somebody else
    np.testing.assert_array_equal(session.run({"x": x})["y"], np.full((2, 4), 1, np.float32))


def test_module_that_only_reads_is_given_the_memory_itself(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(str(save_scripted(tmp_path)))
    assert not may_write_or_keep(module)
    session = loaded(Returns(), tmp_path)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    assert np.shares_memory(session.run({"x": x})["y"], x)
