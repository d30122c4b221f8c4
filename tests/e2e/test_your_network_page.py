"""docs/your-network.md, pasted: all files and commands, in a project with its own environment and its own `models`."""

import contextlib
import json
import os
import re
import shutil
import signal
import site
import subprocess
import sysconfig
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.server_process import ServerProcess, free_port
from tests.wheel import install_wheel

pytestmark = pytest.mark.e2e

PAGE = Path(__file__).resolve().parents[2] / "docs" / "your-network.md"
# Beside the network's files a project has packages by the names of folders that foldserve has.
OWN = {
    "models/__init__.py": "raise RuntimeError('the models package of the project was imported')\n",
    "service/__init__.py": "raise RuntimeError('the service package of the project was imported')\n",
}


@dataclass(frozen=True)
class Block:
    """What is pasted at one go. file: the name that the text gives a piece of Python; empty for commands."""

    file: str
    text: str


def blocks() -> list[Block]:
    """The page's blocks of Python and of commands, in order."""
    found = []
    text = PAGE.read_text()
    for match in re.finditer(r"```(python|sh)\n(.*?)```", text, re.DOTALL):
        names = re.findall(r"`(\w+\.py)`", text[: match.start()])
        found.append(Block(names[-1] if match[1] == "python" else "", match[2]))
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder as the page's first block leaves it, without the downloads: what foldserve needs is what is here."""
    folder: Path = tmp_path_factory.mktemp("project")
    for name, content in OWN.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    venv.create(folder / ".venv", symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder / ".venv")}))
    install_wheel(tmp_path_factory.mktemp("wheel"), packages)
    here = [path for path in site.getsitepackages() if Path(path).is_dir()]
    (packages / "installed.pth").write_text("".join(f"import site; site.addsitedir({p!r})\n" for p in here))
    script = (Path(sysconfig.get_path("scripts")) / "foldserve").read_text().partition("\n")[2]
    command = folder / ".venv" / "bin" / "foldserve"
    command.write_text(f"#!{folder}/.venv/bin/python\n{script}")
    command.chmod(0o755)
    return folder


def environment(project: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FOLDSERVE_", "PYTHON", "PYTEST_"))}
    return {**kept, "PATH": f"{project}/.venv/bin:{kept['PATH']}", "FOLDSERVE_DEVICE": "cpu"}


def pasted(project: Path, commands: str) -> str:
    """Run commands as a shell does that they are pasted into; return what they print."""
    done = subprocess.run(
        ["bash", "-e", "-c", commands],
        cwd=project,
        env=environment(project),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def served(project: Path, command: str, port: int) -> Iterator[ServerProcess]:
    """Run the page's `foldserve serve ...` until it is ready, and end it as Ctrl-C does."""
    output = project.parent / "served.log"
    with output.open("wb") as log:
        process = subprocess.Popen(
            [shutil.which("bash") or "bash", "-c", f"exec {command}"],
            cwd=project,
            env={**environment(project), "FOLDSERVE_PORT": str(port)},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = ServerProcess(process, port, output)
    try:
        server.wait_until("/v2/health/ready", 200)
        yield server
        assert server.end(signal.SIGINT) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_page_is_true_from_the_module_to_the_label(project: Path) -> None:
    first, *others = blocks()
    assert "pip install -c" in first.text
    assert "[export]" in first.text
    imported = pasted(project, "python -c 'import foldserve.models; print(foldserve.models.__file__)'")
    assert Path(imported).is_relative_to(project / ".venv"), "this is the checkout's, not the wheel's"
    printed: list[str] = []
    port = free_port()
    with contextlib.ExitStack() as stack:
        for block in others:
            text = block.text.replace("localhost:8000", f"localhost:{port}")
            if block.file:
                (project / block.file).write_text(text)
                continue
            *lines, last = text.strip().splitlines()
            if last.startswith("foldserve serve"):
                printed.append(pasted(project, "\n".join(lines)))
                stack.enter_context(served(project, last, port))
            else:
                printed.append(pasted(project, text))
    everything = "\n".join(printed)
    assert everything.count("written        repository/spectrogram/") == 3
    assert "inputs         x FP32 -1x-1x40" in everything  # the second, by --example
    assert "y float32 [1, 3]" in printed[-2]
    labels = re.findall(r"^ +-?[\d.]+  (\w+)$", printed[-2], re.MULTILINE)
    assert labels[0] == "red"
    assert sorted(labels) == ["blue", "green", "red"]
    red, green, blue = json.loads(printed[-1])["outputs"]["y"][0]
    assert red > max(green, blue)
    manifests = {
        str(path.parent.relative_to(project / "repository")): json.loads(path.read_text())
        for path in (project / "repository").glob("*/*/manifest.json")
    }
    assert set(manifests) == {"spectrogram/1", "spectrogram/2", "spectrogram/3", "colours/1"}
    image = manifests["colours/1"]["image"]
    assert (image["size"], image["resize_to"], image["layout"]) == ([64, 64], 72, "HWC")
    assert manifests["colours/1"]["labels"] == ["red", "green", "blue"]
