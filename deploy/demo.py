"""`make demo`: export three networks, serve them, ask real questions, and leave the server up until Ctrl-C.

Only the commands and HTTP calls that a user has: each `foldserve ...` line it prints can be typed. What is
made lies in build/demo, and the next run uses it again while its hashes hold. DEMO_PORT chooses the port.
With DEMO_EXIT=1, where nobody can press Ctrl-C, it ends the server itself. The server is compiled meanwhile, where a C
compiler is found; COMPILE_FOLDSERVE=0 leaves that out.
"""

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
import numpy.typing as npt

from foldserve.models import efficientnet_lite0, train_digits
from foldserve.service.artifact.file_sums import EXPORT, check_files
from foldserve.service.artifact.manifest import read_manifest
from foldserve.service.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = ROOT / "build" / "demo"
LOG = ROOT / "build" / "demo-server.log"
COMPILED = ROOT / "build" / "compiled"
COMPILER = ROOT / "deploy" / "dev" / "make-wheel.sh"
COMPILER_LOG = ROOT / "build" / "demo-compiler.log"
FOLDSERVE = Path(sys.executable).parent / "foldserve"
NETWORKS = ("efficientnet_lite0", "digits", "mlp")

START_LIMIT_S = 120.0  # loading and warming three models takes seconds; a slow machine may need more
STOP_LIMIT_S = 30.0
POLL_S = 0.1


class DemoFailed(Exception):
    """Something that the person at the terminal can mend; the message says how."""


@dataclass(frozen=True)
class Answer:
    """The first row of a model's answer. latency_s: from sending the request to having read the answer."""

    row: npt.NDArray[np.float32]
    latency_s: float
    server_timing: str


def main() -> int:
    """Run the demo. Returns the exit code."""
    try:
        port = chosen_port()
        with compiling() as compiler:
            for network in NETWORKS:
                ensure_exported(network)
            compiled = compiler is not None and has_compiled(compiler)
        with running_server(port, compiled) as server:
            ask(port)
            print(where_to_look(port), flush=True)
            if os.environ.get("DEMO_EXIT") == "1":
                return 0
            print("Ctrl-C ends it.", flush=True)
            server.wait()
            raise DemoFailed(f"the server ended by itself; its last lines:\n{log_tail()}")
    except DemoFailed as failure:
        print(f"demo: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


def take_every_end_as_ctrl_c() -> None:
    """A closed terminal must not leave the server behind, nor a shell whose background jobs ignore SIGINT."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def chosen_port() -> int:
    """DEMO_PORT or 8000, if nobody listens there; asked before minutes are spent on exports."""
    text = os.environ.get("DEMO_PORT", "8000")
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise DemoFailed(f"DEMO_PORT is {text!r}; expected a port from 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(text)))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            why = "another program listens there" if taken else error.strerror
            other = int(text) % 65535 + 1
            raise DemoFailed(
                f"port {text} cannot be used: {why}; choose another: make demo DEMO_PORT={other}"
            ) from error
    return int(text)


def ensure_exported(network: str) -> None:
    """Export the network into REPOSITORY unless an artifact whose hashes hold is there already."""
    folder = REPOSITORY / network / "1"
    if folder.exists():
        problem = why_not_usable(folder)
        if problem is None:
            print(f"{network}: exported before, and its hashes hold", flush=True)
            return
        print(f"{network}: {problem}; exporting again", flush=True)
        shutil.rmtree(folder)
    run_foldserve("export", network, "--repository", str(REPOSITORY.relative_to(ROOT)))


def why_not_usable(folder: Path) -> str | None:
    """What is wrong with an artifact, or None."""
    try:
        manifest = read_manifest(folder, f"{folder.parent.name}/{folder.name}")
        checks = list(check_files(folder, manifest.files, EXPORT))
    except ConfigError as error:
        return str(error)
    return next((f"{check.name}: {check.problem}" for check in checks if check.problem), None)


def run_foldserve(*arguments: str) -> None:
    """Run a foldserve command in sight of the user."""
    print(f"\n$ foldserve {' '.join(arguments)}", flush=True)
    done = subprocess.run([FOLDSERVE, *arguments], cwd=ROOT, check=False)
    if done.returncode != 0:
        raise DemoFailed(f"`foldserve {' '.join(arguments)}` failed with exit code {done.returncode}")


@contextmanager
def compiling() -> Iterator["subprocess.Popen[bytes] | None"]:
    """Compile the server while the block runs, which exports; nothing where that is not wanted."""
    if os.environ.get("COMPILE_FOLDSERVE") == "0":
        yield None
        return
    COMPILER_LOG.parent.mkdir(exist_ok=True)
    with COMPILER_LOG.open("wb") as log:
        compiler = subprocess.Popen(
            ["sh", COMPILER], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield compiler
    finally:
        if compiler.poll() is None:
            end_group(compiler)


def has_compiled(compiler: "subprocess.Popen[bytes]") -> bool:
    """Wait for the compiler, and say so; whether it has made what can be served."""
    if compiler.poll() is None:
        print("\ncompiling the server: about a minute, once (COMPILE_FOLDSERVE=0 leaves it out)", flush=True)
    if compiler.wait() == 0:
        return True
    lines = COMPILER_LOG.read_text(errors="replace").splitlines()
    why = lines[-1] if lines else f"{COMPILER.name} ended with exit code {compiler.returncode}"
    print(f"\nserving without compiling: {why} (all of it: {COMPILER_LOG.relative_to(ROOT)})", flush=True)
    return False


@contextmanager
def running_server(port: int, compiled: bool) -> Iterator["subprocess.Popen[bytes]"]:
    """Serve REPOSITORY; ready when the block begins, gone when it has ended."""
    arguments = ["serve", str(REPOSITORY.relative_to(ROOT)), "--host", "127.0.0.1", "--port", str(port)]
    path = {"PYTHONPATH": str(COMPILED.relative_to(ROOT))} if compiled else {}
    words = [*(f"{name}={value}" for name, value in path.items()), "foldserve", *arguments]
    print(f"\n$ {' '.join(words)}      (its log: {LOG.relative_to(ROOT)})", flush=True)
    with LOG.open("wb") as log:
        # A session of its own: Ctrl-C reaches the demo alone, which then ends the server in order.
        server = subprocess.Popen(
            [FOLDSERVE, *arguments],
            cwd=ROOT,
            env={**os.environ, **path},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_ready(port, server)
        yield server
    finally:
        stop(server)


def wait_until_ready(port: int, server: "subprocess.Popen[bytes]") -> None:
    """Wait until every model is loaded, warmed and agrees with its reference."""
    begun_s = time.monotonic()
    while time.monotonic() - begun_s < START_LIMIT_S:
        if server.poll() is not None:
            raise DemoFailed(
                f"the server ended with exit code {server.returncode}; its last lines:\n{log_tail()}"
            )
        try:
            with urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5):
                print(f"ready after {time.monotonic() - begun_s:.1f} s\n", flush=True)
                return
        except (HTTPError, URLError, ConnectionError, TimeoutError):
            time.sleep(POLL_S)
    raise DemoFailed(f"the server was not ready after {START_LIMIT_S:.0f} s; its last lines:\n{log_tail()}")


def stop(server: "subprocess.Popen[bytes]") -> None:
    """End the server as Ctrl-C does, and say how it ended."""
    if server.poll() is not None:
        return
    print("\nending the server ...", end=" ", flush=True)
    server.send_signal(signal.SIGINT)
    try:
        code = server.wait(STOP_LIMIT_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):  # or a second Ctrl-C
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        raise DemoFailed("the server did not end in time and was killed") from None
    if code != 0:
        raise DemoFailed(f"the server ended with exit code {code}; its last lines:\n{log_tail()}")
    print("done", flush=True)


def end_group(leader: "subprocess.Popen[bytes]") -> None:
    """End a process and those that it started, as Ctrl-C does, so that they tidy up after themselves."""
    os.killpg(leader.pid, signal.SIGINT)
    try:
        leader.wait(STOP_LIMIT_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(leader.pid, signal.SIGKILL)
        leader.wait()


def log_tail(lines: int = 20) -> str:
    """The last lines of the server's log."""
    return "\n".join(LOG.read_text(errors="replace").splitlines()[-lines:])


def ask(port: int) -> None:
    """Post two pictures, a digit that the network has not seen in training, and ten numbers."""
    import skimage.data

    labels = efficientnet_lite0.labels()
    for name in ("chelsea", "coffee"):
        picture = efficientnet_lite0.resized(getattr(skimage.data, name)())
        answer = post(port, "efficientnet_lite0", efficientnet_lite0.normalised(picture))
        best = int(answer.row.argmax())
        chance = np.exp(answer.row - answer.row.max())
        report(f"skimage's {name}", f'"{labels[best]}" ({chance[best] / chance.sum():.0%})', answer)

    split = train_digits.split()
    answer = post(port, "digits", split.held_out_pixels[0].numpy())
    report(f"a held-out {int(split.held_out_digits[0])}", f"the digit {int(answer.row.argmax())}", answer)

    answer = post(port, "mlp", np.arange(10, dtype=np.float32))
    report("0, 1, ... 9", "mlp: " + ", ".join(f"{value:.2f}" for value in answer.row), answer)


def post(port: int, model: str, row: npt.NDArray[np.float32]) -> Answer:
    """Send one row as raw bytes, and ask for the answer as JSON."""
    request = Request(
        f"http://127.0.0.1:{port}/predict/{model}",
        data=np.ascontiguousarray(row, dtype="<f4").tobytes(),
        headers={"Content-Type": "application/octet-stream", "Accept": "application/json"},
    )
    begun_s = time.perf_counter()
    try:
        with urlopen(request, timeout=30) as response:
            body, timing = response.read(), response.headers.get("Server-Timing", "")
    except HTTPError as error:
        raise DemoFailed(f"{model} answered {error.code}: {error.read().decode(errors='replace')}") from error
    latency_s = time.perf_counter() - begun_s
    (output,) = json.loads(body)["outputs"].values()
    return Answer(np.asarray(output[0], dtype=np.float32), latency_s, timing)


def report(question: str, reply: str, answer: Answer) -> None:
    """One line: what was asked, what came back, how long it took, and how much of that in which stage."""
    stages = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.server_timing))
    timing = f"{answer.latency_s * 1e3:.1f} ms (queue {stages['queue']}, run {stages['run']})"
    print(f"  {question:17} -> {reply:40} {timing}", flush=True)


def where_to_look(port: int) -> str:
    """The URLs, and a request to try."""
    here = f"localhost:{port}"
    body, kind = '{"inputs": [[0,1,2,3,4,5,6,7,8,9]]}', "content-type: application/json"
    return (
        f"\nThe server is up. Its pages: http://{here}/docs  http://{here}/info  http://{here}/metrics\n"
        f"Try:\n  curl -d '{body}' -H '{kind}' {here}/predict/mlp"
    )


if __name__ == "__main__":
    take_every_end_as_ctrl_c()
    sys.exit(main())
