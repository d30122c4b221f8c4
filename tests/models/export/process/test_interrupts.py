"""Ctrl-C, at any moment, ends the command with one line, and leaves nothing."""

import contextlib
import os
import signal
import sys

import pytest

from foldserve.models.errors import NotCapturable
from foldserve.models.export import steps
from foldserve.models.export.cli.command import main
from foldserve.models.export.process.interrupts import Interrupts


def _press() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):  # the handler runs between two instructions
        pass


def _lets_through() -> None:
    _press()


def _swallows() -> None:
    with contextlib.suppress(BaseException):
        _press()


def _makes_another() -> None:
    try:
        _press()
    except KeyboardInterrupt:
        raise AttributeError("module 'torch._dynamo' has no attribute 'exc'") from None


def _refuses() -> None:
    try:
        _press()
    except KeyboardInterrupt as error:
        raise NotCapturable("what a library made of it") from error


class _Destructor:
    def __del__(self) -> None:
        _press()


def _prints() -> None:
    _Destructor()


@pytest.mark.parametrize("happens", [_lets_through, _swallows, _makes_another, _refuses, _prints])
def test_ctrl_c_ends_the_export_whatever_a_library_makes_of_it(happens, tmp_path, capfd, monkeypatch):
    before = signal.getsignal(signal.SIGINT), sys.unraisablehook
    monkeypatch.setattr(steps, "capture_network", lambda *of_earlier_steps: happens())
    monkeypatch.setattr(steps, "run_eager", lambda *of_earlier_steps: pytest.fail("went on"))
    assert main(["mlp", "--repository", str(tmp_path / "r")]) == 130
    last = capfd.readouterr().err.splitlines()
    assert last[-1] == "foldserve export: stopped; nothing was written"
    assert not any("Traceback" in line or "Exception ignored" in line for line in last)
    assert list(tmp_path.iterdir()) == []
    assert (signal.getsignal(signal.SIGINT), sys.unraisablehook) == before


def test_a_command_that_was_started_with_ctrl_c_ignored_goes_on_ignoring_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            _press()
        assert not interrupts.came
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
