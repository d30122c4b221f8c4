"""The demo's own decisions; that it exports, serves and asks is what `make demo` itself shows."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy import demo

WAITS_FOR_CTRL_C = """
import signal, sys
signal.signal(signal.SIGINT, lambda *_: sys.exit({code}))
print("up", flush=True)
while True:
    signal.pause()
"""


@pytest.fixture(autouse=True)
def a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test exports to and logs to: not where a demo on this machine does."""
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setattr(demo, "REPOSITORY", tmp_path / "build" / "demo")
    monkeypatch.setattr(demo, "LOG", tmp_path / "log")
    monkeypatch.setattr(demo, "COMPILED", tmp_path / "build" / "compiled")
    monkeypatch.setattr(demo, "COMPILER_LOG", tmp_path / "build" / "compiler-log")
    monkeypatch.delenv("COMPILE_FOLDSERVE", raising=False)
    (tmp_path / "log").write_text("the last line of the log\n")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """The folder of an artifact of `mlp` that is as its manifest says."""
    folder = tmp_path / "build" / "demo" / "mlp" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"weights")
    files = {"model.onnx": {"sha256": hashlib.sha256(b"weights").hexdigest(), "size": 7}}
    tensor = {"datatype": "FP32", "shape": [-1, 2]}
    keys = {"name": "mlp", "version": "1", "parity": {}}
    keys |= {"inputs": [{"name": "x", **tensor}], "outputs": [{"name": "y", **tensor}]}
    (folder / "manifest.json").write_text(json.dumps({"format_version": 1, "files": files, **keys}))
    return folder


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The foldserve commands that would have been run."""
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(demo, "run_foldserve", lambda *arguments: ran.append(arguments))
    return ran


def test_an_artifact_whose_hashes_hold_is_not_exported_again(
    artifact: Path, commands: list[tuple[str, ...]]
) -> None:
    demo.ensure_exported("mlp")
    assert commands == []
    assert artifact.exists()


@pytest.mark.parametrize("damage", ["another byte", "no manifest", "no file"])
def test_a_damaged_artifact_is_removed_and_exported_again(
    artifact: Path, commands: list[tuple[str, ...]], damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if damage == "another byte":
        (artifact / "model.onnx").write_bytes(b"wEights")
    else:
        (artifact / {"no manifest": "manifest.json", "no file": "model.onnx"}[damage]).unlink()
    demo.ensure_exported("mlp")
    assert not artifact.exists()
    assert commands == [("export", "mlp", "--repository", str(Path("build", "demo")))]
    assert "exporting again" in capsys.readouterr().out


def test_a_port_that_somebody_listens_on_is_refused_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], commands: list[tuple[str, ...]]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv("DEMO_PORT", str(port))
        assert demo.main() == 1
    message = capsys.readouterr().err
    assert f"port {port} cannot be used: another program listens there" in message
    assert "make demo DEMO_PORT=" in message
    assert commands == [], "the port must be looked at before the exports"


@pytest.mark.parametrize("text", ["", "80x", "0", "65536", "-1"])
def test_a_port_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMO_PORT", text)
    with pytest.raises(demo.DemoFailed, match="expected a port from 1 to 65535"):
        demo.chosen_port()


def start(code: str) -> "subprocess.Popen[bytes]":
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert server.stdout is not None
    assert server.stdout.readline() == b"up\n"
    return server


def test_the_server_is_ended_as_by_ctrl_c() -> None:
    server = start(WAITS_FOR_CTRL_C.format(code=0))
    with server:
        demo.stop(server)
    assert server.returncode == 0


def test_a_server_that_ends_badly_is_told() -> None:
    server = start(WAITS_FOR_CTRL_C.format(code=3))
    with server, pytest.raises(demo.DemoFailed, match=r"exit code 3.*\nthe last line of the log"):
        demo.stop(server)


def test_a_server_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "STOP_LIMIT_S", 0.2)
    deaf = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); print('up', flush=True); signal.pause()"
    )
    server = start(deaf)
    with server, pytest.raises(demo.DemoFailed, match="was killed"):
        demo.stop(server)
    assert server.returncode == -signal.SIGKILL


def test_a_server_that_cannot_start_shows_its_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "foldserve"
    script.write_text("#!/bin/sh\necho 'no model in /models' >&2\nexit 2\n")
    script.chmod(0o755)
    monkeypatch.setattr(demo, "FOLDSERVE", script)
    with (
        pytest.raises(demo.DemoFailed, match=r"exit code 2.*\nno model in /models"),
        demo.running_server(1, compiled=False),
    ):
        pytest.fail("the block must not begin")


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have this shell script be the one that compiles."""

    def write(script: str) -> None:
        monkeypatch.setattr(demo, "COMPILER", tmp_path / "compile.sh")
        (tmp_path / "compile.sh").write_text(script)

    return write


def test_the_server_is_a_compiled_one_where_that_could_be_made(
    compiler: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    compiler("mkdir build/compiled")
    with demo.compiling() as process:
        assert process is not None
        assert demo.has_compiled(process)
    assert (tmp_path / "build" / "compiled").is_dir()
    script = tmp_path / "foldserve"
    script.write_text("#!/bin/sh\necho modules from $PYTHONPATH\nexit 2\n")
    script.chmod(0o755)
    monkeypatch.setattr(demo, "FOLDSERVE", script)
    with (
        pytest.raises(demo.DemoFailed, match="modules from build/compiled"),
        demo.running_server(1, compiled=True),
    ):
        pytest.fail("the block must not begin")
    assert "$ PYTHONPATH=build/compiled foldserve serve build/demo" in capfd.readouterr().out


def test_where_compiling_fails_the_demo_goes_on_and_says_why(
    compiler: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    compiler("echo no C compiler was found >&2; exit 1")
    with demo.compiling() as process:
        assert process is not None
        assert not demo.has_compiled(process)
    assert "serving without compiling: no C compiler was found" in capsys.readouterr().out


def test_a_demo_that_ends_early_leaves_no_compiler_behind(
    compiler: Callable[[str], None], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "started")
    (tmp_path / "compiler.py").write_text(WAITS_FOR_CTRL_C.format(code=3))
    compiler(f"exec {sys.executable} compiler.py >started")
    with demo.compiling() as process, (tmp_path / "started").open() as started:
        assert process is not None
        assert started.readline() == "up\n"
    assert process.returncode == 3, "it was not ended as by Ctrl-C"


def test_who_wants_no_compiler_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPILE_FOLDSERVE", "0")
    with demo.compiling() as process:
        assert process is None
