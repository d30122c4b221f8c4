"""A real `foldserve serve` for tests: started on a free loopback port, ended and looked after."""

import contextlib
import os
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from foldserve.service.metrics.process import descendants

START_LIMIT_S = 120.0
"""Spawned workers import their runtimes anew: seconds, on a busy machine many. Also for any one answer."""
STOP_LIMIT_S = 60.0


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class ServerProcess:
    """One running server. grpc: its address for gRPC, where that is on. headers: of every question below, such as a
    key."""

    def __init__(
        self, process: subprocess.Popen[bytes], port: int, output: Path, grpc: str = "", scheme: str = "http"
    ) -> None:
        self.process = process
        self.grpc = grpc
        self.port = port
        self.url = f"{scheme}://127.0.0.1:{port}"
        self.headers: dict[str, str] = {}
        self._output = output

    @property
    def output(self) -> str:
        """What it printed and logged so far."""
        return self._output.read_text()

    def get(self, path: str) -> httpx.Response:
        """Ask on a connection of its own."""
        # Whom to trust is not the question here, and reading the certificates for each would take most of its time.
        return httpx.get(self.url + path, timeout=START_LIMIT_S, verify=False, headers=self.headers)

    def post(self, path: str, **what: Any) -> httpx.Response:
        """Send on a connection of its own; `what` as httpx.post takes it."""
        return httpx.post(self.url + path, timeout=START_LIMIT_S, verify=False, **what)

    def wait_until(self, path: str, status: int) -> httpx.Response:
        """Ask until the server answers `status` there."""
        until_s = time.monotonic() + START_LIMIT_S
        while time.monotonic() < until_s:
            assert self.process.poll() is None, f"the server ended:\n{self.output}"
            with contextlib.suppress(httpx.TransportError):
                answer = self.get(path)
                if answer.status_code == status:
                    return answer
            time.sleep(0.05)  # between two questions; the condition is the answer above
        raise AssertionError(f"{path} did not answer {status} in {START_LIMIT_S} s:\n{self.output}")

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until something is so."""
        until_s = time.monotonic() + START_LIMIT_S
        while not condition():
            assert time.monotonic() < until_s, self.output
            time.sleep(0.02)  # between two looks

    def end(self, number: signal.Signals) -> int:
        """Send a signal and wait for the exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_LIMIT_S)

    def processes(self) -> list[int]:
        """The ids of all processes of the server."""
        return [self.process.pid, *descendants(self.process.pid)]

    def workers(self) -> list[int]:
        """The ids of the worker processes."""
        return [pid for pid in self.processes() if b"spawn_main" in _command_line(pid)]

    @contextlib.contextmanager
    def workers_stopped(self) -> Iterator[None]:
        """Within: nothing is run. Not for so long that the supervisor takes them for hung."""
        pids = self.workers()
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            self.until(lambda: all(_state(pid) == "T" for pid in pids))  # a signal takes its time
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def api_servers(self) -> list[int]:
        """The ids of the processes that speak HTTP: forked, so their command line is the parent's."""
        line = _command_line(self.process.pid)
        return [pid for pid in descendants(self.process.pid) if _command_line(pid) == line]

    def metrics(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """All samples of one scrape on a connection of its own: (name, sorted labels) -> value."""
        text = self.get("/metrics").text
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for metric in text_string_to_metric_families(text)
            for sample in metric.samples
        }

    def metric(self, name: str, **labels: str) -> float:
        """One sample of a scrape; 0 when it is not exposed."""
        return self.metrics().get((name, tuple(sorted(labels.items()))), 0.0)


def _state(pid: int) -> str:
    """As /proc has it: "T" for a process that is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _command_line(pid: int) -> bytes:
    """Empty when the process has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@contextlib.contextmanager
def serving(repository: Path, output: Path, *options: str, grpc: bool = False) -> Iterator[ServerProcess]:
    """Run `foldserve serve`; at the end it is killed if it still runs."""
    port, grpc_port = free_port(), free_port()
    if grpc:
        options = ("--grpc-port", str(grpc_port), *options)
    command = [Path(sysconfig.get_path("scripts")) / "foldserve", "serve", str(repository)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FOLDSERVE_")}
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--device", "cpu", "--check-moves", *options],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,
        )
    try:
        scheme = "https" if "--tls-certificate" in options else "http"
        yield ServerProcess(process, port, output, f"127.0.0.1:{grpc_port}" if grpc else "", scheme)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def left_behind() -> list[Path]:
    """What servers have left in shared memory under a name; ours have none."""
    return list(Path("/dev/shm").glob("*foldserve*"))


def alive(pids: list[int]) -> list[int]:
    """Which of these processes run (a zombie does not)."""
    running = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                running.append(pid)
    return running


def wait_gone(pids: list[int]) -> None:
    """Wait until none of these processes runs."""
    until_s = time.monotonic() + STOP_LIMIT_S
    while left := alive(pids):
        assert time.monotonic() < until_s, f"still running: {left}"
        time.sleep(0.02)  # between two looks
