"""Servers: how each is started, how a request of a workload is put to it, and how its answer is read.

A contender serves one model per process tree, with one worker on one thread. Whatever it starts is counted, and
gone at the end.
"""

import json
import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.serving import process_tree
from benchmarks.serving.workloads import BENCH, ROOT, Work, repository_of

APPS: Final = ROOT / "benchmarks" / "apps"
START_LIMIT_S: Final = 45.0
ANSWER_LIMIT_S: Final = 10.0
_OURS: Final = frozenset(("PATH", "HOME", "LANG", "TMPDIR"))

CLIENT: Final = {
    "User-Agent": "python-requests/2.32.3",
    "Accept-Encoding": "gzip, deflate",
    "Accept": "*/*",
    "Connection": "keep-alive",
}
"""What an ordinary client's head has besides: a server that is quick only for the shortest head helps nobody."""
JSON: Final = {**CLIENT, "Content-Type": "application/json"}
RAW: Final = {**CLIENT, "Content-Type": "application/octet-stream"}


@dataclass(frozen=True)
class Request:
    """What is posted, again and again."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    scheme: str = "http"


Read = Callable[[bytes], np.ndarray | None]
"""The numbers of an answer; None where there are none to check."""


@dataclass(frozen=True)
class Contender:
    """One server with one setting.

    key: its name for --only. family: contenders that differ in a setting only; the best of a family counts.
    command: the command line, given the workload and the port.
    ask: the request of a workload, and how its answer is read.
    environ: further environment variables, given the workload and the port.
    """

    key: str
    title: str
    family: str
    command: Callable[[Work, int], list[str]]
    ask: Callable[[Work], tuple[Request, Read]]
    environ: Callable[[Work, int], dict[str, str]] = field(default=lambda work, port: {})


def plain(path: str) -> Callable[[Work], tuple[Request, Read]]:
    """{"inputs"} → {"outputs"} in JSON, or raw bytes both ways."""

    def ask(work: Work) -> tuple[Request, Read]:
        if work.raw:
            return Request(path, RAW, work.raw_body()), lambda body: np.frombuffer(body, np.float32)
        return Request(path, JSON, work.json_body()), lambda body: numbers_of(json.loads(body)["outputs"])

    return ask


def numbers_of(outputs: Any) -> np.ndarray:
    """The numbers in {"y": [[...]]} or [[...]]."""
    return np.array(next(iter(outputs.values())) if isinstance(outputs, dict) else outputs, np.float32)


def app_environ(window_ms: int = 0) -> Callable[[Work, int], dict[str, str]]:
    """How the servers of benchmarks/apps are told what to do; see apps/given.py."""
    return lambda work, port: {
        "BENCH_MODEL": str(work.onnx),
        "BENCH_RAW": "1" if work.raw else "",
        "BENCH_SHAPE": ",".join(map(str, work.row_shape)),
        "BENCH_WINDOW_MS": str(window_ms),
        "BENCH_PORT": str(port),
    }


def _bare(work: Work, port: int) -> list[str]:
    uvicorn = [
        "-m",
        "uvicorn",
        "bare:app",
        "--app-dir",
        str(APPS),
        "--http",
        "httptools",
        "--port",
        str(port),
    ]
    return [sys.executable, *uvicorn, "--no-access-log", "--log-level", "warning"]


def _ask_bare(work: Work) -> tuple[Request, Read]:
    body = work.raw_body() if work.raw else work.json_body()
    return Request("/", RAW if work.raw else JSON, body), lambda answer: None


def _litserve(work: Work, port: int) -> list[str]:
    return [sys.executable, str(APPS / "litserve_app.py")]


def _ask_litserve(work: Work) -> tuple[Request, Read]:
    """LitServe reads JSON or forms, never bytes: raw rows go as base64 in JSON, as its examples send pictures."""
    import base64

    body = work.json_body()
    if work.raw:
        body = json.dumps({"inputs": base64.b64encode(work.raw_body()).decode()}).encode()
    return Request("/predict", JSON, body), lambda answer: numbers_of(json.loads(answer)["outputs"])


COMPILED: Final = {"PYTHONPATH": str(ROOT / "build" / "compiled")}
"""Makes foldserve_command run the compiled wheel, which is what is deployed; compile_foldserve() makes it."""


def compile_foldserve() -> None:
    """See to it that build/compiled is made from the sources as they are. Raises: CalledProcessError."""
    subprocess.run(["sh", "deploy/dev/make-wheel.sh"], cwd=ROOT, check=True, stdout=sys.stderr)


def foldserve_command(repository: Path, api_servers: int, port: int) -> list[str]:
    """`foldserve serve` on the CPU, its other settings as they come."""
    command = [str(Path(sys.executable).parent / "foldserve"), "serve", str(repository), "--device", "cpu"]
    return [*command, "--port", str(port), "--api-servers", str(api_servers)]


def _foldserve(api_servers: int) -> Callable[[Work, int], list[str]]:
    def command(work: Work, port: int) -> list[str]:
        return foldserve_command(repository_of([work], BENCH / "one" / work.key), api_servers, port)

    return command


BARE: Final = Contender("bare", "(bare ASGI on uvicorn, reads the body, no model)", "bare", _bare, _ask_bare)
FOLDSERVE: Final = tuple(
    Contender(
        f"foldserve-{n}",
        f"**foldserve**, {n} API server{'s' * (n > 1)}",
        "foldserve",
        _foldserve(n),
        plain("/predict"),
        lambda work, port: COMPILED,
    )
    for n in (1, 2)
)
SOURCE: Final = Contender(
    "source-1", "foldserve not compiled, 1 API server", "source", _foldserve(1), plain("/predict")
)
LITSERVE: Final = tuple(
    Contender(
        f"litserve-{ms}", f"LitServe, window {ms} ms", "litserve", _litserve, _ask_litserve, app_environ(ms)
    )
    for ms in (2, 0)
)
CONTENDERS: Final = (BARE, *FOLDSERVE, SOURCE, *LITSERVE)


@dataclass(frozen=True)
class Running:
    """A server that answers rightly. It alone is below this process."""

    port: int
    request: Request

    def cpu(self) -> process_tree.Sample:
        """CPU time of its whole tree."""
        return process_tree.sample(process_tree.descendants(os.getpid()))


@contextmanager
def running(contender: Contender, work: Work) -> Iterator[Running]:
    """The contender, serving the workload, its answer checked."""
    port = free_port()
    request, read = contender.ask(work)
    with serving(contender.command(work, port), contender.environ(work, port), contender.key) as log:
        until_s = time.monotonic() + START_LIMIT_S
        while True:
            problem, final = _why_not(port, request, read, work)
            if problem is None:
                break
            if (
                final
                or time.monotonic() > until_s
                or not process_tree.any_lives(process_tree.descendants(os.getpid()))
            ):
                raise RuntimeError(
                    f"{contender.key} does not serve {work.key}: {problem}\n{log.read_text()[-2000:]}"
                )
            time.sleep(0.1)  # between two questions
        yield Running(port, request)


@contextmanager
def serving(command: list[str], environ: Mapping[str, str], name: str) -> Iterator[Path]:
    """Run a server in a session of its own; gives its log. Afterwards nothing of it lives."""
    log = BENCH / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    # What the caller's shell sets for foldserve or Python must not reach the contenders.
    own = {key: value for key, value in os.environ.items() if key in _OURS}
    own |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environ}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=own,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield log
    finally:
        process_tree.end([process.pid])
        process_tree.end(process_tree.descendants(os.getpid()), patience_s=2.0)
        process.returncode = 0  # it has been waited for


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def post(port: int, request: Request) -> bytes:
    """One request. Raises: OSError."""
    url = f"{request.scheme}://127.0.0.1:{port}{request.path}"
    asked = urllib.request.Request(url, request.body, dict(request.headers), method="POST")
    any_certificate = ssl._create_unverified_context() if request.scheme == "https" else None
    with urllib.request.urlopen(asked, timeout=ANSWER_LIMIT_S, context=any_certificate) as answer:
        body: bytes = answer.read()
    return body


def _why_not(port: int, request: Request, read: Read, work: Work) -> tuple[str | None, bool]:
    """Why the contender cannot be measured yet, and whether waiting is of no use."""
    try:
        answer = read(post(port, request))
    except urllib.error.HTTPError as error:
        return f"{error} {error.read(500)!r}", error.code in (400, 415, 422)
    except OSError as error:
        return str(error), False
    if answer is None:
        return None, False
    wrong = work.why_wrong(answer)
    return wrong, wrong is not None
