"""Nothing reports to anybody: onnxruntime is imported in one place, and leaves nothing and calls nobody."""

import ast
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server_process import serving
from tests.service.repositories import save_linear, save_lookup

ROOT = Path(__file__).parents[4]
OWN = {"service/backends/onnxruntime/library.py", "benchmarks/apps/given.py"}
"""The second is imported by servers of environments without foldserve."""


def imports_of(path: Path) -> Iterator[str]:
    """The modules that a file imports, by name: also those that importlib or a subprocess is given as a text."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("import_module", "__import__"):
            yield from (str(one.value) for one in node.args if isinstance(one, ast.Constant))
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and "import onnxruntime" in node.value
        ):
            yield "onnxruntime"


def test_onnxruntime_is_imported_in_one_place_only() -> None:
    files = [
        path for part in ("service", "models", "benchmarks", "deploy") for path in (ROOT / part).rglob("*.py")
    ]
    importers = {
        path.relative_to(ROOT).as_posix()
        for path in files
        if any(name.partition(".")[0] == "onnxruntime" for name in imports_of(path))
    }
    assert importers == OWN


@pytest.mark.parametrize(
    "module", ["foldserve.service.backends.onnxruntime.library", "benchmarks.apps.given"]
)
@pytest.mark.parametrize("before", ["0", "", None])
def test_whoever_imports_onnxruntime_has_turned_its_telemetry_off_before(
    module: str, before: str | None, tmp_path: Path
) -> None:
    program = f"""
import builtins, os, sys
real = builtins.__import__
def watched(name, *others, **more):
    if name == "onnxruntime" and "onnxruntime" not in sys.modules:
        print(os.environ.get("ORT_DISABLE_TELEMETRY"))
    return real(name, *others, **more)
builtins.__import__ = watched
import {module}
"""
    environ = {**os.environ, "HOME": str(tmp_path)}
    environ.pop("ORT_DISABLE_TELEMETRY", None)
    if before is not None:
        environ["ORT_DISABLE_TELEMETRY"] = before
    told = subprocess.run(
        [sys.executable, "-c", program], env=environ, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["1"]


def test_image_turns_the_telemetry_off_too() -> None:
    assert "ORT_DISABLE_TELEMETRY=1" in (ROOT / "Dockerfile").read_text()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and all folders in it that programs keep things in."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("CACHE", "CONFIG", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(home / name.lower()))
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    return home


def sockets_of(pids: list[int]) -> set[tuple[str, int, int]]:
    """The protocol, the local and the other port of each socket of an internet protocol that these processes have."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(link))
            except OSError:
                continue
    found = set()
    for protocol in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        for line in Path(f"/proc/net/{protocol}").read_text().splitlines()[1:]:
            local, other, inode = (line.split()[column] for column in (1, 2, 9))
            if f"socket:[{inode}]" in inodes:
                found.add((protocol, int(local.rpartition(":")[2], 16), int(other.rpartition(":")[2], 16)))
    return found


def test_server_with_failing_runs_leaves_no_file_in_its_home_and_opens_no_socket_but_its_own(
    tmp_path: Path, home: Path
) -> None:
    save_lookup(tmp_path / "repository" / "lookup" / "1" / "model.onnx")
    save_linear(tmp_path / "repository" / "linear" / "1" / "model.onnx")
    with serving(tmp_path / "repository", tmp_path / "log") as server:
        server.wait_until("/health", 200)
        for _ in range(3):
            assert server.post("/predict/lookup", json={"inputs": [[99]]}).status_code == 500
        assert server.post("/predict/lookup", json={"inputs": [[1]]}).status_code == 200
        port = int(server.url.rpartition(":")[2])
        sockets = sockets_of(server.processes())
        assert sockets
        assert {(protocol, local) for protocol, local, _ in sockets} == {("tcp", port)}
        assert server.end(signal.SIGTERM) == 0
    assert list(home.rglob("*")) == []


def test_export_and_inspect_leave_no_file_in_the_home(tmp_path: Path, home: Path) -> None:
    foldserve = Path(sysconfig.get_path("scripts")) / "foldserve"
    for arguments in (["export", "mlp", "--repository", "repository"], ["inspect", "repository"]):
        subprocess.run([foldserve, *arguments], cwd=tmp_path, check=True, capture_output=True)
    assert list(home.rglob("*")) == []
